"""A decoder without a loop over layers is the same decoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.generation.engine.speculative import Speculative
from jaxlm.generation.engine.step import extend, put_rows, take_rows
from jaxlm.generation.engine.unrolled import (
  UnrolledDecoder,
  open_params,
  opened,
  opened_pair,
  unrolled,
)
from jaxlm.generation.left_to_right import LeftToRight
from jaxlm.generation.sampling import GREEDY
from tests.generation.engine import toys

TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 12, (2, 5)), jnp.int32)


@pytest.fixture(scope="module")
def decoder():
  return toys.model(num_layers=3, scale=3)


def test_its_logits_are_those_of_the_scan_and_its_rows_can_be_moved_and_go_back(decoder):
  config, params = decoder
  other, own = unrolled(config), open_params(config, params)
  run = jax.jit(extend, static_argnums=0)
  whole = toys.whole(params, TOKENS, config)
  first, state = run(other, own, TOKENS[:, :3], other.init_state(2, 8, 2), None)
  state = put_rows(other, state, take_rows(other, state, jnp.asarray([1, 0])), jnp.asarray([1, 0]))
  state = other.rewind(state, jnp.asarray([2, 2]))
  rest, state = run(other, own, TOKENS[:, 2:], state, None)
  np.testing.assert_allclose(first, whole[:, :3], atol=1e-4)
  np.testing.assert_allclose(rest, whole[:, 2:], atol=1e-4)
  assert [layer.k_BSKH.shape[0] for layer in state.layers] == [2, 2, 2]


def test_only_what_has_such_a_form_is_opened(decoder):
  config, params = decoder
  engine, own = opened(LeftToRight(config, GREEDY), params)
  assert isinstance(engine.model, UnrolledDecoder)
  assert set(own["blocks"]) == {"layer_0", "layer_1", "layer_2"}
  assert opened(engine, own) == (engine, own)  # a second time changes nothing
  exact = LeftToRight(config, GREEDY, deterministic=True)
  assert opened(exact, params)[0] is exact
  small, _ = toys.model()
  full = dict(kind="attention", num_heads=2)
  mixed = dict(kind="pattern", members=[full | dict(window=4), full])
  pattern, _ = toys.model(num_layers=2, mixer=mixed)
  assert unrolled(small) is small and unrolled(pattern) is pattern
  both = Speculative(config, small, GREEDY)
  drafted, own = opened_pair(both, {"target": params, "draft": {}})
  assert drafted.draft is small and isinstance(drafted.model, UnrolledDecoder)
  assert own["draft"] == {}
