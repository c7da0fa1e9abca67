"""The Pallas kernel of attention, interpreted on a CPU, against the definition; sizes are small,
tiles are 128 x 128.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interpreter import every_detector

from jaxlm.kernels import pallas_support
from jaxlm.kernels.attention import (
  BucketBias,
  CoPE,
  KeyBias,
  LinearBias,
  api,
  attention,
  pallas_tpu,
)
from jaxlm.kernels.attention.reference import AttentionSpec
from jaxlm.kernels.attention.tiles import tiles

# Float32 sums of up to 300 terms in another order: some 1e-6 of the largest value; softmax's
# gradients are differences.
FLOAT32 = 1e-5


@pytest.fixture
def interpreted(monkeypatch):
  """implementation="pallas" runs interpreted, with tiles of 128 by 128; call it to change the
  tiles.
  """

  def setup(forward=(128, 128), backward=(128, 128)):
    monkeypatch.setattr(pallas_tpu.blocks, "pallas_blocks", lambda *_: (forward, backward))

  setup()
  with pallas_support.interpreted():
    yield setup


def draw(seed, *shape, dtype=jnp.float32):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def running(seed, *shape):
  return -jnp.cumsum(jnp.asarray(np.random.default_rng(seed).random(shape), jnp.float32), axis=1)


def both(B, T, S, N, K, H, F, bias, dtype=jnp.float32, **options):
  """(o and gradients of q, k, v and bias) of "pallas" and of "reference"."""
  q, k, v, do = (
    draw(i, *s, dtype=dtype)
    for i, s in enumerate([(B, T, N, H), (B, S, K, H), (B, S, K, F), (B, T, N, F)])
  )

  def run(implementation):
    @jax.jit
    def gradients(*args):
      o, pull = jax.vjp(
        lambda q, k, v, bias: attention(
          q, k, v, bias=bias, implementation=implementation, **options
        ),
        *args,
      )
      return o, pull(do)

    return gradients(q, k, v, bias)

  return run("pallas"), run("reference")


def near(got, want, tolerance):
  """Every array within `tolerance` of its largest value, or of 1."""
  for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert g.dtype == w.dtype and g.shape == w.shape
    g, w = np.asarray(g, np.float64), np.asarray(w, np.float64)
    np.testing.assert_allclose(g, w, rtol=0, atol=tolerance * max(1.0, np.abs(w).max()))


def packed(T):
  """Two rows: documents and padding; one that begins with padding."""
  return jnp.asarray(
    [[1] * (T // 2) + [2] * (T // 4) + [0] * (T - T // 2 - T // 4), [0] * 30 + [1] * (T - 30)],
    jnp.int32,
  )


def test_packed_rows_with_buckets_alibi_and_shared_key_heads(interpreted):
  interpreted(backward=(256, 128))  # other tiles backward
  bias = BucketBias(draw(9, 8, 4), False, 60), LinearBias(jnp.linspace(0.01, 0.1, 4))
  near(*both(2, 200, 200, 4, 2, 8, 6, bias, q_segment_ids_BT=packed(200)), FLOAT32)


def test_windows_softcap_and_numbers_of_queries_and_keys(interpreted):
  bias = tuple(KeyBias(running(i, 1, 257, 2), running(i, 1, 257, 2)) for i in (10, 11)) + (
    KeyBias(None, draw(12, 1, 257, 1)),
  )
  near(*both(1, 257, 257, 2, 2, 8, 8, bias, window=100, softcap=3.0, scale=0.7), FLOAT32)


@pytest.mark.parametrize(
  "dtype,tolerance",
  [
    (jnp.float32, FLOAT32),
    # Weights and their gradients are rounded to 8 bits, in the kernel before the division and in
    # the definition too.
    (jnp.bfloat16, 3e-2),
  ],
)
def test_mrt5s_gate_softmax1_and_a_row_without_keys(interpreted, dtype, tolerance):
  valid = jnp.asarray([[1] * 150 + [0] * 50, [0] * 200], jnp.int32)
  bias = BucketBias(draw(9, 8, 2), True, 60), KeyBias(None, 30 * jnp.abs(draw(12, 2, 200, 1)))
  got, want = both(
    2,
    129,
    200,
    2,
    2,
    8,
    8,
    bias,
    dtype,
    causal=False,
    softmax1=True,
    kv_segment_ids_BS=valid,
    scale=1.0,
  )
  near(got, want, tolerance)
  assert not np.any(np.asarray(got[0][1], np.float32))


def test_windows_to_both_sides_skip_tiles(interpreted):
  got, want = both(1, 300, 300, 1, 1, 8, 8, LinearBias(jnp.ones(1)), causal=False, window=20)
  near(got, want, 5e-5)  # the slope's gradient adds up 12,000 products that mostly cancel


@pytest.mark.parametrize("T", [1, 127, 128, 129])
def test_every_length_around_the_tile(interpreted, T):
  near(*both(1, T, T, 1, 1, 8, 8, BucketBias(draw(9, 6, 1), False, 9)), FLOAT32)


def test_on_a_mesh_gradients_of_shared_parameters_are_those_of_all_devices(interpreted):
  mesh = jax.make_mesh(
    (2, 2),
    ("data", "tensor"),
    devices=jax.devices()[:4],
    axis_types=(jax.sharding.AxisType.Auto,) * 2,
  )
  bias = BucketBias(draw(9, 8, 2), False, 60), KeyBias(None, draw(12, 2, 128, 1))
  with jax.set_mesh(mesh):
    got, want = both(
      2,
      128,
      128,
      2,
      2,
      8,
      8,
      bias,
      q_segment_ids_BT=packed(128),
      spec=jax.P("data", None, "tensor", None),
    )
  near(got, want, FLOAT32)


@pytest.mark.slow
def test_no_race_no_read_outside_and_no_unwritten_memory_on_two_cores(interpreted):
  bias = (
    BucketBias(draw(9, 8, 2), False, 60),
    KeyBias(running(10, 2, 256, 2), running(10, 2, 256, 2)),
  )
  with every_detector():
    got, want = both(2, 256, 256, 2, 2, 8, 8, bias, q_segment_ids_BT=packed(256))
  near(got, want, FLOAT32)


@pytest.mark.parametrize(
  "options", [dict(causal=True), dict(window=100), dict(window=300), dict(causal=False, window=70)]
)
@pytest.mark.parametrize("T,S", [(640, 640), (256, 640), (640, 256)])
def test_tiles_that_are_skipped_hide_every_pair_and_whole_ones_none(T, S, options):
  rule = AttentionSpec(1.0, **options)
  grid = tiles(T, S, 256, 128, rule)
  i, j = np.arange(grid.T)[:, None], np.arange(grid.S)[None]
  seen = j <= i if rule.causal else np.full((grid.T, grid.S), True)
  if rule.window is not None:
    seen = seen & (i - j < rule.window) & (rule.causal | (j - i < rule.window))
  for q in range(grid.num_q):
    for k in range(grid.num_k):
      tile = seen[q * 256 : (q + 1) * 256, k * 128 : (k + 1) * 128]
      assert bool(grid.is_live(q, k)) == tile.any() and bool(grid.is_whole(q, k)) == tile.all()
      if grid.is_live(q, k):  # a live tile fetches its own blocks
        assert grid.keys_of(q, k) == k and grid.queries_of(q, k) == q
      assert 0 <= grid.keys_of(q, k) < grid.num_k and 0 <= grid.queries_of(q, k) < grid.num_q


def test_what_it_does_not_cover_is_refused_with_the_reason(interpreted):
  q = draw(0, 1, 8, 2, 4)

  def ask(match, q=q, **options):
    return pytest.raises(
      NotImplementedError, attention, q, options.pop("k", q), q, implementation="pallas", **options
    ).match(match)

  ask("CoPE depends on a whole row", bias=CoPE(draw(1, 4, 5)))
  ask("explicit indices", q_index_BT=jnp.arange(8, dtype=jnp.int32)[None])
  ask("one of bfloat16, float32 for all", k=q.astype(jnp.bfloat16))
  long = jax.ShapeDtypeStruct((1, 100_000, 1, 64), jnp.bfloat16)
  reason = pallas_tpu.supports(
    long, long, long, None, (LinearBias(jnp.ones(1)),), AttentionSpec(1.0)
  )
  assert "100000 queries and 100000 keys need about" in reason and "use the XLA form" in reason


def test_it_is_chosen_on_tpus_only_where_the_estimate_is_better(monkeypatch):
  for module in (api.cudnn, api.splash, pallas_support):
    monkeypatch.setattr(module, "target_platform", lambda: "tpu")
  table, slope, cope = BucketBias(jnp.ones((8, 1))), LinearBias(jnp.ones(1)), CoPE(jnp.ones((4, 5)))

  def chosen(T, *biases, spec=None):
    q = jax.ShapeDtypeStruct((1, T, 1, 4), jnp.float32)
    return api.best(q, q, q, None, biases, AttentionSpec(1.0), spec)

  assert chosen(512, table) == chosen(600, table, slope) == "pallas"
  assert chosen(256, table) == chosen(512, slope) == chosen(512, table, cope) == "xla"
  assert chosen(256) == chosen(512) == "pallas"  # one block of keys: splash is slower
  assert chosen(128) == chosen(1024) == "splash"
  monkeypatch.setattr(jax.sharding, "get_abstract_mesh", lambda: type("", (), dict(size=4)))
  assert chosen(512, table) == "xla"  # not partitioned without a spec
  assert chosen(512, table, spec=jax.P("data")) == "pallas"
