"""The Mosaic GPU kernel of ssd, interpreted on a CPU, and its XLA backward, against the definition.

The interpreter needs jax 0.12 and takes half a minute.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gpu
from jaxlm.kernels import mosaic_support
from jaxlm.kernels.choices import recorded, summary
from jaxlm.kernels.ssd import ssd

# x, b, c, the state that is read, and the decayed scores are rounded to 8 bits, as in the XLA form,
# which is as far from the definition.
BFLOAT16 = 1e-2


def inputs(B, T, N, K, E, seed=0, decay=1.0):
  draw = np.random.default_rng(seed).standard_normal
  tokens = [draw(s) for s in ((B, T, N, 64), (B, T, K, E), (B, T, K, E))]
  x, b, c = (jnp.asarray(v * s, jnp.bfloat16) for v, s in zip(tokens, (1, 0.1, 0.1)))
  dt = jax.nn.softplus(jnp.asarray(draw((B, T, N)), jnp.float32))
  a = -decay * jnp.exp(jnp.asarray(draw(N), jnp.float32))
  return x, dt, a, b, c, jnp.asarray(draw(N), jnp.float32), jnp.asarray(draw((B, N, 64, E)), "f4")


def compare(arguments, reset_BT):
  x, state = arguments[0], arguments[-1]
  cotangents = x[::-1], state / 2

  def run(implementation, arguments, cotangents):
    def fn(x, dt, a, b, c, d, state):
      return ssd(
        x,
        dt,
        a,
        b,
        c,
        d_N=d,
        initial_state_BNHE=state,
        reset_BT=reset_BT,
        implementation=implementation,
        chunk=128,
      )

    out, pull = jax.vjp(fn, *arguments)
    return out, pull(cotangents)

  def wide(tree):
    return jax.tree.map(lambda v: v.astype(jnp.float32), tree)

  with gpu.interpreted():
    got = run("pallas_gpu", arguments, cotangents)
  want = run("reference", wide(arguments), wide(cotangents))
  for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    g, w = np.asarray(g, np.float64), np.asarray(w, np.float64)
    np.testing.assert_allclose(g, w, rtol=0, atol=BFLOAT16 * max(1.0, np.abs(w).max()))


@pytest.mark.slow
def test_outputs_states_and_gradients_with_resets():
  reset = jnp.asarray(np.random.default_rng(1).random((1, 150)) < 0.03)
  compare(inputs(1, 150, 2, 1, 128), reset)


@pytest.mark.slow
def test_two_groups_and_decays_that_forget_all():
  compare(inputs(1, 65, 4, 2, 64, decay=50.0), None)


@pytest.mark.slow
def test_one_token():
  compare(inputs(2, 1, 2, 1, 64), None)


@pytest.mark.parametrize(
  "change, said",
  [
    (dict(x=(1, 8, 2, 32)), "head_dim 32 and state size 128 are not 64 and one of 64, 128"),
    (dict(x=(1, 8, 3, 64)), "3 heads in 1 groups on 1 devices are not pairs"),
    (dict(dtype=jnp.float32), "wants one of bfloat16, float16 for all"),
    (dict(kind="NVIDIA A100-SXM4-80GB"), "the kernel is for Hopper GPUs"),
  ],
)
def test_what_is_not_covered_is_refused_with_a_sentence(monkeypatch, change, said):
  monkeypatch.setattr(mosaic_support, "too_old", lambda: None)
  case = dict(x=(1, 8, 2, 64), dtype=jnp.bfloat16, kind="NVIDIA H100 80GB HBM3") | change
  B, T, N, _ = case["x"]
  x, b = (jax.ShapeDtypeStruct(s, case["dtype"]) for s in (case["x"], (B, T, 1, 128)))
  dt, a = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((B, T, N), (N,)))
  with gpu.traced_for(case["kind"]), pytest.raises(NotImplementedError) as error:
    jax.eval_shape(lambda *v: ssd(*v, implementation="pallas_gpu"), x, dt, a, b, b)
  assert said in str(error.value)


def test_it_is_taken_by_name_only_and_the_log_says_that_it_never_ran(monkeypatch):
  monkeypatch.setattr(mosaic_support, "too_old", lambda: None)
  x, b = (jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in ((1, 8, 2, 64), (1, 8, 1, 64)))
  dt, a = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((1, 8, 2), (2,)))
  with gpu.traced_for("NVIDIA H200"), recorded() as choices:
    jax.eval_shape(ssd, x, dt, a, b, b)
  assert choices[0].implementation == "xla"
  assert "no device has run it yet" in dict(choices[0].refused)["pallas_gpu"]
  named = choices[0]._replace(implementation="pallas_gpu")
  assert summary([named]) == "ssd pallas_gpu (no device has run it yet)"
