"""The delta rule by chunks: what the tokens of a chunk write is one triangular solve (arXiv
2406.06484, 2412.06464).

Axes: B batch, T time, N heads, H key width, E value width, C tokens of a chunk.
"""

import jax
import jax.numpy as jnp

from jaxlm.kernels.gla.chunks import by_chunk, segsum, whole


def delta_rule(q_BTNH, k_BTNH, v_BTNE, beta_BTN, log_decay_BTN, state_BNHE, ids_BT, chunk):
  """As `reference.delta_rule`. With u_i = beta_i (v_i - k_i' S), what token i writes,

    u_i = beta_i (v_i - e^{b_i} k_i' S_0) - sum_{j<i} beta_i (k_i . k_j) e^{b_i - b_j} u_j

  is unit lower triangular in u. Solved by substitution: a product of powers of the triangle would
  be all matmuls, but its terms grow like binomial coefficients when keys repeat.
  """
  T = q_BTNH.shape[1]
  chunks, ids_CBT = by_chunk((q_BTNH, k_BTNH, v_BTNE, beta_BTN, log_decay_BTN), ids_BT, chunk)

  def body(carry, piece):
    state, owner_B = carry
    (q, k, v, beta, a), ids = piece
    same = ids[:, None, :, None] == ids[:, None, None]
    decay_BNCC = jnp.exp(segsum(a)) * same
    from_start = jnp.exp(jnp.cumsum(a, -1)) * (ids == owner_B[:, None])[:, None]
    link = jnp.tril(jnp.einsum("bnih,bnjh->bnij", k * beta[..., None], k) * decay_BNCC, -1)
    want = v - from_start[..., None] * jnp.einsum("bnih,bnhe->bnie", k, state)
    # The solver reads the diagonal as ones.
    u = jax.scipy.linalg.solve_triangular(
      link, beta[..., None] * want, lower=True, unit_diagonal=True
    )
    o = from_start[..., None] * jnp.einsum("bnih,bnhe->bnie", q, state)
    o += jnp.einsum("bnij,bnje->bnie", jnp.einsum("bnih,bnjh->bnij", q, k) * decay_BNCC, u)
    keep = jnp.exp(a.sum(-1)) * (ids[:, -1] == owner_B)[:, None]
    state = keep[..., None, None] * state + jnp.einsum(
      "bnjh,bnj,bnje->bnhe", k, decay_BNCC[:, :, -1], u
    )
    return (state, ids[:, -1]), o

  (state_BNHE, _), o = jax.lax.scan(
    jax.checkpoint(body, prevent_cse=False), (state_BNHE, ids_BT[:, 0]), (chunks, ids_CBT)
  )
  return whole(o, T), state_BNHE
