"""The TPU kernels of ema_upsample, interpreted, against the recurrence in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interpreter import every_detector
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxlm.kernels import pallas_support
from jaxlm.kernels.compact import compact
from jaxlm.kernels.ema_upsample import ema_upsample


def inputs(B, T, C, D, density, dtype=jnp.float32):
  r = np.random.default_rng(0)
  c = compact(jnp.asarray(r.random((B, T)) < density), C)
  p = r.uniform(0.001, 0.999, (B, C))
  p[:, ::7] = 1 - 2.0**-24  # all but forgets
  return dict(
    x=jnp.asarray(r.standard_normal((B, C, D)), dtype),
    p=jnp.asarray(p, jnp.float32),
    initial=jnp.asarray(r.standard_normal((B, D)), jnp.float32),
    reset=jnp.asarray(r.random((B, C)) < 0.1),
    dy=jnp.asarray(r.standard_normal((B, T, D)), jnp.float32),
    dlast=jnp.asarray(r.standard_normal((B, D)), jnp.float32),
  ), c


def definition(a, c):
  """[y, last, dx, dp, dinitial] in float64, chunk by chunk."""
  rank, valid = np.asarray(c.rank_BT), np.asarray(c.valid_BC)
  a = {name: np.asarray(v, np.float64) for name, v in a.items()}
  (B, C, D), T, row = a["x"].shape, rank.shape[1], np.arange(rank.shape[0])
  p = np.where(valid, a["p"], 0)
  reset = (a["reset"] > 0) & valid
  decay = np.where(reset, 0, 1 - p)
  z = np.concatenate([a["initial"][:, None], np.zeros((B, C, D))], 1)
  for j in range(C):
    z[:, j + 1] = p[:, j, None] * a["x"][:, j] + decay[:, j, None] * z[:, j]
  H = np.zeros((B, C + 2, D))  # slot j at j + 1, the initial value at 0
  for t in range(T):
    H[row, rank[:, t] + 1] += a["dy"][:, t]
  H[:, C] += a["dlast"]
  for j in reversed(range(C)):
    H[:, j] += decay[:, j, None] * H[:, j + 1]
  H, dinitial = H[:, 1 : C + 1], H[:, 0]
  dp = (H * a["x"]).sum(-1) - np.where(reset, 0, (H * z[:, :C]).sum(-1))
  return [z[row[:, None], rank + 1], z[:, C], p[..., None] * H, np.where(valid, dp, 0), dinitial]


def by_kernel(a, c, **options):
  @jax.jit
  def run(x, p, initial, reset, dy, dlast):
    out, pull = jax.vjp(
      lambda x, p, initial: ema_upsample(
        x, p, c, reset_BC=reset, initial_BD=initial, implementation="pallas", **options
      ),
      x,
      p,
      initial,
    )
    return [*out, *pull((dy, dlast))]

  return run(**a)


def check(got, want, tolerance):
  for name, g, w in zip(("y", "last", "dx", "dp", "dinitial"), got, want, strict=True):
    error = np.abs(np.asarray(g, np.float64) - w).max()
    assert error <= tolerance * max(1.0, np.abs(w).max()), name


# Seven doublings of float32 sums and products: each rounds by 2^-24 of the largest term.
FLOAT32 = 2e-6


@pytest.mark.parametrize(
  "B, T, C, density",
  [
    (1, 1, 1, 1.0),
    (1, 300, 140, 0.4),  # a second tile of each, and slots that are not filled
    pytest.param(1, 200, 10, 0.0, marks=pytest.mark.slow),  # nothing begins a chunk
    pytest.param(2, 257, 70, 0.6, marks=pytest.mark.slow),  # more chunks than slots
    pytest.param(1, 127, 400, 1.0, marks=pytest.mark.slow),  # tiles of slots that nobody reads
  ],
)
def test_the_kernels_are_the_recurrence_with_its_gradients(B, T, C, density):
  a, c = inputs(B, T, C, 6, density)
  with pallas_support.interpreted():
    check(by_kernel(a, c), definition(a, c), FLOAT32)


@pytest.mark.slow
def test_bfloat16_chunks_are_smoothed_in_float32():
  a, c = inputs(1, 130, 129, 8, 0.7, jnp.bfloat16)
  with pallas_support.interpreted():
    got = by_kernel(a, c)
  assert [x.dtype for x in got[:4]] == [jnp.float32, jnp.float32, jnp.bfloat16, jnp.float32]
  want = definition(a, c)
  check(got[:2] + [want[2]] + got[3:], want, FLOAT32)
  check(want[:2] + [got[2]] + want[3:], want, 2**-8)  # dx is rounded once


@pytest.mark.slow
def test_two_cores_neither_race_nor_read_what_is_not_there():
  a, c = inputs(2, 140, 40, 6, 0.2)
  with every_detector():
    got = by_kernel(a, c)
    jax.block_until_ready(got)
  check(got, definition(a, c), FLOAT32)


@pytest.mark.slow
def test_on_a_mesh_the_rows_of_a_batch_are_shared():
  a, c = inputs(4, 40, 20, 6, 0.5)
  mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
  with jax.set_mesh(mesh), pallas_support.interpreted():
    got = by_kernel(a, c, spec=P("data", None, None))
  check(got, definition(a, c), FLOAT32)


def test_what_is_not_supported_is_refused_with_the_remedy():
  def run(D=8, dtype=jnp.float32, **options):
    c = compact(jnp.ones((1, 4), bool), 4)
    x, p = jnp.zeros((1, 4, D), dtype), jnp.ones((1, 4))
    return ema_upsample(x, p, c, implementation="pallas", **options)

  with pytest.raises(NotImplementedError, match="trace is for cpu and the kernel needs a TPU"):
    run()
  mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
  with pallas_support.interpreted():
    with pytest.raises(NotImplementedError, match="d_model 1100 is not a multiple of 128"):
      run(1100)
    with pytest.raises(NotImplementedError, match="wants float32 or bfloat16"):
      run(dtype=jnp.float16)
    with jax.set_mesh(mesh):
      with pytest.raises(NotImplementedError, match="pass spec"):
        run()
      with pytest.raises(NotImplementedError, match="shares a row among devices"):
        run(spec=P(None, None, "tensor"))
      with pytest.raises(NotImplementedError, match="1 rows do not divide over 4 devices"):
        run(spec=P("data", None, None))
