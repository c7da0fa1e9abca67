"""The FLOPs formula against a count of the dot products in the traced program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config import build
from jaxlm.evaluation.flops import num_params, parts_per_token, train_flops_per_token
from jaxlm.models.decoder import DecoderConfig


def decoder(**changes):
  return build(
    DecoderConfig,
    {
      **dict(
        vocab_size=50,
        d_model=24,
        num_layers=3,
        mixer=dict(kind="attention", num_heads=4, implementation="reference"),
        position=dict(kind="rope"),
      ),
      **changes,
    },
  )


def dots(jaxpr, times: int = 1) -> int:
  """Multiply-adds of every dot_general below, times the trip counts of scans."""
  total = 0
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == "dot_general":
      (contract, _), _ = eqn.params["dimension_numbers"]
      inner = np.prod([eqn.invars[0].aval.shape[i] for i in contract])
      total += times * int(np.prod(eqn.outvars[0].aval.shape) * inner)
    for inner in jax.tree.leaves(
      list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
    ):
      if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
        total += dots(getattr(inner, "jaxpr", inner), times * eqn.params.get("length", 1))
  return total


@pytest.mark.parametrize(
  "changes",
  [
    {},
    {"tie_embeddings": False},
    {"mlp": dict(d_ff=40, gated=True)},
    {
      "mixer": dict(
        kind="attention", num_heads=4, num_kv_heads=2, head_dim=8, implementation="reference"
      )
    },
  ],
  ids=["gpt2", "untied", "gated", "grouped"],
)
def test_the_formula_counts_the_dot_products_of_the_forward_pass(changes):
  config, T = decoder(**changes), 16
  tokens = jnp.zeros((1, T), jnp.int32)
  params = jax.eval_shape(lambda: config.build().init(jax.random.key(0), tokens))
  traced = jax.make_jaxpr(lambda p: config.build().apply(p, tokens))(params)
  assert 2 * dots(traced.jaxpr) == T * sum(parts_per_token(config, T).values())


def test_a_window_bounds_the_keys_and_nothing_else():
  whole, windowed = (
    parts_per_token(decoder(mixer=dict(kind="attention", num_heads=4, window=w)), 64)
    for w in (None, 8)
  )
  assert windowed["attention"] * 8 == whole["attention"] == 4 * 24 * 64 * 3
  assert windowed["blocks"] == whole["blocks"]


def test_training_is_three_times_forward_and_close_to_six_times_the_parameters():
  config = decoder(vocab_size=256, d_model=64)
  assert train_flops_per_token(config, 16) == 3 * sum(parts_per_token(config, 16).values())
  assert train_flops_per_token(config, 1) == pytest.approx(6 * num_params(config), rel=0.01)
