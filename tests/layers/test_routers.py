"""The contract of routers, for every entry of ROUTERS (see the docstring of jaxlm.layers.routers)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.layers.routers import ROUTERS, ExternalBoundaries, FixedStride, RouterInputs

D, SPLIT, VALID = 8, 5, 9
OPTIONS = {"pool": FixedStride(3), "given": ExternalBoundaries()}


def cut(inputs, i, j):
  return RouterInputs(*(v[:, i:j] for v in inputs))


@pytest.mark.parametrize("kind", ROUTERS.table)
def test_a_router_cuts_documents_in_a_row_as_alone_and_a_stream_as_the_whole(kind):
  cfg = OPTIONS.get(kind) or ROUTERS.cls(kind)()
  rng = np.random.default_rng(0)
  positions = np.r_[:SPLIT, : VALID - SPLIT, :3]  # two documents, then padding
  inputs = RouterInputs(
    jnp.asarray((positions == 0) & (np.arange(12) < VALID))[None],
    jnp.arange(12)[None] < VALID,
    jnp.asarray(positions, jnp.int32)[None],
    jnp.asarray([list(b"ab. cd ef...")], jnp.int32),
    jnp.asarray(rng.random((1, 12)) < 0.4),
  )
  x = jnp.asarray(rng.normal(size=(1, 12, D)), jnp.bfloat16)
  module = cfg.build(D, "bfloat16", None)
  if isinstance(module, nn.Module):
    params = nn.unbox(module.init(jax.random.key(0), x, inputs, None))

    def run(x, inputs, state):
      return module.apply(params, x, inputs, state)
  else:
    run = module

  whole, state = run(x, inputs, None)
  assert not jax.tree.leaves(state)
  assert (
    whole.p_BT.dtype == whole.confidence_BT.dtype == jnp.float32 and whole.boundary_BT.dtype == bool
  )
  assert bool(jnp.all(whole.p_BT[inputs.first_BT] == 1)) and bool(
    jnp.all(whole.boundary_BT[inputs.first_BT])
  )
  assert (
    not bool(jnp.any(whole.boundary_BT & ~inputs.valid_BT))
    and 2 < int(whole.boundary_BT.sum()) < VALID
  )

  def same(got, i, j):
    return [np.testing.assert_allclose(a, b[:, i:j], atol=1e-6) for a, b in zip(got, whole)]

  for i, j in ((0, SPLIT), (SPLIT, VALID)):
    same(run(x[:, i:j], cut(inputs, i, j), None)[0], i, j)

  state = cfg.init_state(D, 1, "bfloat16")
  start, state = run(x[:, :2], cut(inputs, 0, 2), state)
  same(start, 0, 2)
  _, resting = run(x[:, VALID:], cut(inputs, VALID, 12), state)  # no valid token: the state stays
  jax.tree.map(np.testing.assert_array_equal, resting, state)
  same(run(x[:, 2:SPLIT], cut(inputs, 2, SPLIT), state)[0], 2, SPLIT)
