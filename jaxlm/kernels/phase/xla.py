"""Accumulated phases in chunks with a wrapped carry, and the rotation with its gradient
(docs/specs/carope.md section 4).

Axes: B batch, T time, C chunks, Q tokens of a chunk, N query heads, K kv heads, H head_dim, P
channel pairs.

Inside a chunk of 32 the sum is a product with a triangle of ones: on a CPU a matmul is several
times faster than a scan, whose stages XLA fuses into one another, and so short a sum loses nothing
(the spec proposes chunks of 128 and a tree). Across chunks a tree scan whose sum wraps to [-pi,
pi), which is associative modulo 2 pi. With G = dL/dphase and R_t = sum_{m >= t} G_m (exclusive
convention: m > t, but for R_0):

  dL/dlog f_t = sum_i i f_t^i R_ti,   dL/dinitial = R_0

With segments every sum is one of its own segment's terms, in either direction: the triangle is cut
where a segment starts, and a carry that passes a start is dropped in the scan. Nothing that stands
in another segment is added and taken away again.

For the rotation, y = turn(x, phi): dx = turn(dy, -phi) and G = dy2 y1 - dy1 y2, summed over the
heads that share phi. Kept for the backward pass: log f, the chunks' carries, and y, which attention
keeps anyway.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.kernels.phase.circle import sincos, split_pairs, turn, wrap
from jaxlm.kernels.phase.reference import segment_starts


class Options(NamedTuple):
  num_pairs: int
  ladder_start: int
  inclusive: bool
  chunk: int


def _chunked(x_BTKP, chunk: int):
  """(B, C, Q, K, P); the last chunk is filled with zeros."""
  B, T = x_BTKP.shape[:2]
  chunk = min(chunk, T)
  padding = -T % chunk
  if padding:
    x_BTKP = jnp.pad(x_BTKP, ((0, 0), (0, padding), (0, 0), (0, 0)))
  return x_BTKP.reshape(B, -1, chunk, *x_BTKP.shape[2:])


def _chunked_starts(start_BT, chunk: int):
  """(B, C, Q), the last chunk filled with its last segment; None without segments.

  A segment's name is where it starts.
  """
  if start_BT is None:
    return None
  B, T = start_BT.shape
  chunk = min(chunk, T)
  return jnp.pad(start_BT, ((0, 0), (0, -T % chunk)), mode="edge").reshape(B, -1, chunk)


def _sums_within(x_BCQKP, start_BCQ, inclusive: bool, reverse: bool = False):
  """(running sums over Q within a segment, that of the whole chunk (B, C, K, P)), from the end if
  reverse.

  Float32 products whatever the default precision.
  """
  B, C, Q, K, P = x_BCQKP.shape
  triangle = np.tri(Q, k=0 if inclusive else -1, dtype=np.float32)
  triangle = jnp.asarray(triangle.T if reverse else triangle)[None]
  if start_BCQ is not None:
    start_ZQ = start_BCQ.reshape(B * C, Q)
    triangle = jnp.where(start_ZQ[:, :, None] == start_ZQ[:, None], triangle, 0.0)
  triangle = jnp.broadcast_to(triangle, (B * C, Q, Q))  # batched: no transposes
  sums = jnp.einsum("zqt,ztx->zqx", triangle, x_BCQKP.reshape(B * C, Q, K * P), precision="highest")
  sums_BCQKP, last = sums.reshape(x_BCQKP.shape), 0 if reverse else -1
  return sums_BCQKP, sums_BCQKP[:, :, last] + (0 if inclusive else x_BCQKP[:, :, last])


def _ladder(options: Options):
  return (options.ladder_start + jnp.arange(options.num_pairs, dtype=jnp.float32))[None, None, None]


def _steps(log_f_BTK, mask_BT, options: Options):
  """f^i at every token, 0 where masked. (B, T, K, P)."""
  step_BTKP = jnp.exp(log_f_BTK[..., None] * _ladder(options))
  return step_BTKP if mask_BT is None else step_BTKP * mask_BT[:, :, None, None]


def _scan(add, totals_BCKP, broken_BC, reverse: bool = False):
  """Running sums over C by `add`; a broken element does not take what is before it."""
  if broken_BC is None:
    return jax.lax.associative_scan(add, totals_BCKP, axis=1, reverse=reverse)

  def join(earlier, later):
    (a, a_broken), (b, b_broken) = earlier, later
    return jnp.where(b_broken, b, add(a, b)), a_broken | b_broken

  return jax.lax.associative_scan(
    join, (totals_BCKP, broken_BC[:, :, None, None]), axis=1, reverse=reverse
  )[0]


def _carries(total_BCKP, initial_BKP, start_BCQ):
  """Wrapped phase before every chunk and after the last. (B, C + 1, K, P). total: of the segment at
  the chunk's end.
  """
  sums = jnp.concatenate([initial_BKP[:, None], total_BCKP], axis=1)
  broken = None
  if start_BCQ is not None:  # a segment starts in the chunk
    before = jnp.pad(start_BCQ[:, :-1, -1], ((0, 0), (1, 0)))
    broken = jnp.pad(start_BCQ[:, :, -1] != before, ((0, 0), (1, 0)))
  return _scan(lambda a, b: wrap(a + b), sums, broken)


def _phases(log_f_BTK, mask_BT, start_BT, initial_BKP, options: Options, carry=None):
  """(phase_BTKP wrapped, final_BKP, carries).

  With `carry` from an earlier call the initial phase is not read.
  """
  B, T, K = log_f_BTK.shape
  start_BCQ = _chunked_starts(start_BT, options.chunk)
  step_BCQKP = _chunked(_steps(log_f_BTK, mask_BT, options), options.chunk)
  local_BCQKP, total_BCKP = _sums_within(step_BCQKP, start_BCQ, options.inclusive)
  if carry is None:
    carry = _carries(total_BCKP, initial_BKP, start_BCQ)
  before_BCQKP = carry[:, :-1, None]
  if start_BCQ is not None:  # the carry belongs to the segment of the token before the chunk
    carried = start_BCQ == jnp.pad(start_BCQ[:, :-1, -1], ((0, 0), (1, 0)))[:, :, None]
    before_BCQKP = jnp.where(carried[..., None, None], before_BCQKP, 0.0)
  phase_BTKP = wrap(local_BCQKP + before_BCQKP).reshape(B, -1, K, options.num_pairs)[:, :T]
  return phase_BTKP, carry[:, -1], carry


def _pull_phases(log_f_BTK, mask_BT, start_BT, G_BTKP, dfinal_BKP, options: Options):
  """(dlog_f_BTK, dinitial_BKP) from the gradients of the phases and of the final phase."""
  B, T, K = log_f_BTK.shape
  start_BCQ, G_BCQKP = _chunked_starts(start_BT, options.chunk), _chunked(G_BTKP, options.chunk)
  local_BCQKP, total_BCKP = _sums_within(G_BCQKP, start_BCQ, options.inclusive, reverse=True)
  totals = jnp.concatenate([total_BCKP, dfinal_BKP[:, None]], axis=1)
  broken = carried = None
  if start_BCQ is not None:
    # What a chunk hands to the one before is of the segment at its start; the final phase is of the
    # last segment.
    first, last = start_BCQ[:, :, 0], start_BCQ[:, :, -1]
    after = jnp.concatenate([first[:, 1:], last[:, -1:]], axis=1)
    broken = jnp.pad(first != after, ((0, 0), (0, 1)))
    carried = (start_BCQ == after[:, :, None])[..., None, None]
  carry = _scan(jnp.add, totals, broken, reverse=True)
  behind_BCQKP = carry[:, 1:, None]
  if carried is not None:
    behind_BCQKP = jnp.where(carried, behind_BCQKP, 0.0)
  R_BTKP = (local_BCQKP + behind_BCQKP).reshape(B, -1, K, options.num_pairs)[:, :T]
  step_BTKP = _steps(log_f_BTK, mask_BT, options)
  return jnp.sum(_ladder(options) * step_BTKP * R_BTKP, axis=-1), carry[:, 0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _cumulative_phase(log_f_BTK, mask_BT, start_BT, initial_BKP, options):
  return _phases(log_f_BTK, mask_BT, start_BT, initial_BKP, options)[:2]


def _cumulative_phase_fwd(log_f_BTK, mask_BT, start_BT, initial_BKP, options):
  out = _phases(log_f_BTK, mask_BT, start_BT, initial_BKP, options)[:2]
  return out, (log_f_BTK, mask_BT, start_BT)


def _cumulative_phase_bwd(options, residuals, gradients):
  dlog_f, dinitial = _pull_phases(*residuals, *gradients, options)
  return dlog_f, None, None, dinitial


_cumulative_phase.defvjp(_cumulative_phase_fwd, _cumulative_phase_bwd)


class Turn(NamedTuple):
  rotary_dim: int
  layout: str


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def _carope_rotate(q_BTNH, k_BTKH, log_f_BTK, mask_BT, start_BT, initial_BKP, turning, options):
  return _carope_rotate_fwd(
    q_BTNH, k_BTKH, log_f_BTK, mask_BT, start_BT, initial_BKP, turning, options
  )[0]


def _carope_rotate_fwd(q_BTNH, k_BTKH, log_f_BTK, mask_BT, start_BT, initial_BKP, turning, options):
  phase_BTKP, final_BKP, carry = _phases(log_f_BTK, mask_BT, start_BT, initial_BKP, options)
  sin, cos = sincos(phase_BTKP)
  q_BTNH, k_BTKH = turn(q_BTNH, cos, sin, *turning), turn(k_BTKH, cos, sin, *turning)
  return (q_BTNH, k_BTKH, final_BKP), (q_BTNH, k_BTKH, log_f_BTK, mask_BT, start_BT, carry)


def _carope_rotate_bwd(turning, options, residuals, gradients):
  q_BTNH, k_BTKH, log_f_BTK, mask_BT, start_BT, carry = residuals
  dq_BTNH, dk_BTKH, dfinal_BKP = gradients
  phase_BTKP, _, _ = _phases(log_f_BTK, mask_BT, start_BT, None, options, carry)
  sin, cos = sincos(phase_BTKP)
  B, T, K, P = phase_BTKP.shape

  def cross(dy, y):
    def pairs(x):
      return split_pairs(x.reshape(B, T, K, -1, x.shape[-1]), *turning)[:2]

    (dy1, dy2), (y1, y2) = pairs(dy), pairs(y)
    return jnp.sum(dy2 * y1 - dy1 * y2, axis=3)

  G_BTKP = cross(dq_BTNH, q_BTNH) + cross(dk_BTKH, k_BTKH)
  dlog_f, dinitial = _pull_phases(log_f_BTK, mask_BT, start_BT, G_BTKP, dfinal_BKP, options)

  def back(dy):
    return turn(dy, cos, -sin, *turning)

  return back(dq_BTNH), back(dk_BTKH), dlog_f, None, None, dinitial


_carope_rotate.defvjp(_carope_rotate_fwd, _carope_rotate_bwd)


def _starts(segment_ids_BT):
  return None if segment_ids_BT is None else segment_starts(segment_ids_BT)


def cumulative_phase(log_f_BTK, mask_BT, segment_ids_BT, initial_BKP, **options):
  return _cumulative_phase(
    log_f_BTK, mask_BT, _starts(segment_ids_BT), initial_BKP, Options(**options)
  )


def carope_rotate(
  q_BTNH, k_BTKH, log_f_BTK, mask_BT, segment_ids_BT, initial_BKP, *, rotary_dim, layout, **options
):
  return _carope_rotate(
    q_BTNH,
    k_BTKH,
    log_f_BTK,
    mask_BT,
    _starts(segment_ids_BT),
    initial_BKP,
    Turn(rotary_dim, layout),
    Options(**options),
  )
