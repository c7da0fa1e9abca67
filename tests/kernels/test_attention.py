"""Attention: by blocks against the definition, the definition against the golden arrays and brute
force.
"""

import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.kernels.attention import (
  BucketBias,
  CoPE,
  KeyBias,
  LinearBias,
  api,
  attention,
  relative_bucket,
  splash,
  xla,
)

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def inputs(B=2, T=20, S=None, N=4, K=2, H=8, F=None, dtype=jnp.float32, seed=0):
  S, F = S or T, F or H
  keys = iter(jax.random.split(jax.random.key(seed), 4))

  def draw(*shape):
    return jax.random.normal(next(keys), shape).astype(dtype)

  return draw(B, T, N, H), draw(B, S, K, H), draw(B, S, K, F), draw(B, T, N, F)


def pull(fn, cotangent, *args):
  """Value and gradients of fn at args, jitted once."""

  @jax.jit
  def both(*args):
    value, vjp = jax.vjp(fn, *args)
    return value, vjp(cotangent)

  return both(*args)


def by_blocks(block):
  """`attention` with the blockwise form at a fixed block size."""
  return lambda monkeypatch: monkeypatch.setattr(xla.blocks, "query_block", lambda *_: block)


def close(got, want, atol):
  for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert g.dtype == w.dtype and g.shape == w.shape
    np.testing.assert_allclose(
      np.asarray(g, np.float32), np.asarray(w, np.float32), atol=atol, rtol=atol
    )


def make_bias(kind, B, T, S, N, H):
  keys = jax.random.split(jax.random.key(7), 3)

  def running(key, n):
    return -jnp.cumsum(jax.random.uniform(key, (B, n, N)), axis=1)

  return {
    None: None,
    "linear": LinearBias(jnp.linspace(0.1, 0.9, N)),
    "key": KeyBias(running(keys[0], T), running(keys[1], S)),
    "key_only": KeyBias(None, running(keys[1], S)),
    "bucket": BucketBias(jax.random.normal(keys[0], (8, N)), False, 20),
    "bucket_both": BucketBias(jax.random.normal(keys[0], (8, N)), True, 20),
    "cope": CoPE(jax.random.normal(keys[2], (H, 5))),
    "sum": (
      BucketBias(jax.random.normal(keys[0], (8, N)), True, 20),
      KeyBias(None, running(keys[1], S)),
    ),
  }[kind]


CASES = {
  "causal": {},
  "window": dict(window=6),
  "full": dict(causal=False),
  "full_window": dict(causal=False, window=4),
  "softcap_scale": dict(softcap=3.0, scale=0.7),
  "softmax1": dict(softmax1=True),
  "linear": dict(bias="linear"),
  "key": dict(bias="key", causal=False),
  "key_only_softmax1": dict(bias="key_only", causal=False, softmax1=True),
  "bucket": dict(bias="bucket"),
  "bucket_window": dict(bias="bucket", window=5),
  "sum": dict(bias="sum", causal=False),
  "cope": dict(bias="cope"),
}


SEGMENTS = jnp.array(
  [[1] * 7 + [2] * 9 + [0] * 4, [0] * 3 + [1] * 17], jnp.int32
)  # with rows that see no key


# Float32 sums of some tens of terms in another order.
@pytest.mark.parametrize("case", CASES)
def test_blocks_agree_with_the_definition_and_its_gradients(case, monkeypatch):
  by_blocks(8)(monkeypatch)
  options = dict(CASES[case])
  q, k, v, do = inputs(F=6)
  bias = make_bias(options.pop("bias", None), 2, 20, 20, 4, 8)
  segments = None if case in ("causal", "window", "softmax1") else SEGMENTS

  def run(impl):
    return pull(
      lambda q, k, v, bias: attention(
        q, k, v, bias=bias, q_segment_ids_BT=segments, implementation=impl, **options
      ),
      do,
      q,
      k,
      v,
      bias,
    )

  close(run("xla"), run("reference"), 2e-5)


@pytest.mark.parametrize("T", [1, 2, 7, 8, 9, 33])
def test_every_length_around_the_block_agrees_with_the_definition(T, monkeypatch):
  by_blocks(8)(monkeypatch)
  q, k, v, do = inputs(B=1, T=T, N=2, K=1, H=4)
  bias = BucketBias(jax.random.normal(jax.random.key(1), (6, 2)), False, 9)

  def run(impl):
    return pull(
      lambda q, k, v, bias: attention(q, k, v, bias=bias, implementation=impl), do, q, k, v, bias
    )

  close(run("xla"), run("reference"), 2e-5)


def test_bfloat16_stays_within_its_rounding_of_the_definition(monkeypatch):
  by_blocks(8)(monkeypatch)
  q, k, v, do = inputs(dtype=jnp.bfloat16)

  def run(impl, *a):
    return pull(lambda q, k, v: attention(q, k, v, implementation=impl), do.astype(a[0].dtype), *a)

  exact = jax.tree.map(
    lambda x: x.astype(jnp.bfloat16), run("reference", *(x.astype(jnp.float32) for x in (q, k, v)))
  )
  for impl in ("xla", "reference"):
    close(run(impl, q, k, v), exact, 5e-2)  # 8 bits, some ten terms


def test_the_definition_is_attention_written_out_in_loops():
  q, k, v, _ = (np.asarray(x, np.float64) for x in inputs(B=1, T=6, N=4, K=2, H=4, F=3))
  window, slopes = 3, np.array([0.1, 0.2, 0.3, 0.4])
  segments = np.array([1, 1, 1, 2, 2, 0])
  for softmax1 in (False, True):
    want = np.zeros((1, 6, 4, 3))
    for n, i in itertools.product(range(4), range(6)):
      seen = [j for j in range(i + 1) if i - j < window and segments[i] == segments[j] != 0]
      weights = [
        np.exp(2 * np.tanh(q[0, i, n] @ k[0, j, n // 2] / 2 / 2) - slopes[n] * (i - j))
        for j in seen
      ]
      for j, weight in zip(seen, weights):
        want[0, i, n] += weight / (sum(weights) + softmax1) * v[0, j, n // 2]
    for impl in ("reference", "xla"):
      got = attention(
        *(jnp.asarray(x, jnp.float32) for x in (q, k, v)),
        window=window,
        softcap=2.0,
        softmax1=softmax1,
        bias=LinearBias(jnp.asarray(slopes, jnp.float32)),
        implementation=impl,
        q_segment_ids_BT=jnp.asarray(segments, jnp.int32)[None],
      )
      np.testing.assert_allclose(got, want, atol=2e-6)
      assert not np.any(got[0, 5])  # padding sees nothing


@pytest.mark.parametrize("impl", ["reference", "xla"])
def test_golden_outputs_of_alibi_cope_and_no_positions(impl):
  with np.load(GOLDEN / "carope" / "neighbours.npz") as file:
    golden = dict(file)
  q, k, v, cotangent = (
    golden[f"in/{name}"].swapaxes(1, 2) for name in ("q", "k", "v", "cotangent")
  )
  alibi = LinearBias(jnp.asarray(2.0 ** (-2.0 * np.arange(1, 5)), jnp.float32))

  def near(got, want, tolerance):
    return np.testing.assert_allclose(got, want, atol=tolerance * np.abs(want).max(), rtol=0)

  near(attention(q, k, v, implementation=impl).swapaxes(1, 2), golden["out/nope_out"], 2e-5)
  near(
    attention(q, k, v, bias=alibi, implementation=impl).swapaxes(1, 2),
    golden["out/alibi_out"],
    2e-5,
  )
  out, gradients = pull(
    lambda q, k, v, e: attention(q, k, v, bias=CoPE(e), implementation=impl),
    cotangent,
    q,
    k,
    v,
    golden["in/cope_pos_emb"],
  )
  near(out.swapaxes(1, 2), golden["out/cope_out"], 2e-5)
  for name, gradient in zip(("cope_q", "cope_k", "cope_v"), gradients):
    near(gradient.swapaxes(1, 2), golden[f"grad/{name}"], 1e-4)
  near(gradients[3], golden["grad/cope_pos_emb"], 1e-4)


def test_relative_buckets_are_those_of_t5():
  with np.load(GOLDEN / "mrt5" / "relpos_buckets.npz") as file:
    for n, far in ((32, 128), (16, 24), (64, 256), (8, 20)):
      for name, both in (("bi", True), ("causal", False)):
        got = relative_bucket(
          jnp.asarray(file["in/relative_position"]),
          num_buckets=n,
          max_distance=far,
          bidirectional=both,
        )
        np.testing.assert_array_equal(got, file[f"out/bucket_nb{n}_md{far}_{name}"])
  with np.load(GOLDEN / "lexinvariant" / "t5_buckets.npz") as file:
    for n, far in ((32, 128), (8, 16)):
      got = relative_bucket(
        -jnp.asarray(file["in/distance"]), num_buckets=n, max_distance=far, bidirectional=False
      )
      np.testing.assert_array_equal(got, file[f"out/bucket_{n}_{far}"])


@pytest.mark.parametrize("options", [{}, dict(window=5)])
def test_a_ring_buffer_in_any_order_gives_the_parallel_result(options):
  T, slots = 12, 8
  q, k, v, _ = inputs(T=T)
  bias = BucketBias(jax.random.normal(jax.random.key(1), (8, 4)), False, 20)
  whole = attention(
    q, k, v, bias=bias, window=options.get("window", slots), implementation="reference"
  )
  for t in (2, 9):
    held = np.array(
      [max((p for p in range(t + 1) if p % slots == slot), default=-1) for slot in range(slots)]
    )

    def ring(x):
      return x[:, np.where(held < 0, 0, held)]

    step = jax.jit(
      lambda q, k, v, i, j: attention(q, k, v, bias=bias, q_index_BT=i, kv_index_BS=j, **options)
    )
    got = step(
      q[:, t : t + 1],
      ring(k),
      ring(v),
      jnp.full((2, 1), t, jnp.int32),
      jnp.asarray(held, jnp.int32)[None],
    )
    np.testing.assert_allclose(got[:, 0], whole[:, t], atol=2e-6)


def test_explicit_indices_and_keys_alone_masked_agree_between_forms(monkeypatch):
  by_blocks(8)(monkeypatch)
  q, k, v, do = inputs(T=9, S=20)
  index = jnp.arange(11, 20, dtype=jnp.int32)[None]

  def run(impl, **options):
    return pull(lambda q, k, v: attention(q, k, v, implementation=impl, **options), do, q, k, v)

  close(run("xla", q_index_BT=index, window=7), run("reference", q_index_BT=index, window=7), 2e-5)
  cross = dict(causal=False, kv_segment_ids_BS=SEGMENTS)
  close(run("xla", **cross), run("reference", **cross), 2e-5)


def test_training_at_8k_never_holds_length_by_length():
  T = 8192
  q = jax.ShapeDtypeStruct((1, T, 1, 64), jnp.float32)

  def loss(q, k, v, slope):
    return attention(q, k, v, bias=LinearBias(slope), implementation="xla").sum()

  slope = jax.ShapeDtypeStruct((1,), jnp.float32)
  compiled = jax.jit(jax.grad(loss, (0, 1, 2, 3))).lower(q, q, q, slope).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < 0.25 * T * T * 4


def test_a_named_implementation_that_does_not_cover_the_case_is_refused_with_the_reason():
  q, k, v, _ = inputs(T=4)
  for name in ("cudnn", "splash", "pallas"):
    with pytest.raises(NotImplementedError, match=f"{name}.*the trace is for cpu"):
      attention(q, k, v, implementation=name)
  with pytest.raises(ValueError, match="'flash'.*known: reference, xla, cudnn, splash, pallas"):
    attention(q, k, v, implementation="flash")
  with pytest.raises(ValueError, match="window 0"):
    attention(q, k, v, window=0)


@pytest.mark.parametrize("window", [None, 40])
def test_splash_interpreted_agrees_with_the_definition_for_heads_of_any_size_and_packed_rows(
  monkeypatch, window
):
  q, k, v, cotangent = inputs(B=1, T=128, N=4, K=2, H=24, F=40)
  segments = jnp.asarray([[1] * 50 + [2] * 60 + [0] * 18])
  kernel = splash._kernel
  monkeypatch.setattr(splash, "_kernel", lambda *args: kernel(*args, interpret=True))
  monkeypatch.setitem(api._supports, "splash", lambda *_: None)

  def run(implementation):
    return pull(
      lambda q, k, v: attention(
        q, k, v, q_segment_ids_BT=segments, window=window, implementation=implementation
      ),
      cotangent,
      q,
      k,
      v,
    )

  close(run("splash"), run("reference"), 2e-5)
