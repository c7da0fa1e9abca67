"""The penalty by hand, what it leaves alone, and which layers it counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config import ConfigError
from jaxlm.models import MODELS
from jaxlm.models.base import init
from jaxlm.objectives.decorrelation import Decorrelation, _WithStates, decorrelation
from jaxlm.objectives.next_token import NextToken
from jaxlm.training.config import load_config, run_config

ONE = jnp.ones((1, 3), jnp.int32)
POSITIONS = jnp.arange(3)[None]


def test_the_worked_example_is_a_quarter_and_rescaling_changes_nothing():
  h = jnp.asarray([[[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]]])
  found = decorrelation([h], ONE, POSITIONS)
  np.testing.assert_allclose(found.mean(), 0.25, rtol=1e-6)
  scaled = h * jnp.asarray([3.0, 0.1, 7.0])[None, :, None]
  np.testing.assert_allclose(decorrelation([scaled], ONE, POSITIONS).mean(), 0.25, rtol=1e-6)
  two = decorrelation([h, 0 * h + jnp.eye(2)[0][None, None]], ONE, POSITIONS)
  np.testing.assert_allclose(two.mean(), (0.25 + 1) / 2, rtol=1e-6)


def test_orthogonal_states_zero_vectors_and_rows_of_one_token_cost_nothing():
  orthogonal = jnp.asarray([[[1.0, 0.0], [0.0, 1.0], [0.0, -2.0]]])
  assert float(decorrelation([orthogonal], ONE, POSITIONS).mean()) == 0
  value, grad = jax.value_and_grad(lambda h: decorrelation([h], ONE, POSITIONS).mean())(
    jnp.zeros((1, 3, 2))
  )
  assert float(value) == 0 and bool(jnp.isfinite(grad).all())
  single = decorrelation([jnp.ones((2, 1, 2))], jnp.ones((2, 1)), jnp.zeros((2, 1), jnp.int32))
  assert float(single.mean()) == 0


def test_packed_documents_have_their_own_first_token_and_padding_no_gradient():
  segments, positions = jnp.asarray([[1, 1, 2, 2, 0]]), jnp.asarray([[0, 1, 0, 1, 0]])
  h = jnp.asarray([[[1.0, 0], [1, 1], [0, 1], [1, 1], [5, 5]]])
  value, grad = jax.value_and_grad(lambda h: decorrelation([h], segments, positions).mean())(h)
  np.testing.assert_allclose(value, 0.5, rtol=1e-6)
  assert not grad[0, 4].any() and grad[0, 0].any() and grad[0, 3].any()


def model(num_layers=3, mixer=None, unroll=1):
  cfg = MODELS.build(
    dict(
      kind="decoder",
      vocab_size=7,
      d_model=8,
      num_layers=num_layers,
      mixer=mixer or dict(kind="attention", num_heads=2),
      unroll=unroll,
    )
  )
  return cfg, jax.jit(lambda: init(cfg, jax.random.key(0)))()


def test_layers_one_to_the_last_but_one_count_in_a_scan_as_in_a_loop():
  rng = np.random.default_rng(0)
  row = {
    "tokens": rng.integers(0, 7, (2, 5)),
    "targets": rng.integers(0, 7, (2, 5)),
    "segment_ids": np.ones((2, 5), np.int32),
    "positions": np.broadcast_to(np.arange(5), (2, 5)),
    "loss_weights": np.ones((2, 5), np.float32),
  }
  found = []
  for unroll in (1, 3):
    cfg, params = model(unroll=unroll)

    def run(params, weight, cfg=cfg):
      objective = Decorrelation(weight=weight)
      return objective.loss(cfg.build(), params, row, None, {}, train=True)

    read = _WithStates(cfg.build())

    def states(params, read=read):
      read.apply({"params": params}, row["tokens"], row["targets"], method="score")
      return read.states

    found_states = jax.jit(states)(params)
    assert len(found_states) == 3
    by_hand = decorrelation(found_states[:2], row["segment_ids"], row["positions"]).mean()
    out = jax.jit(lambda p: run(p, 2.0))(params)
    plain = jax.jit(lambda p, cfg=cfg: NextToken().loss(cfg.build(), p, row, None, {}, train=True))(
      params
    )
    np.testing.assert_allclose(out.metrics["decorrelation"].mean(), by_hand, rtol=1e-5)
    np.testing.assert_allclose(out.loss.mean(), plain.loss.mean() + 2 * by_hand, rtol=1e-5)
    found.append(float(out.loss.mean()))
  np.testing.assert_allclose(*found, rtol=1e-5)


def test_a_row_without_a_start_token_and_one_layer_are_refused():
  file = "configs/attnsink/tiny.py"
  run_config(load_config(file, {"objective": dict(kind="decorrelation")}))
  from jaxlm.training.config import check

  for change, sentence in (
    ({"data.row_start": False}, "set data.row_start = True"),
    ({"model.num_layers": 1, "model.unroll": 1}, "use two layers or more"),
  ):
    cfg = run_config(load_config(file, {"objective": dict(kind="decorrelation")} | change))
    with pytest.raises(ConfigError, match=sentence):
      check(cfg, 1)
