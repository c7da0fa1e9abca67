"""The short convolution is its definition, forward and in its own backward."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.layers.causal_conv import causal_conv

B, T, F = 2, 7, 3


def defined(x_BTF, w_JF, b_F, reset_BT, history_BJF):
  """One output after the other, over the inputs of its document."""
  J = len(w_JF)
  history_BJF = jnp.zeros((B, J, F)) if history_BJF is None else history_BJF
  all_BTF = jnp.concatenate([history_BJF, x_BTF], axis=1)
  run_BT = (
    np.zeros((B, J + T), int)
    if reset_BT is None
    else np.pad(np.cumsum(reset_BT, 1), ((0, 0), (J, 0)))
  )
  rows = [
    [
      b_F
      + sum(
        w_JF[J - 1 - back] * all_BTF[b, J + t - back]
        for back in range(J)
        if run_BT[b, J + t - back] == run_BT[b, J + t]
      )
      for t in range(T)
    ]
    for b in range(B)
  ]
  return jax.nn.silu(jnp.array(rows))


@pytest.mark.parametrize("taps", [1, 4])
@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("history", [False, True])
def test_is_its_definition_with_gradients(taps, resets, history):
  r = np.random.default_rng(0)

  def n(*shape):
    return jnp.asarray(r.standard_normal(shape), jnp.float32)

  inputs, g_BTF = (n(B, T, F), n(taps, F), n(F), n(B, taps, F) if history else None), n(B, T, F)
  reset_BT = np.zeros((B, T), bool)
  reset_BT[0, 3] = reset_BT[1, 0] = reset_BT[1, 1] = True

  def run(fn):
    return jax.value_and_grad(
      lambda v: jnp.sum(g_BTF * fn(*v[:3], reset_BT if resets else None, v[3]))
    )(inputs)

  chex.assert_trees_all_close(run(causal_conv), run(defined), atol=1e-5)
