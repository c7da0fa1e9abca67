"""At every decay and chunk the scan is the recurrence in float64, in both directions: a token that
forgets costs no digit.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.kernels.interval_sums import pair_sums, spanning_sums
from jaxlm.kernels.ssd import ssd

NAMES = ("x_BTNH", "dt_BTN", "a_N", "b_BTKE", "c_BTKE", "initial_state_BNHE")
CHUNKS = (1, 16, 32, 64, 256)
T = 200  # no multiple of most chunks


def inputs(peak, a, length=T, every=4, seed=0):
  """Float64. Every 4th token forgets with log decay a * peak, the others hardly."""
  r = np.random.default_rng(seed)
  dt = r.uniform(0.001, 0.01, (1, length, 2))
  dt[:, ::every] = peak
  return dict(
    x_BTNH=r.standard_normal((1, length, 2, 4)),
    dt_BTN=dt,
    a_N=np.array([a, a / 3]),
    b_BTKE=r.standard_normal((1, length, 1, 3)),
    c_BTKE=r.standard_normal((1, length, 1, 3)),
    initial_state_BNHE=r.standard_normal((1, 2, 4, 3)),
  )


def recurrence(x, dt, a, b, c, s, reset, gy, gs):
  """y, state and the gradients of <y, gy> + <state, gs>, by hand, float64. One row, one group."""
  length, states = x.shape[1], [s[0]]
  decay = np.exp(dt[0] * a)  # (T, N)
  ys = []
  for t in range(length):
    old = np.zeros_like(states[-1]) if reset[t] else states[-1]
    states.append(
      decay[t][:, None, None] * old + dt[0, t][:, None, None] * x[0, t][:, :, None] * b[0, t, 0]
    )
    ys.append(states[-1] @ c[0, t, 0])
  dx, ddt, da, db, dc = (np.zeros_like(v) for v in (x, dt, a, b, c))
  ds = gs[0].copy()
  for t in reversed(range(length)):
    ds = ds + gy[0, t][:, :, None] * c[0, t, 0]
    dc[0, t, 0] = np.einsum("nh,nhe->e", gy[0, t], states[t + 1])
    old = np.zeros_like(states[t]) if reset[t] else states[t]
    dlog = np.einsum("nhe,nhe->n", ds, old) * decay[t]
    da += dlog * dt[0, t]
    ddt[0, t] = dlog * a + np.einsum("nhe,nh,e->n", ds, x[0, t], b[0, t, 0])
    dx[0, t] = dt[0, t][:, None] * (ds @ b[0, t, 0])
    db[0, t, 0] = np.einsum("nhe,nh,n->e", ds, x[0, t], dt[0, t])
    ds = np.zeros_like(ds) if reset[t] else decay[t][:, None, None] * ds
  return (np.array(ys)[None], states[-1][None]), (dx, ddt, da, db, dc, ds[None])


def run(arguments, reset, gy, gs, **options):
  f32 = {k: jnp.asarray(v, jnp.float32) for k, v in arguments.items()}

  def loss(f32):
    y, state = ssd(**f32, reset_BT=None if reset is None else jnp.asarray(reset)[None], **options)
    return jnp.sum(y * gy) + jnp.sum(state * gs), (y, state)

  (_, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(f32)
  return out, tuple(grads[name] for name in NAMES)


def relative_error(got, want):
  """Largest error of a token (the axis of length T, else the whole) over its largest value, or over
  1e-3 of the tensor's.
  """
  got, want = np.asarray(got, np.float64), np.asarray(want)
  assert np.isfinite(got).all()
  if want.ndim > 1 and want.shape[1] == T:
    got, want = got.reshape(T, -1), want.reshape(T, -1)
  else:
    got, want = got.reshape(1, -1), want.reshape(1, -1)
  scale = np.abs(want).max(-1).clip(max(1e-3 * np.abs(want).max(), 1e-30))
  return (np.abs(got - want).max(-1) / scale).max()


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize(
  "peak, a", [(0.01, -1.0), (1, -16.0), (20, -16.0), (600, -16.0), (600, -1e4), (600, -1e35)]
)
def test_outputs_states_and_gradients_are_those_of_the_float64_recurrence(peak, a, chunk):
  arguments = inputs(peak, a)
  rounded = {k: np.asarray(v, np.float32).astype(np.float64) for k, v in arguments.items()}
  r = np.random.default_rng(1)
  gy, gs = r.standard_normal((1, T, 2, 4)), r.standard_normal((1, 2, 4, 3))
  reset = r.random(T) < 0.02
  values = [rounded[name] for name in NAMES]
  (want_y, want_s), want = recurrence(*values, reset, gy, gs)
  (y, s), got = run(rounded, reset, gy, gs, chunk=chunk)
  # 200 float32 additions; the inputs are exact.
  assert relative_error(y, want_y) < 2e-5 and relative_error(s, want_s) < 2e-5
  for name, g, w in zip(NAMES, got, want):
    # Of x, dt, b, c and a each token's own scale; a's and dt's are sums over E, H of terms of both
    # signs.
    assert relative_error(g, w) < 2e-5, name


@pytest.mark.parametrize("chunk", [4, 64])
@pytest.mark.parametrize("a", [-1e38, -np.inf])
def test_a_rate_without_bound_forgets_all_and_stays_finite(a, chunk):
  arguments = inputs(600.0, -1.0, length=40)
  arguments["a_N"] = np.array([a, a])
  arguments["dt_BTN"][:, 10:20] = (
    0.0  # tokens that are not there: they keep the state, whatever the rate
  )
  (y, s), grads = run(arguments, None, 1.0, 1.0, chunk=chunk)
  own = np.einsum(
    "bte,bte->bt", arguments["b_BTKE"][:, :, 0], arguments["c_BTKE"][:, :, 0]
  )  # every token sees itself alone
  want = own[..., None, None] * arguments["dt_BTN"][..., None] * arguments["x_BTNH"]
  last = (
    arguments["dt_BTN"][0, 9, :, None, None]
    * arguments["x_BTNH"][0, 9][:, :, None]
    * arguments["b_BTKE"][0, 9, 0]
  )
  want[0, 10:20] = np.einsum("nhe,te->tnh", last, arguments["c_BTKE"][0, 10:20, 0])
  np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
  (y, s), _ = run(arguments, None, 1.0, 1.0, implementation="reference")
  np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("size", [1, 7, 32, 64, 96, 256])
def test_interval_sums_are_those_of_the_terms_and_each_others_transpose(size):
  r = np.random.default_rng(size)
  v, w = r.uniform(-1, 0, (2, size)), r.uniform(0, 1, (2, size, size))
  v[0, size // 2] = -500.0  # one term that would drown the others in a running sum
  pairs = np.zeros((2, size, size))
  for q in range(size):
    for s in range(q):
      pairs[:, q, s] = v[:, s + 1 : q + 1].sum(-1)
  spans = np.stack([w[:, t:, :t].sum((-1, -2)) for t in range(size)], -1)
  for transposed, turn in ((False, lambda x: x), (True, lambda x: np.swapaxes(x, 1, 2))):
    np.testing.assert_allclose(
      pair_sums(jnp.asarray(v, jnp.float32), transposed=transposed), turn(pairs), rtol=1e-5
    )
    np.testing.assert_allclose(
      spanning_sums(jnp.asarray(turn(w), jnp.float32), transposed=transposed), spans, rtol=1e-5
    )


def test_the_gradient_of_a_token_that_forgets_is_its_own_and_not_its_neighbours_noise():
  """log decay -9,600 at token 100: nothing spans it, so its gradient is exactly 0 whatever
  surrounds it.
  """
  arguments = inputs(0.01, -16.0)
  arguments["dt_BTN"][:, 100] = 600.0
  f32 = {k: jnp.asarray(v, jnp.float32) for k, v in arguments.items()}
  own = {
    "x_BTNH": jnp.zeros_like(f32["x_BTNH"][:, 100])
  }  # so that only the decay of token 100 sees dt
  f32["x_BTNH"] = f32["x_BTNH"].at[:, 100].set(own["x_BTNH"])
  for chunk in CHUNKS:
    grad = jax.grad(lambda dt: jnp.sum(ssd(**(f32 | {"dt_BTN": dt}), chunk=chunk)[0] ** 2))(
      f32["dt_BTN"]
    )
    np.testing.assert_array_equal(grad[:, 100], 0.0)
