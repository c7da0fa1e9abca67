"""The TPU kernels of linear_cross_entropy, interpreted: against the definition in float64, and what
they refuse.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interpreter import every_detector
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlm.kernels import pallas_support
from jaxlm.kernels.linear_cross_entropy import blocks, linear_cross_entropy, pallas_tpu

TABLE = blocks.tiles
TILES = blocks.Tiles(rows=128, words=128, step=64, back_rows=128, back_words=128, back_step=64)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
  monkeypatch.setattr(blocks, "tiles", lambda *args: TILES)


def inputs(B, T, V, D=24, dtype=jnp.float32, scale=1.0):
  rng = np.random.default_rng(0)

  def draw(*shape):
    return rng.normal(size=shape)

  h, w = jnp.asarray(scale * draw(B, T, D), dtype), jnp.asarray(draw(V, D) / D**0.5, dtype)
  return (
    h,
    w,
    jnp.asarray(draw(V), jnp.float32),
    jnp.asarray(rng.integers(0, V, (B, T)), jnp.int32),
    (jnp.asarray(draw(B, T), jnp.float32), jnp.asarray(draw(B, T), jnp.float32)),
  )


def definition(h, w, bias, targets, gradients, softcap=None, where=None):
  """(log_prob, log_z, dh, dw, dbias) in float64; targets None: no log_prob, gradients is that of
  log_z.
  """
  h, w = np.asarray(h, np.float64), np.asarray(w, np.float64)
  a = np.einsum("btd,vd->btv", h, w) + (0 if bias is None else np.asarray(bias, np.float64))
  s = a if softcap is None else softcap * np.tanh(a / softcap)
  log_z = np.log(np.exp(s - s.max(-1, keepdims=True)).sum(-1)) + s.max(-1)
  here = np.ones_like(log_z) if where is None else np.asarray(where, np.float64)
  p = np.exp(s - log_z[..., None])
  if targets is None:
    log_prob, da = None, (here * np.asarray(gradients, np.float64))[..., None] * p
  else:
    g, z = (here * np.asarray(x, np.float64) for x in gradients)
    log_prob = here * (np.take_along_axis(s, np.asarray(targets)[..., None], -1)[..., 0] - log_z)
    da = (z - g)[..., None] * p + g[..., None] * (
      np.asarray(targets)[..., None] == np.arange(w.shape[0])
    )
  da = da if softcap is None else da * (1 - (s / softcap) ** 2)
  out = (
    log_prob,
    here * log_z,
    np.einsum("btv,vd->btd", da, w),
    np.einsum("btv,btd->vd", da, h),
    da.sum((0, 1)),
  )
  return [x for x in out if x is not None][: None if bias is not None else -1]


def by_kernel(
  h, w, bias, targets, gradients, softcap=None, where=None, implementation="pallas", **specs
):
  @jax.jit
  def run(h, w, bias, targets, gradients):
    def f(h, w, bias):
      return linear_cross_entropy(
        h,
        w,
        targets,
        bias_V=bias,
        softcap=softcap,
        where_BT=where,
        implementation=implementation,
        **specs,
      )

    out, pull = jax.vjp(f, h, w, bias)
    return out, pull(gradients)

  return jax.tree.leaves(run(h, w, bias, targets, gradients))


def check(got, want, tolerance):
  for g, w in zip(got, want, strict=True):
    np.testing.assert_allclose(
      np.asarray(g, np.float64), w, atol=tolerance * max(1.0, np.abs(w).max())
    )


# (B, T, V) beside a tile of 128 rows and words: one row, one word, a tile less, one and more;
# softcap, bias, targets.
CASES = [
  ((1, 1, 1), None, False, True),
  ((1, 127, 128), None, True, False),
  ((3, 43, 129), None, False, True),
  ((1, 128, 300), 2.0, True, True),
  ((2, 130, 127), None, True, True),
  ((3, 43, 129), 2.0, True, False),
]


@pytest.mark.parametrize("size,softcap,with_bias,with_targets", CASES, ids=str)
def test_the_kernels_are_the_definition_with_their_gradients(
  size, softcap, with_bias, with_targets
):
  h, w, bias, targets, gradients = inputs(*size)
  bias, targets = bias if with_bias else None, targets if with_targets else None
  gradients = gradients if with_targets else gradients[1]
  with pallas_support.interpreted():
    got = by_kernel(h, w, bias, targets, gradients, softcap)
  # Float32: sums of some 300 terms of size 1, each rounded to 2^-24.
  check(got, definition(h, w, bias, targets, gradients, softcap), 1e-5)


def test_bfloat16_operands_give_float32_results_near_the_definition():
  h, w, bias, targets, gradients = inputs(1, 130, 300, dtype=jnp.bfloat16)
  with pallas_support.interpreted():
    got = by_kernel(h, w, bias, targets, gradients)
  want = definition(h, w, bias, targets, gradients)
  assert [x.dtype.name for x in got] == ["float32", "float32", "bfloat16", "bfloat16", "float32"]
  check(got[:2], want[:2], 1e-5)  # nothing is rounded before the sums
  check(
    got[2:], want[2:], 2**-7
  )  # weights are rounded to 8 bits before the last products, results after


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_rows_that_do_not_count_are_zero_and_have_no_gradient_however_large_they_are(share):
  h, w, bias, targets, gradients = inputs(2, 150, 200)
  where = jnp.asarray(np.random.default_rng(1).random((2, 150)) < share)
  h = jnp.where(where[..., None], h, 1e4)  # exp of such logits overflows
  with pallas_support.interpreted():
    got = by_kernel(h, w, bias, targets, gradients, where=where)
  check(
    got,
    definition(jnp.where(where[..., None], h, 0), w, bias, targets, gradients, where=where),
    1e-5,
  )


def test_a_sure_prediction_keeps_its_gradient_in_bfloat16():
  h, w = (
    jnp.ones((1, 1, 8), jnp.bfloat16),
    jnp.zeros((4, 8), jnp.bfloat16).at[1].set(1.0),
  )  # logits 0, 8, 0, 0
  targets, gradients = jnp.ones((1, 1), jnp.int32), (jnp.ones((1, 1)), jnp.zeros((1, 1)))
  with pallas_support.interpreted():
    dh, dw = by_kernel(h, w, None, targets, gradients)[2:]
  want = 1 - np.exp(8) / (np.exp(8) + 3)  # 0.001; p itself rounds to 1 in bfloat16
  np.testing.assert_allclose(dh.astype(np.float32), want, rtol=1e-2)
  np.testing.assert_allclose(dw.astype(np.float32)[1], want, rtol=1e-2)


def test_two_cores_neither_race_nor_read_what_is_not_there():
  h, w, bias, targets, gradients = inputs(1, 200, 300)
  where = jnp.arange(200)[None] < 150
  with every_detector():
    got = by_kernel(h, w, bias, targets, gradients, softcap=3.0, where=where)
    jax.block_until_ready(got)
  check(got, definition(h, w, bias, targets, gradients, softcap=3.0, where=where), 1e-5)


@pytest.mark.parametrize(
  "w_spec", [P(None, "fsdp"), P("tensor", "fsdp"), P("tensor", None)], ids=str
)
def test_on_a_mesh_rows_and_words_may_be_shared(w_spec):
  mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
  h, w, bias, targets, gradients = inputs(8, 12, 32, D=8)
  with jax.set_mesh(mesh), pallas_support.interpreted():

    def put(x, *spec):
      return jax.device_put(x, NamedSharding(mesh, P(*spec)))

    def rows(x):
      return put(x, ("data", "fsdp"))

    got = by_kernel(
      rows(h),
      put(w, *w_spec),
      put(bias),
      rows(targets),
      jax.tree.map(rows, gradients),
      2.0,
      spec=P(("data", "fsdp"), None, None),
      w_spec=w_spec,
    )
  check(got, definition(h, w, bias, targets, gradients, 2.0), 1e-5)


def test_what_is_not_supported_is_refused_with_the_reason_and_not_chosen():
  h, w, _, targets, gradients = inputs(2, 3, 5)
  with pytest.raises(
    NotImplementedError,
    match='trace is for cpu and the kernel needs a TPU; use implementation="xla"',
  ):
    by_kernel(h, w, None, targets, gradients)
  with pallas_support.interpreted():
    with pytest.raises(NotImplementedError, match="float16"):
      by_kernel(h.astype(jnp.float16), w.astype(jnp.float16), None, targets, gradients)
    with jax.set_mesh(jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))):
      with pytest.raises(NotImplementedError, match="mesh of 8 devices it needs spec"):
        by_kernel(h, w, None, targets, gradients)
      with pytest.raises(NotImplementedError, match="batch 2 is not divisible by the 8 devices"):
        by_kernel(h, w, None, targets, gradients, spec=P("data", None, None))
      with pytest.raises(NotImplementedError, match="same mesh axes"):
        by_kernel(
          h, w, None, targets, gradients, spec=P("data", None, None), w_spec=P("data", None)
        )


@pytest.mark.parametrize("kind", ["TPU v5 lite", "TPU v5"])
def test_tiles_are_halved_until_they_fit_on_chip_and_else_refused(kind):
  room, bf16 = pallas_support.vmem_bytes(kind), jnp.dtype(jnp.bfloat16)
  with pallas_support.interpreted():
    for D in (768, 2048, 4096, 8192):
      assert pallas_tpu.supports(bf16, bf16, D, kind, TABLE(kind, D, 2, room)) is None
    reason = pallas_tpu.supports(bf16, bf16, 2**17, kind, TABLE(kind, 2**17, 2, room))
  assert reason.startswith("d_model 131072 needs") and 'use implementation="xla"' in reason
