"""The TPU kernels of route, interpreted, against the cosine in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interpreter import every_detector
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxlm.kernels import pallas_support
from jaxlm.kernels.route import blocks, route

NAMES = ("p", "dx", "dw_q", "dw_k", "dprevious")


def inputs(B, T, D=128, dtype=jnp.float32):
  r = np.random.default_rng(0)
  near = [np.eye(D) + 0.2 * r.standard_normal((D, D)) / D**0.5 for _ in range(2)]
  first = r.random((B, T)) < 0.1
  x = r.standard_normal((B, T, D))
  x[:, T // 2 :: 7] = 0  # rows of zeros: cos 0, no gradient
  arrays = (x, *near, r.standard_normal((B, D)))
  return [jnp.asarray(a, dtype) for a in arrays], jnp.asarray(first), r.standard_normal((B, T))


def definition(arrays, first, weight):
  """[p, dx, dw_q, dw_k, dprevious] of sum(weight * p) in float64."""
  x, w_q, w_k, previous = (np.asarray(a, np.float64) for a in arrays)
  before = np.concatenate([previous[:, None], x[:, :-1]], 1)
  q, k = before @ w_q, x @ w_k
  nq, nk = (np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-12) for v in (q, k))
  cos = (q * k).sum(-1, keepdims=True) / nq / nk
  g = -0.5 * np.where(first, 0, weight)[..., None]
  dq = g * (k / nq / nk - cos * q / nq**2)
  dk = g * (q / nq / nk - cos * k / nk**2)
  dx = dk @ w_k.T
  dbefore = dq @ w_q.T
  dx[:, :-1] += dbefore[:, 1:]
  dw = [np.einsum("btd,bte->de", a, d) for a, d in ((before, dq), (x, dk))]
  return [np.where(first, 1, (1 - cos[..., 0]) / 2), dx, *dw, dbefore[:, 0]]


def by_kernel(arrays, first, weight, **options):
  @jax.jit
  def run(arrays, first, weight):
    def loss(arrays):
      x, w_q, w_k, previous = arrays
      out = route(
        x,
        w_q,
        w_k,
        first_BT=first,
        valid_BT=jnp.ones_like(first),
        previous_BD=previous,
        implementation="pallas",
        **options,
      )
      return jnp.sum(weight * out.p_BT), out.p_BT

    grads, p = jax.grad(loss, has_aux=True)(arrays)
    return [p, *grads]

  return run(arrays, first, jnp.asarray(weight, jnp.float32))


def check(got, want, tolerance):
  for name, g, w in zip(NAMES, got, want, strict=True):
    error = np.abs(np.asarray(g, np.float64) - w).max()
    assert error <= tolerance * max(1.0, np.abs(w).max()), (name, error)


# Sums of 128 products in float32 of terms below 10, divided by norms near 10: 1e-6 of the largest.
FLOAT32 = 4e-6


@pytest.mark.parametrize(
  "B, T, D",
  [
    (1, 1, 128),
    (2, 300, 128),  # rows that fill a tile only in part
    pytest.param(1, 512, 128, marks=pytest.mark.slow),
    pytest.param(1, 513, 128, marks=pytest.mark.slow),
    pytest.param(2, 140, 1024, marks=pytest.mark.slow),  # two tiles of columns
  ],
)
def test_the_kernels_are_the_cosine_with_its_gradients(B, T, D):
  case = inputs(B, T, D)
  with pallas_support.interpreted():
    check(by_kernel(*case), definition(*case), FLOAT32)


def test_tiles_of_rows_and_columns_meet(monkeypatch):
  monkeypatch.setattr(blocks, "ROWS", 128)
  monkeypatch.setattr(blocks, "COLUMNS", 128)
  case = inputs(1, 257, 256)
  with pallas_support.interpreted():
    check(by_kernel(*case), definition(*case), FLOAT32)


@pytest.mark.slow
def test_bfloat16_is_multiplied_as_it_is_and_summed_in_float32():
  case = inputs(1, 130, 128, jnp.bfloat16)
  with pallas_support.interpreted():
    got = by_kernel(*case)
  assert [x.dtype for x in got] == [jnp.float32] + [jnp.bfloat16] * 4
  want = definition(*case)
  check(got[:1] + want[1:], want, FLOAT32)
  check(want[:1] + got[1:], want, 2**-7)  # dq and dk are rounded, then what they give


@pytest.mark.slow
def test_two_cores_neither_race_nor_read_what_is_not_there(monkeypatch):
  monkeypatch.setattr(blocks, "ROWS", 128)
  case = inputs(2, 140)
  with every_detector():
    got = by_kernel(*case)
    jax.block_until_ready(got)
  check(got, definition(*case), FLOAT32)


@pytest.mark.slow
def test_on_a_mesh_the_rows_of_a_batch_are_shared():
  case = inputs(4, 40)
  mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
  with jax.set_mesh(mesh), pallas_support.interpreted():
    got = by_kernel(*case, spec=P("data", None, None))
  check(got, definition(*case), FLOAT32)


def test_what_is_not_supported_is_refused_with_the_remedy():
  def run(D=128, dtype=jnp.float32, **options):
    x, w = jnp.zeros((1, 4, D), dtype), jnp.zeros((D, D), dtype)
    mask = jnp.ones((1, 4), bool)
    return route(x, w, w, first_BT=mask, valid_BT=mask, implementation="pallas", **options)

  with pytest.raises(NotImplementedError, match="trace is for cpu and the kernel needs a TPU"):
    run()
  mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
  with pallas_support.interpreted():
    with pytest.raises(NotImplementedError, match="d_model 100 is not a multiple of 128"):
      run(100)
    with pytest.raises(NotImplementedError, match="wants float32 or bfloat16"):
      run(dtype=jnp.float16)
    with jax.set_mesh(mesh):
      with pytest.raises(NotImplementedError, match="pass spec"):
        run()
      with pytest.raises(NotImplementedError, match="shares a row among devices"):
        run(spec=P(None, None, "tensor"))
      with pytest.raises(NotImplementedError, match="1 rows do not divide over 4 devices"):
        run(spec=P("data", None, None))
