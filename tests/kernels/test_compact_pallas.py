"""The TPU kernels that move rows between positions and slots, interpreted: exact copies, float32 sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interpreter import every_detector
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxlm.kernels import pallas_support
from jaxlm.kernels.compact import compact, gather, paths, scatter, upsample


def moved(c, x, y, implementation, **options):
  """gather, scatter and upsample with their gradients."""

  @jax.jit
  def run(x, y):
    out = []
    for fn, rows, gradient in ((gather, x, y), (scatter, y, x), (upsample, y, x)):
      moved, pull = jax.vjp(lambda a: fn(a, c, implementation=implementation, **options), rows)  # noqa: B023
      out += [moved, *pull(gradient)]
    return out

  return run(x, y)


def inputs(B, T, C, D, density, dtype=jnp.float32):
  r = np.random.default_rng(0)
  c = compact(jnp.asarray(r.random((B, T)) < density), C)
  return c, *(jnp.asarray(r.standard_normal((B, n, D)), dtype) for n in (T, C))


def check(got, want):
  *copies, sums = got
  for g, w in zip(copies, want[:-1], strict=True):
    np.testing.assert_array_equal(g, w)
  # Up to some tens of float32 terms of unit size, in another order; or rounded once to bfloat16.
  rounding = 2**-8 if sums.dtype == jnp.bfloat16 else 1e-6
  np.testing.assert_allclose(
    np.asarray(sums, np.float32), np.asarray(want[-1], np.float32), atol=rounding * 8
  )


@pytest.mark.parametrize(
  "B, T, C, density, dtype",
  [
    (1, 140, 130, 0.9, jnp.float32),
    pytest.param(2, 300, 140, 0.4, jnp.float32, marks=pytest.mark.slow),
    pytest.param(1, 1, 1, 1.0, jnp.float32, marks=pytest.mark.slow),
    pytest.param(2, 129, 300, 0.9, jnp.bfloat16, marks=pytest.mark.slow),
    pytest.param(1, 127, 10, 0.0, jnp.float32, marks=pytest.mark.slow),
    pytest.param(2, 257, 70, 0.6, jnp.bfloat16, marks=pytest.mark.slow),
  ],
)
def test_rows_arrive_as_by_xla_with_the_same_gradients(B, T, C, density, dtype):
  c, x, y = inputs(B, T, C, 6, density, dtype)
  with pallas_support.interpreted():
    got = moved(c, x, y, "pallas")
  check(got, moved(c, x, y, "xla"))


@pytest.mark.slow
def test_two_cores_neither_race_nor_read_what_is_not_there():
  c, x, y = inputs(2, 140, 130, 6, 0.5, jnp.bfloat16)
  with every_detector():
    got = moved(c, x, y, "pallas")
    jax.block_until_ready(got)
  check(got, moved(c, x, y, "xla"))


def test_the_path_meets_every_pair_of_tiles_that_exchanges():
  r = np.random.default_rng(0)
  for density in (0.0, 0.2, 0.7, 1.0):
    keep = r.random((3, 64)) < density
    keep[0, :40] = False
    rank = np.minimum(np.cumsum(keep, 1) - 1, 15).astype(np.int32)
    position, slot = paths.path(rank, 8, 4, 4, np)
    assert position.shape == (3, paths.num_steps(8, 4))
    for b in range(3):
      steps = list(zip(position[b].tolist(), slot[b].tolist()))
      assert steps[0] == (0, 0) and steps[-1] == (7, 3)
      assert all((o2 - o1) + (i2 - i1) == 1 for (o1, i1), (o2, i2) in zip(steps, steps[1:]))
      met = {(t // 8, j // 4) for t, j in enumerate(rank[b]) if j >= 0}
      assert met <= set(steps)


@pytest.mark.slow
def test_on_a_mesh_the_rows_of_a_batch_are_shared():
  c, x, y = inputs(4, 20, 10, 6, 0.5)
  want = moved(c, x, y, "xla")
  mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
  with jax.set_mesh(mesh), pallas_support.interpreted():
    check(moved(c, x, y, "pallas", spec=P("data", None, None)), want)


def test_what_is_not_supported_is_refused_with_the_remedy():
  keep = jnp.ones((1, 4), bool)
  c = compact(keep, 4)

  def refused(match, x, fn=gather, **options):
    with pytest.raises(NotImplementedError, match=match):
      fn(x, c, implementation="pallas", **options)

  refused("trace is for cpu and the kernel needs a TPU", jnp.zeros((1, 4, 8)))
  with pytest.raises(NotImplementedError, match="makes no indices"):
    compact(keep, 4, implementation="pallas")
  with pallas_support.interpreted():
    refused(r"rows are int32 \(1, 4\)", jnp.zeros((1, 4), jnp.int32))
    refused("d_model 1100 is not a multiple of 128", jnp.zeros((1, 4, 1100)), scatter)
    with jax.set_mesh(jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))):
      refused("pass spec", jnp.zeros((1, 4, 8)), upsample)
