"""A lexinvariant model's predictions averaged over tables. Axes: B batch, T time."""

import jax
import jax.numpy as jnp

from jaxlm.models.score import lexicon_of


def averaged_log_prob(config, params, batch, num_tables: int):
  """log mean_k p(target | table k), float32 (B, T): at most the mean of the losses, exactly
  lexinvariant as K grows.

  batch: tokens, targets, segment_ids, positions (B, T) and sequence_seeds (B, 2). Table 0 is the
  one of a single-table evaluation. Report num_tables with the number.
  """
  if num_tables < 1:
    raise ValueError(f"num_tables = {num_tables}: wanted 1 or more")
  model = config.build()

  def one(k):
    return model.apply(
      {"params": params},
      batch["tokens"],
      batch["targets"],
      batch["segment_ids"],
      batch["positions"],
      method="score",
      **lexicon_of(config, batch, train=False, table=k),
    ).log_prob_BT

  log_prob_kBT = jax.lax.map(one, jnp.arange(num_tables))
  return jax.nn.logsumexp(log_prob_kBT, axis=0) - jnp.log(float(num_tables))
