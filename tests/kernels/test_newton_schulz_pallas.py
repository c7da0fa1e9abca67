"""The TPU kernels of newton_schulz, interpreted: against the definition in float64, and what they
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
from jaxlm.kernels.newton_schulz import blocks, coefficients, newton_schulz


def definition(g, ct, steps):
  """(X, the gradient of G) in float64."""
  with jax.enable_x64(True):
    g, ct = (jnp.asarray(np.asarray(x, np.float64)) for x in (g, ct))
    out, pull = jax.vjp(jax.jit(lambda g: newton_schulz(g, steps, implementation="reference")), g)
    return np.asarray(out), np.asarray(pull(ct)[0])


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def by_kernel(g, ct, steps, dtype=None, spec=None):
  def fn(g):
    return newton_schulz(g, steps, dtype=dtype, implementation="pallas", spec=spec)

  out, pull = jax.vjp(fn, g)
  return out, pull(ct)[0]


@functools.partial(jax.jit, static_argnums=2)
def by_xla(g, ct, steps):
  out, pull = jax.vjp(lambda g: newton_schulz(g, steps, dtype="bfloat16", implementation="xla"), g)
  return out, pull(ct)[0]


def matrices(*shape):
  rng = np.random.default_rng(0)
  return [jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(2)]


def close(got, want, tolerance, size=0.0):
  """size: of the terms whose difference `want` is."""
  np.testing.assert_allclose(
    np.asarray(got, np.float64), want, atol=tolerance * max(np.abs(want).max(), size), rtol=0
  )


@pytest.mark.parametrize(
  "shape, kind, steps",
  [
    ((2, 1, 130, 257), "language", 2),  # two blocks of a symmetric product, wide, odd
    ((1, 7, 3), "views", 1),  # tall
    ((2, 3, 3), "views", 0),
  ],
  ids=str,
)
def test_the_kernels_are_the_definition_with_their_gradient(shape, kind, steps):
  g, ct = matrices(*shape)
  triples = coefficients(kind, steps)
  with pallas_support.interpreted():
    out, gbar = by_kernel(g, ct, triples)
  want, want_gbar = definition(g, ct, triples)
  # Float32: a step sums M or N terms (2^-24 each, some 2^-19 of the largest) and may enlarge an
  # error by its slope, at most 4; two steps in a row do not reach 2^-15. The gradient passes each
  # step once more, and its part along G cancels.
  close(out, want, 2**-15)
  close(gbar, want_gbar, 2**-13, size=np.abs(ct).max() / np.linalg.norm(g[0]))


def test_bfloat16_is_as_near_to_the_definition_as_the_xla_form_and_keeps_the_callers_dtype():
  g, ct = matrices(2, 24, 40)
  steps = coefficients("language", 1)
  with pallas_support.interpreted():
    got = by_kernel(g, ct, steps, "bfloat16")
  plain, want = by_xla(g, ct, steps), definition(g, ct, steps)

  def error(x, want):
    return np.linalg.norm(np.asarray(x, np.float64) - want) / np.linalg.norm(want)

  assert got[0].dtype == got[1].dtype == jnp.float32
  for x, y, exact in zip(got, plain, want):
    # A step rounds some five times to 2^-9 of the size; the kernel rounds less often than the XLA
    # form. Half as much again is left to chance.
    assert 0 < error(x, exact) < 1.5 * error(y, exact) < 0.1


def test_zero_matrices_stay_zero_with_a_finite_gradient():
  g, ct = matrices(2, 5, 6)
  with pallas_support.interpreted():
    out, gbar = by_kernel(g.at[0].set(0.0), ct, coefficients("language", 1))
  assert not out[0].any() and out[1].any()
  assert bool(jnp.isfinite(gbar).all())


def test_two_cores_neither_race_nor_read_what_is_not_there():
  g, ct = matrices(3, 130, 140)
  steps = coefficients("language", 1)
  with every_detector():
    out, gbar = jax.block_until_ready(by_kernel(g, ct, steps))
  want, want_gbar = definition(g, ct, steps)
  close(out, want, 2**-15)
  close(gbar, want_gbar, 2**-13)


def test_on_a_mesh_each_device_has_its_matrices():
  g, ct = matrices(4, 2, 8, 8)
  steps = coefficients("views", 1)
  mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
  with jax.set_mesh(mesh), pallas_support.interpreted():
    out, gbar = by_kernel(g, ct, steps, None, P("fsdp", "tensor"))
    assert out.sharding.spec == P("fsdp", "tensor", None, None) or len(out.sharding.device_set) == 8
  want, want_gbar = definition(g, ct, steps)
  close(out, want, 2**-15)
  close(gbar, want_gbar, 2**-13)


def test_what_is_not_supported_is_refused_with_the_reason_and_not_chosen():
  g, _ = matrices(2, 6, 6)

  def run(g, **options):
    return newton_schulz(g, coefficients("views", 1), implementation="pallas", **options)

  with pytest.raises(NotImplementedError, match="for cpu and the kernel needs a TPU; use impl"):
    run(g)
  with pallas_support.interpreted():
    with pytest.raises(NotImplementedError, match="float16; the kernel takes float32 or bfloat16"):
      run(g, dtype="float16")
    with pytest.raises(NotImplementedError, match="8192 x 8192 needs .* MiB on chip"):
      jax.eval_shape(run, jax.ShapeDtypeStruct((8192, 8192), jnp.float32))
    with jax.set_mesh(jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))):
      with pytest.raises(NotImplementedError, match="mesh of 8 devices it needs spec"):
        run(g)
      with pytest.raises(
        NotImplementedError, match="2 matrices are not divisible by the 8 devices"
      ):
        run(g, spec=P("data"))


@pytest.mark.parametrize("kind", ["TPU v5 lite", "TPU v5", "TPU v6 lite"])
def test_the_papers_matrices_fit_on_chip(kind):
  room = pallas_support.vmem_bytes(kind)
  assert blocks.buffers(384, 384, 2, 5, room) == 2  # 760M
  assert blocks.buffers(768, 768, 2, 5, room) == 2  # 3B
  assert blocks.buffers(768, 1536, 2, 5, room) is not None  # view synthesis
