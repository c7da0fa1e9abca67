"""CARoPE inside an H-Net, chosen by its configuration alone (lexinvariant bytes:
test_lexinvariant_composition.py); full buffers.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_params import random_params

from jaxlm.training.config import load_config, run_config

CONFIG = str(pathlib.Path(__file__).parents[2] / "configs" / "hnet" / "tiny.py")
T = 10
TOKENS = np.random.default_rng(0).integers(0, 256, (2, T + 1)).astype(np.int32)
BATCH = dict(
  tokens=TOKENS[:, :-1],
  targets=TOKENS[:, 1:],
  segment_ids=np.ones((2, T), np.int32),
  positions=np.broadcast_to(np.arange(T, dtype=np.int32), (2, T)),
  loss_weights=np.ones((2, T), np.float32),
)


def tiny(main_position="rope", **overrides):
  """The laptop configuration with one Mamba-2 layer around one of attention, widths 16."""

  def stage(position):
    return dict(
      d_model=16,
      d_ff=16,
      attention=dict(num_heads=2, position=position),
      mamba=dict(d_state=4, head_dim=16),
    )

  return run_config(
    load_config(
      CONFIG,
      {
        "model.layout": "m1 [t1] m1",
        "model.stages": [stage("rope"), stage(main_position)],
        **overrides,
      },
    )
  )


def test_carope_turns_the_chunks_of_the_main_network_and_learns_there():
  cfg = tiny("carope")

  def loss(params):
    return cfg.objective.loss(
      cfg.model.build(), params, BATCH, jax.random.key(0), cfg.objective.init_state(), train=True
    ).loss.mean()

  grads = jax.jit(jax.grad(loss))(random_params(cfg.model))
  named = {
    jax.tree_util.keystr(path): g
    for path, g in jax.tree_util.tree_leaves_with_path(grads)
    if "freq" in str(path)
  }
  assert named and all(
    "inner" in name for name in named
  )  # nothing of it in encoder and decoder, which have no attention
  assert all(float(jnp.abs(g).max()) > 0 for g in named.values())


# Outer chunks: two of the first document, three of the second, in each row. Inner ones: one and
# two.
@pytest.mark.parametrize("rows, capacities", [(1, (8, 1)), (2, (2, 2))])
def test_a_full_buffer_shows_no_document_or_row_the_chunks_of_another(rows, capacities):
  stages = [
    dict(d_model=16, router=dict(kind="pool", width=2), mamba=dict(d_state=4, head_dim=16))
  ] * 3
  cfg = run_config(
    load_config(
      f"{CONFIG}:2stage",
      {
        "model.layout": "m1 [m1 [m1] m1] m1",
        "model.stages": stages,
        "model.join": dict(rows_per_buffer=rows),
      },
    )
  )
  params, segments = random_params(cfg.model), jnp.asarray([[1] * 4 + [2] * 6] * 2)
  apply = jax.jit(
    lambda tokens, capacities: cfg.model.build().apply(
      {"params": params}, tokens, segments, capacities=capacities, method="run"
    ),
    static_argnums=1,
  )
  tokens = jnp.asarray(BATCH["tokens"])
  logits, infos, _ = apply(tokens, capacities)
  assert any(bool(info.overflow_B.all()) for info in infos)
  others = apply(tokens.at[0, :4].add(1), capacities)[0]
  assert float(jnp.abs(others - logits)[0, :4].max()) > 1e-3
  np.testing.assert_array_equal(others[0, 4:], logits[0, 4:])
  np.testing.assert_array_equal(others[1], logits[1])
