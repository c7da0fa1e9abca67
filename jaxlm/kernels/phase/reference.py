"""The definition of accumulated phases: one running sum over the whole sequence, autodiff for
gradients.

Axes: B batch, T time, N query heads, K kv heads, H head_dim, P channel pairs.
"""

import jax
import jax.numpy as jnp

from jaxlm.kernels.phase.circle import turn, wrap


def segment_starts(segment_ids_BT):
  """Where each token's phase was last reset (0: never), (B, T).

  A reset is at the first token of every segment but the row's first. Padding (id 0) belongs to the
  segment before it, so that the last column holds the phase after the last valid token. Ids do not
  fall along T.
  """
  T = segment_ids_BT.shape[1]

  def shifted(x, fill):
    return jnp.concatenate([jnp.full_like(x[:, :1], fill), x], axis=1)[:, :T]

  before = shifted(jax.lax.cummax(segment_ids_BT, axis=1), 0)
  reset = (segment_ids_BT > before) & (before > 0)
  here = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), reset.shape)
  return jax.lax.cummax(jnp.where(reset, here, 0), axis=1)


def cumulative_phase(
  log_f_BTK, mask_BT, segment_ids_BT, initial_BKP, *, num_pairs, ladder_start, inclusive, chunk
):
  """(phase_BTKP, final_BKP): wrapped running sum of f^i. chunk is not used."""
  del chunk
  ladder_111P = (ladder_start + jnp.arange(num_pairs, dtype=jnp.float32))[None, None, None]
  step_BTKP = jnp.exp(log_f_BTK[..., None] * ladder_111P)
  if mask_BT is not None:
    step_BTKP = step_BTKP * mask_BT[:, :, None, None]
  after_BTKP = jnp.cumsum(step_BTKP, axis=1) + initial_BKP[:, None]
  phase_BTKP = after_BTKP if inclusive else after_BTKP - step_BTKP
  final_BKP = after_BTKP[:, -1]
  if segment_ids_BT is not None:
    start_BT = segment_starts(segment_ids_BT)
    before_BTKP = jnp.take_along_axis(
      after_BTKP, jnp.maximum(start_BT - 1, 0)[:, :, None, None], axis=1
    )
    before_BTKP = jnp.where((start_BT > 0)[:, :, None, None], before_BTKP, 0.0)
    phase_BTKP, final_BKP = phase_BTKP - before_BTKP, final_BKP - before_BTKP[:, -1]
  return wrap(phase_BTKP), wrap(final_BKP)


def carope_rotate(
  q_BTNH, k_BTKH, log_f_BTK, mask_BT, segment_ids_BT, initial_BKP, *, rotary_dim, layout, **options
):
  phase_BTKP, final_BKP = cumulative_phase(
    log_f_BTK, mask_BT, segment_ids_BT, initial_BKP, **options
  )
  cos, sin = jnp.cos(phase_BTKP), jnp.sin(phase_BTKP)
  return (
    turn(q_BTNH, cos, sin, rotary_dim, layout),
    turn(k_BTKH, cos, sin, rotary_dim, layout),
    final_BKP,
  )
