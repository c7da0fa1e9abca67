"""The TPU kernels of ssd, interpreted: outputs, states and gradients against the recurrence in
float64.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interpreter import every_detector
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from pallas_recurrence import assert_close, compiled_once, in_float64, with_gradients

from jaxlm.kernels import pallas_support
from jaxlm.kernels.ssd import blocks, pallas_tpu, ssd

B, N, H, K, E, Q = 2, 4, 16, 1, 8, 4
__all__ = ["compiled_once"]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
  monkeypatch.setitem(blocks.BLOCKS, "", blocks.Blocks(chunk=Q, channels=N * H))


def definition(x_BTNH, dt_BTN, a_N, b_BTKE, c_BTKE, d_N, initial_state_BNHE, reset_BT):
  def step(s, token):
    x, dt, b, c, reset = token
    s = jnp.where(reset[:, None, None, None], 0, s) * jnp.exp(dt * a_N[None])[..., None, None]
    s = s + (dt[..., None] * x)[..., None] * jnp.repeat(b, x.shape[1] // b.shape[1], 1)[:, :, None]
    return s, jnp.einsum("bnhe,bne->bnh", s, jnp.repeat(c, x.shape[1] // c.shape[1], 1)) + d_N[
      None, :, None
    ] * x

  tokens = jax.tree.map(lambda v: jnp.moveaxis(v, 1, 0), (x_BTNH, dt_BTN, b_BTKE, c_BTKE, reset_BT))
  state, y = jax.lax.scan(step, initial_state_BNHE, tokens)
  return jnp.moveaxis(y, 0, 1), state


def inputs(T, dtype=jnp.float32, seed=0, heads=N, groups=K, state_dim=E):
  r = np.random.default_rng(seed)

  def n(*s):
    return r.standard_normal(s).astype(np.float32)

  return dict(
    x_BTNH=n(B, T, heads, H).astype(dtype),
    dt_BTN=np.log1p(np.exp(n(B, T, heads))),
    a_N=-np.exp(n(heads)),
    b_BTKE=n(B, T, groups, state_dim).astype(dtype),
    c_BTKE=n(B, T, groups, state_dim).astype(dtype),
    d_N=n(heads),
    initial_state_BNHE=n(B, heads, H, state_dim),
  )


def cotangents(arguments, seed=1):
  r = np.random.default_rng(seed)
  return tuple(
    r.standard_normal(arguments[k].shape).astype(np.float32)
    for k in ("x_BTNH", "initial_state_BNHE")
  )


def both(arguments, reset=None, **options):
  """((outputs, gradients) of the kernels, the same in float64)."""
  g = cotangents(arguments)
  got = with_gradients(
    functools.partial(
      ssd,
      reset_BT=None if reset is None else jnp.asarray(reset),
      implementation="pallas",
      **options,
    ),
    arguments,
    g,
  )
  reset = np.zeros(arguments["x_BTNH"].shape[:2], bool) if reset is None else reset
  return got, in_float64(functools.partial(definition, reset_BT=reset), arguments, g)


# Float32: some 10 products of size 1 are added per output, their decays are sums of 4 logarithms,
# and each is rounded to 2^-24; measured 4e-7.
FLOAT32 = 5e-6


@pytest.mark.parametrize(
  "T", [Q + 1, *(pytest.param(T, marks=pytest.mark.slow) for T in (1, Q - 1, 3 * Q))]
)
@pytest.mark.usefixtures("compiled_once")
def test_the_kernels_are_the_recurrence_with_its_gradients(T):
  reset = np.random.default_rng(2).random((B, T)) < 0.3  # some documents have one token
  reset[1] = False
  assert_close(*both(inputs(T), reset), FLOAT32)


@pytest.mark.parametrize("peak,a", [(0.01, -1.0), (20.0, -16.0), (600.0, -1e4), (600.0, -np.inf)])
@pytest.mark.usefixtures("compiled_once")
def test_a_token_that_forgets_all_costs_no_digit(peak, a):
  arguments = inputs(2 * Q)
  arguments["dt_BTN"] = np.random.default_rng(3).uniform(0.001, 0.01, (B, 2 * Q, N)).astype("f")
  arguments["dt_BTN"][:, ::4] = peak
  arguments["a_N"] = np.asarray([a, a / 3, a, a / 7], np.float32)
  if np.isfinite(a):
    got, want = both(arguments)
  else:  # 0 x inf has no derivative in the definition: a rate that forgets as surely
    got, _ = both(arguments)
    _, want = both(arguments | {"a_N": np.full(N, -1e6, np.float32)})
  if not np.isfinite(a):
    want[1]["a_N"] = got[1]["a_N"]
    want[1]["dt_BTN"] = got[1]["dt_BTN"]
  # Each token apart: an error of a large neighbour would be far above a small one's.
  for name in ("x_BTNH", "dt_BTN", "b_BTKE", "c_BTKE"):
    g, w = (
      np.asarray(v[1][name], np.float64).swapaxes(0, 1).reshape(2 * Q, -1) for v in (got, want)
    )
    scale = np.abs(w).max(1).clip(1e-3 * np.abs(w).max())
    assert (np.abs(g - w).max(1) < 2e-5 * scale).all(), name
  assert_close(got, want, 2e-5)


@pytest.mark.usefixtures("compiled_once")
def test_nothing_before_a_document_changes_a_bit_of_it():
  arguments, reset = inputs(2 * Q), np.zeros((B, 2 * Q), bool)
  reset[:, 5] = True
  other = {
    k: np.concatenate([inputs(2 * Q, seed=9)[k][:, :5], v[:, 5:]], 1)
    if v.ndim > 2 and "BT" in k
    else v
    for k, v in arguments.items()
  }
  (y, s), grads = both(arguments, reset)[0]
  (y2, s2), grads2 = both(other, reset)[0]
  np.testing.assert_array_equal(y[:, 5:], y2[:, 5:])
  np.testing.assert_array_equal(s, s2)
  for name in ("x_BTNH", "dt_BTN", "b_BTKE", "c_BTKE"):
    np.testing.assert_array_equal(grads[name][:, 5:], grads2[name][:, 5:], err_msg=name)


@pytest.mark.usefixtures("compiled_once")
def test_bfloat16_products_are_near_the_float64_recurrence():
  arguments = inputs(Q + 1, jnp.bfloat16)
  (out, grads), want = both(arguments)
  assert out[0].dtype == grads["x_BTNH"].dtype == jnp.bfloat16 and out[1].dtype == jnp.float32
  # Scaled rows, scores and states are rounded to 2^-9 before a product, results once more; some tens
  # of terms of both signs: their largest is up to 4 of these units off.
  assert_close((out, grads), want, 2e-2)


@pytest.mark.usefixtures("compiled_once")
def test_bfloat16_gradients_of_fast_decays_are_not_rounding_noise():
  arguments = inputs(2 * Q, jnp.bfloat16)
  arguments |= dict(dt_BTN=np.full((B, 2 * Q, N), 0.3, "f"), a_N=np.full(N, -16.0, "f"))
  (_, got), (_, want) = both(arguments)
  error = np.linalg.norm(got["a_N"] - want["a_N"]) / np.linalg.norm(want["a_N"])
  assert error < 2e-2, error


@pytest.mark.slow
def test_two_groups_on_a_mesh_that_shares_rows_and_heads():
  arguments = inputs(Q + 1, groups=2, state_dim=128)
  mesh = jax.make_mesh((2, 2, 2), ("data", "tensor", "idle"), axis_types=(AxisType.Auto,) * 3)
  fn = functools.partial(ssd, implementation="pallas", spec=P("data", None, "tensor", None))
  with jax.set_mesh(mesh), pallas_support.interpreted():
    got = jax.jit(lambda a, g: with_gradients(fn, a, g))(arguments, cotangents(arguments))
  want = in_float64(
    functools.partial(definition, reset_BT=np.zeros((B, Q + 1), bool)),
    arguments,
    cotangents(arguments),
  )
  assert_close(got, want, FLOAT32)


@pytest.mark.slow
def test_two_cores_neither_race_nor_read_what_is_not_there(monkeypatch):
  monkeypatch.setitem(blocks.BLOCKS, "", blocks.Blocks(chunk=2, channels=H))
  monkeypatch.setattr("jaxlm.kernels.chunked_recurrence.LANES", H)  # two blocks of one head
  with every_detector():
    got, want = both(inputs(3, heads=2))
    jax.block_until_ready(got)
  assert_close(got, want, FLOAT32)


def test_what_is_not_supported_is_refused_with_the_reason():
  arguments = inputs(4)

  def run(change=None, **options):
    return ssd(**{**arguments, **(change or {})}, implementation="pallas", **options)

  with pytest.raises(NotImplementedError, match="trace is for cpu and the kernel needs a TPU"):
    run()
  with pallas_support.interpreted():
    with pytest.raises(NotImplementedError, match="head_dim 6 is not a multiple of 16"):
      run({"x_BTNH": arguments["x_BTNH"][..., :6]})
    with pytest.raises(NotImplementedError, match="needs [0-9]* MiB on chip, cpu gives 14"):
      run({k: jnp.zeros((2, 4, 1, 2**15)) for k in ("b_BTKE", "c_BTKE")})
    with pytest.raises(NotImplementedError, match="three float32 or three bfloat16"):
      run({"x_BTNH": arguments["x_BTNH"].astype(jnp.bfloat16)})
    with pytest.raises(NotImplementedError, match="state size 8 of 2 groups"):
      run(inputs(4, groups=2))
    with jax.set_mesh(jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))):
      with pytest.raises(NotImplementedError, match="mesh of 8 devices it needs spec"):
        run()
      with pytest.raises(NotImplementedError, match="batch 2 cannot be split over the 8 devices"):
        run(spec=P("data"))
      with pytest.raises(NotImplementedError, match="shards time over data"):
        run(spec=P(None, "data"))
    sizes = (jnp.asarray(arguments[k]) for k in ("x_BTNH", "b_BTKE", "c_BTKE"))
    wrong = pallas_tpu.supports(*sizes, "TPU v5", blocks.Blocks(chunk=24, channels=512))
    assert wrong == "chunk 24 is not a power of two of at least 128; use chunk 128"
