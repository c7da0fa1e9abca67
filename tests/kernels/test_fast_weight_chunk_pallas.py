"""The TPU kernels of fast_weight_chunk, interpreted: against the definition in float64, and what they
refuse.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interpreter import every_detector
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxlm.kernels import pallas_support
from jaxlm.kernels.fast_weight_chunk import (
  Causal,
  Rule,
  blocks,
  fast_weight_chunk,
  initial_state,
  view_synthesis,
)
from jaxlm.kernels.newton_schulz import coefficients

GD = Rule()
MUON = Rule(muon=coefficients("language", 2), prenorm=True)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
  """Two tiles of tokens and two parts of the inner width wherever there is more than one register."""

  def tiles(kind, C, F, H, itemsize, room):
    return blocks.Tiles(128, 2 if F > 128 else 1)

  monkeypatch.setattr(blocks, "tiles", tiles)


def inputs(B, N, T, H, F, dtype=jnp.float32, rate=0.1):
  """(weights, q, k, v, eta, beta) as in the layer: keys and queries of length one."""
  rng = np.random.default_rng(0)

  def draw(*shape):
    return rng.normal(size=shape)

  def unit():
    x = draw(B, N, T, H)
    return jnp.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True), dtype)

  weights = tuple(
    jnp.asarray(draw(B, N, *s) / s[1] ** 0.5, jnp.float32) for s in ((F, H), (H, F), (F, H))
  )
  eta = tuple(jnp.asarray(rate * rng.random((B, N, T, 1)), jnp.float32) for _ in range(3))
  v = jnp.asarray(draw(B, N, T, H), dtype)
  return weights, unit(), unit(), v, eta, jnp.asarray(rng.random((B, N, T)), jnp.float32)


@functools.partial(jax.jit, static_argnames=("implementation", "rule", "schedule", "spec"))
def run(args, ct, implementation, rule, schedule, ids=None, state=None, spec=None):
  """((o, the state's weights), their gradients)"""

  def fn(args, state):
    o, state = fast_weight_chunk(
      *args,
      schedule=schedule,
      rule=rule,
      segment_ids_BT=ids,
      state=state,
      implementation=implementation,
      spec=spec,
    )
    return o, state.current

  out, pull = jax.vjp(fn, args, state)
  return out, pull(jax.tree.map(lambda c, x: c.astype(x.dtype), ct, out))


def cotangents(args):
  rng = np.random.default_rng(1)
  weights, q = args[:2]
  return tuple(
    jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), (q, weights))
  )


def definition(args, ct, rule, schedule, **options):
  with jax.enable_x64(True):
    args, ct, options = jax.tree.map(
      lambda x: jnp.asarray(np.asarray(x, np.float64)), (args, ct, options)
    )
    ids = options.pop("ids", None)
    if ids is not None:
      raise ValueError("the definition wants whole documents")
    rule = rule if rule.dtype is None else Rule(muon=rule.muon)
    return jax.tree.map(np.asarray, run(args, ct, "reference", rule, schedule, **options))


def close(got, want, tolerance):
  for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    w = np.asarray(w, np.float64)
    assert np.isfinite(np.asarray(g, np.float64)).all()
    np.testing.assert_allclose(
      np.asarray(g, np.float64), w, atol=tolerance * max(np.abs(w).max(), 1e-3), rtol=0
    )


@pytest.mark.parametrize(
  "size, chunk, rule, momentum",
  [
    ((1, 2, 147, 6, 130), 140, MUON, True),  # two tiles, two parts; the last chunk is a rest
    ((2, 1, 9, 5, 3), 16, GD, False),  # one chunk: nothing is learned
  ],
  ids=["muon", "one chunk"],
)
def test_the_kernels_are_the_definition_with_their_gradients(size, chunk, rule, momentum):
  args = inputs(*size)
  args = args if momentum else args[:5]
  ct = cotangents(args)
  with pallas_support.interpreted():
    got = run(args, ct, "pallas", rule, Causal(chunk))
  want = definition(args, ct, rule, Causal(chunk))
  # Float32: sums of some 150 terms (2^-24 each) in three products in a row. Gradients of Muon are
  # differences of larger terms (docs/specs/lact.md, section 12, trap 9).
  close(got[0], want[0], 2**-15)
  close(got[1], want[1], 1e-3 if rule.muon else 2**-15)


def test_bfloat16_is_as_near_to_the_definition_as_the_xla_form():
  args = inputs(1, 1, 40, 8, 8, jnp.bfloat16)
  ct, rule = cotangents(args), Rule(dtype="bfloat16")
  with pallas_support.interpreted():
    got = run(args, ct, "pallas", rule, Causal(16))
  plain, want = run(args, ct, "xla", rule, Causal(16)), definition(args, ct, rule, Causal(16))
  assert [x.dtype for x in jax.tree.leaves(got)] == [x.dtype for x in jax.tree.leaves(plain)]
  for g, x, w in zip(*map(jax.tree.leaves, (got, plain, want)), strict=True):

    def error(y, w=w):
      return np.linalg.norm(np.asarray(y, np.float64) - w)

    # The same roundings of the same operands, in another order of sums; 2^-8 of the size is one
    # rounding of a result.
    assert error(g) <= 1.5 * error(x) + 2**-8 * np.linalg.norm(w)


def test_a_listed_schedule_continues_a_state():
  args = inputs(1, 1, 24, 8, 8)
  ct, rule = cotangents(args), Rule(detach_norms=True)
  schedule = view_synthesis(10, 24)
  state = initial_state(rule, args[0], momentum=True)
  state = state._replace(current=tuple(0.5 * w for w in state.current))
  with pallas_support.interpreted():
    got = run(args, ct, "pallas", rule, schedule, state=state)
  close(got, definition(args, ct, rule, schedule, state=state), 2**-14)


@pytest.mark.slow
def test_documents_are_those_of_the_xla_form():
  args = inputs(2, 1, 40, 8, 8)
  ids = jnp.asarray([[1] * 22 + [2] * 15 + [0] * 3, [1] * 40], jnp.int32)
  ct = cotangents(args)
  with pallas_support.interpreted():
    got = run(args, ct, "pallas", GD, Causal(16), ids)
  close(got, run(args, ct, "xla", GD, Causal(16), ids), 2**-15)


@pytest.mark.slow
def test_chunks_that_teach_nothing_leave_muon_finite():
  weights, q, k, v, eta, beta = inputs(1, 1, 24, 8, 8, rate=0.0)
  args = (weights, q, k, v, eta, beta)
  with pallas_support.interpreted():
    out = run(args, cotangents(args), "pallas", Rule(muon=coefficients("views", 1)), Causal(8))
  assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(out))


@pytest.mark.slow
def test_two_cores_neither_race_nor_read_what_is_not_there():
  args = inputs(1, 2, 150, 8, 130)[:5]
  ct = cotangents(args)
  with every_detector():
    got = jax.block_until_ready(run(args, ct, "pallas", GD, Causal(140)))
  close(got, definition(args, ct, GD, Causal(140)), 2**-15)


@pytest.mark.parametrize(
  "spec", [P("data", "tensor", None), P("data", "tensor", "sequence")], ids=str
)
@pytest.mark.slow  # eight devices on two cores wait for each other
def test_on_a_mesh_each_device_has_its_rows_heads_and_tokens(spec):
  args = inputs(2, 2, 40, 8, 8)
  ct = cotangents(args)
  mesh = jax.make_mesh((2, 2, 2), ("data", "tensor", "sequence"), axis_types=(AxisType.Auto,) * 3)
  with jax.set_mesh(mesh), pallas_support.interpreted():
    got = run(args, ct, "pallas", GD, Causal(16), spec=spec)
  close(got, definition(args, ct, GD, Causal(16)), 2**-14)


def test_what_is_not_supported_is_refused_with_the_reason_and_not_chosen():
  weights, q, k, v, eta, _ = inputs(2, 1, 4, 3, 3)

  def call(*args, implementation="pallas", **options):
    return fast_weight_chunk(*args, schedule=Causal(2), implementation=implementation, **options)

  with pytest.raises(NotImplementedError, match="for cpu and the kernel needs a TPU"):
    call(weights, q, k, v, eta)
  with pallas_support.interpreted():
    with pytest.raises(NotImplementedError, match="'linear' and the kernels know 'swiglu'"):
      call(weights[:1], q, k, v, eta[:1], rule=Rule(network="linear"))
    with pytest.raises(NotImplementedError, match="one rate per channel"):
      call(weights, q, k, v, tuple(jnp.broadcast_to(e, q.shape) for e in eta))
    with pytest.raises(NotImplementedError, match="float16 and the kernels take"):
      call(weights, q, k, v, eta, rule=Rule(dtype="float16"))
    with jax.set_mesh(jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))):
      with pytest.raises(NotImplementedError, match="mesh of 8 devices it needs spec"):
        call(weights, q, k, v, eta)
      with pytest.raises(NotImplementedError, match="batch 2 is not divisible by the 8 devices"):
        call(weights, q, k, v, eta, spec=P("data", None, None))


TABLE = blocks.tiles


@pytest.mark.parametrize("kind", ["TPU v5 lite", "TPU v5", "TPU v6 lite"])
def test_the_papers_widths_fit_on_chip_and_wider_ones_are_refused(kind):
  room = pallas_support.vmem_bytes(kind)
  assert TABLE(kind, 2048, 384, 384, 2, room).parts == 1  # 760M
  assert TABLE(kind, 4096, 768, 768, 2, room) is not None  # 3B
  assert TABLE(kind, 8192, 1536, 768, 2, room) is not None  # view synthesis
  assert TABLE(kind, 2048, 2**16, 2**16, 2, room) is None
