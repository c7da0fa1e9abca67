"""The definition: every position's whole table, and autodiff. Axes: B batch, T time, V vocabulary,
D d_model.
"""

import jax
import jax.numpy as jnp

from jaxlm.kernels.random_head.rows import SEGMENT, fold_in, keyed_rows, random_mask


def segment_seeds(seed_B2, segment_ids_BT):
  """Each position's seed, (B, T, 2): the sequence's own in segments 0 and 1, a folded one from
  segment 2 on.
  """
  return fold_in(seed_B2[:, None], jnp.where(segment_ids_BT > 1, segment_ids_BT, 0), SEGMENT)


def effective(seed, token, rows_of, embed=None, probability=1.0, noise_scale=1.0):
  """m N + (1 - m) embed (spec 6). rows_of(seed, token): the random rows; embed: the learned rows of
  `token`.
  """
  noise = jax.lax.stop_gradient(rows_of(seed, token))
  if embed is None:
    return noise
  m = random_mask(seed, token, probability)[..., None]
  return jnp.where(m, jax.lax.stop_gradient(noise_scale) * noise, embed)


def log_z(h_BTD, seed_B2, segment_ids_BT, embed_VD, noise_scale, *, vocab_size, probability, law):
  """logsumexp_v <h, E[v]>, float32 (B, T)."""
  B, T, D = h_BTD.shape
  seed = seed_B2[:, None] if segment_ids_BT is None else segment_seeds(seed_B2, segment_ids_BT)
  token_V = jnp.arange(vocab_size).reshape(1, 1, -1)
  rows = effective(
    seed[:, :, None],
    token_V,
    lambda s, v: keyed_rows(s, v, D, law),
    None if embed_VD is None else embed_VD[None, None],
    probability,
    noise_scale,
  )
  rows = jnp.broadcast_to(rows.astype(h_BTD.dtype), (B, T, *rows.shape[2:]))
  return jax.nn.logsumexp(
    jnp.einsum("btd,btvd->btv", h_BTD, rows, preferred_element_type=jnp.float32), axis=-1
  )
