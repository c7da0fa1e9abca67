"""The Mosaic GPU kernel of fast_weight_chunk, interpreted on a CPU, and its XLA backward, against the
definition.

The interpreter needs jax 0.12 and takes half a minute.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gpu
from jaxlm.kernels import mosaic_support
from jaxlm.kernels.fast_weight_chunk import Causal, Rule, bidirectional, fast_weight_chunk

RULE = Rule(dtype="bfloat16")
# Products take bfloat16 factors in both, work arrays are rounded in another place of the formula.
BFLOAT16 = 2e-2


def inputs(B, N, T, H, F):
  draw = np.random.default_rng(0).standard_normal

  def array(*shape, dtype=jnp.float32):
    return jnp.asarray(draw(shape), dtype)

  w = array(B, N, F, H) / 8, array(B, N, H, F) / 8, array(B, N, F, H) / 8
  q, k, v = (array(B, N, T, H, dtype=jnp.bfloat16) for _ in range(3))
  eta = tuple(jax.nn.softplus(array(B, N, T, 1)) / 100 for _ in range(3))
  return w, q, k, v, eta


def compare(schedule, *shape):
  arguments = inputs(*shape)

  def run(implementation):
    def fn(w, q, k, v, eta):
      out, state = fast_weight_chunk(
        w, q, k, v, eta, schedule=schedule, rule=RULE, implementation=implementation
      )
      return out.astype(jnp.float32), state.current

    out, pull = jax.vjp(fn, *arguments)
    return out, pull(out)

  with gpu.interpreted():
    got = run("pallas_gpu")
  for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(run("reference")), strict=True):
    assert g.dtype == w.dtype and g.shape == w.shape
    g, w = np.asarray(g, np.float64), np.asarray(w, np.float64)
    np.testing.assert_allclose(g, w, rtol=0, atol=BFLOAT16 * np.abs(w).max())


@pytest.mark.slow
def test_chunks_that_are_read_and_learned_with_gradients():
  compare(Causal(65), 1, 2, 100, 64, 128)


def listed(w, q, k, v, eta, implementation="pallas_gpu"):
  return fast_weight_chunk(
    w, q, k, v, eta, schedule=bidirectional(130), rule=RULE, implementation=implementation
  )[0].astype(jnp.float32)


@pytest.mark.slow
def test_a_listed_schedule_with_wide_heads():
  arguments = inputs(1, 1, 130, 128, 64)
  with gpu.interpreted():  # its effects do not pass jax.checkpoint: no gradient here
    got = listed(*arguments)
  want = listed(*arguments, "reference")
  np.testing.assert_allclose(got, want, rtol=0, atol=BFLOAT16 * float(jnp.abs(want).max()))


def test_the_gradient_of_a_listed_schedule_lowers_for_a_hopper_gpu():
  if (reason := mosaic_support.too_old()) is not None:
    pytest.skip(reason)
  structs = jax.eval_shape(lambda: inputs(1, 1, 130, 128, 64))
  gradient = jax.jit(jax.grad(lambda *x: jnp.sum(listed(*x)), range(5)))
  with gpu.traced_for("NVIDIA H200"):
    text = gradient.trace(*structs).lower(lowering_platforms=("cuda",)).as_text()
  assert text.count("mosaic_gpu") >= 2


@pytest.mark.parametrize(
  "kind, rule, H, said",
  [
    ("NVIDIA A100-SXM4-80GB", RULE, 64, "the kernel is for Hopper GPUs"),
    ("NVIDIA H200", RULE, 48, "head width 48 and inner width 48 are not multiples of 64"),
    ("NVIDIA H200", Rule(dtype="float32"), 64, "products are in float32"),
  ],
)
def test_what_is_not_covered_is_refused_with_a_sentence(monkeypatch, kind, rule, H, said):
  monkeypatch.setattr(mosaic_support, "too_old", lambda: None)
  w = (jax.ShapeDtypeStruct((1, 1, H, H), jnp.float32),) * 3
  x = jax.ShapeDtypeStruct((1, 1, 8, H), jnp.bfloat16)
  eta = (jax.ShapeDtypeStruct((1, 1, 8, 1), jnp.float32),) * 3

  def run(w, x, eta):
    return fast_weight_chunk(
      w, x, x, x, eta, schedule=Causal(4), rule=rule, implementation="pallas_gpu"
    )

  with gpu.traced_for(kind), pytest.raises(NotImplementedError) as error:
    jax.eval_shape(run, w, x, eta)
  assert said in str(error.value)
