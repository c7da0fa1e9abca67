"""The insertion network with other positions and embeddings than its own: what the loss and the
sampler read is the full array of logits, whatever the parts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config import ConfigError
from jaxlm.training.config import load_config, run_config

CONFIG = "configs/ilm/star_easy.py"
TINY = {
  "model.d_model": 16,
  "model.num_layers": 2,
  "model.mixer.num_heads": 2,
  "model.mlp.d_ff": 32,
  "data.batch_size": 4,
  "data.rows": 16,
  "model.unroll": 2,
}
ROPE = {"model.position": "rope"}
CAROPE = {"model.position": "carope"}
LEXINVARIANT = {
  "model.embedding": "lexinvariant",
  "model.tie_embeddings": True,
  "data.sequence_seeds": True,
}


def run_of(overrides, form="insertion"):
  return run_config(load_config(f"{CONFIG}:{form}", TINY | overrides))


@pytest.mark.parametrize(
  ("overrides", "form"),
  [
    (CAROPE | LEXINVARIANT, "insertion"),
    pytest.param(CAROPE, "insertion", marks=pytest.mark.slow),
    pytest.param(ROPE | LEXINVARIANT, "insertion_transformer", marks=pytest.mark.slow),
  ],
)
def test_positions_and_embeddings_are_a_choice_of_the_configuration(overrides, form):
  cfg = run_of(overrides, form)
  batch = next(iter(cfg.data.build("train", seed=0)))
  model = cfg.model.build()
  params = jax.jit(functools.partial(model.init, jax.random.key(0)))(jnp.asarray(batch["tokens"]))[
    "params"
  ]

  def loss(params):
    return (lambda pair: pair.sum / pair.weight)(
      cfg.objective.loss(model, params, batch, jax.random.key(0), {}, train=True).loss
    )

  value, gradient = jax.jit(jax.value_and_grad(loss))(params)
  assert np.isfinite(value)
  silent = [
    jax.tree_util.keystr(path)
    for path, g in jax.tree_util.tree_leaves_with_path(gradient)
    if not np.any(g)
  ]
  assert not silent

  @jax.jit
  def read(params):
    apply = functools.partial(model.apply, {"params": params})
    tokens, segments = batch["tokens"], batch["segment_ids"]
    logits_BTV, _ = apply(tokens, segments)
    scored = apply(tokens, batch["slots"], batch["missing"], segments, method="score")
    bias_V = jnp.zeros(cfg.model.vocab_size).at[3].set(-1e30)
    h_BTD, _ = apply(tokens, segments, method="encode")
    sampled = (
      apply(h_BTD, bias_V, segments != 0, method="row_log_z"),
      apply(h_BTD[:, 2:3], method="row_logits"),
    )
    return logits_BTV, scored, sampled, jax.nn.logsumexp(logits_BTV + bias_V[None, None], axis=-1)

  logits_BTV, scored, (row_log_z_BT, row_BV), biased_BT = read(params)
  inside = batch["segment_ids"] != 0
  close = functools.partial(np.testing.assert_allclose, atol=1e-4)  # float32 sums in another order
  close(scored.log_z_BT[inside], jax.nn.logsumexp(logits_BTV, axis=-1)[inside])
  want_BM = np.take_along_axis(
    np.asarray(logits_BTV).reshape(4, -1),
    batch["slots"] * cfg.model.vocab_size + batch["missing"],
    axis=1,
  )
  close(scored.target_BM, want_BM)
  close(row_log_z_BT[inside], biased_BT[inside])
  close(row_BV[:, 0], logits_BTV[:, 2])


@pytest.mark.parametrize(
  ("overrides", "words"),
  [
    (LEXINVARIANT | {"model.tie_embeddings": False}, "set tie_embeddings = True"),
    (LEXINVARIANT | {"model.embedding.remap": True}, "does not occur yet"),
  ],
)
def test_an_embedding_that_cannot_name_a_new_token_is_refused(overrides, words):
  with pytest.raises(ConfigError, match=words):
    run_of(overrides)


def test_batches_without_seeds_are_refused_for_lexinvariant_models():
  cfg = run_of(LEXINVARIANT | {"data.sequence_seeds": False})
  batch = next(iter(cfg.data.build("train", seed=0)))
  with pytest.raises(ConfigError, match="sequence_seeds = True"):
    cfg.objective.loss(cfg.model.build(), {}, batch, jax.random.key(0), {}, train=True)
