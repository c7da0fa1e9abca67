"""Accumulated phases in chunks with a wrapped carry, and the rotation with its gradient (spec carope section 4).

Axes: B batch, T time, C chunks, Q tokens of a chunk, N query heads, K kv heads, H head_dim, P channel pairs.

Inside a chunk of 32 the sum is a product with a triangle of ones: on a CPU a matmul is several times faster than
a scan, whose stages XLA fuses into one another, and so short a sum loses nothing (the spec proposes chunks of 128 and
a tree). Across chunks a tree scan whose sum wraps to [-pi, pi), which is associative modulo 2 pi. With G = dL/dphase
and R_t = sum_{m >= t} G_m (exclusive convention: m > t, but for R_0):

  dL/dlog f_t = sum_i i f_t^i R_ti,   dL/dinitial = R_0

For the rotation, y = turn(x, phi): dx = turn(dy, -phi) and G = dy2 y1 - dy1 y2, summed over the heads that share
phi. Kept for the backward pass: log f, the chunks' carries, and y, which attention keeps anyway.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

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


def _sums_within(x_BCQKP, reverse: bool = False):
  """Inclusive running sum over Q, from the end if reverse. Float32 products whatever the default precision."""
  B, C, Q, K, P = x_BCQKP.shape
  triangle = jnp.tri(Q, dtype=jnp.float32)
  triangle = jnp.broadcast_to(triangle.T if reverse else triangle, (B * C, Q, Q))   # batched: no transposes
  sums = jnp.einsum("zqt,ztx->zqx", triangle, x_BCQKP.reshape(B * C, Q, K * P), precision="highest")
  return sums.reshape(x_BCQKP.shape)


def _ladder(options: Options):
  return (options.ladder_start + jnp.arange(options.num_pairs, dtype=jnp.float32))[None, None, None]


def _steps(log_f_BTK, mask_BT, options: Options):
  """f^i at every token, 0 where masked. (B, T, K, P)."""
  step_BTKP = jnp.exp(log_f_BTK[..., None] * _ladder(options))
  return step_BTKP if mask_BT is None else step_BTKP * mask_BT[:, :, None, None]


def _carries(local_BCQKP, initial_BKP):
  """Wrapped phase before every chunk and after the last. (B, C + 1, K, P)."""
  sums = jnp.concatenate([initial_BKP[:, None], local_BCQKP[:, :, -1]], axis=1)
  return jax.lax.associative_scan(lambda a, b: wrap(a + b), sums, axis=1)


def _phases(log_f_BTK, mask_BT, start_BT, initial_BKP, options: Options, carry=None):
  """(phase_BTKP wrapped, final_BKP, carries). With `carry` from an earlier call the initial phase is not read."""
  B, T, K = log_f_BTK.shape
  step_BCQKP = _chunked(_steps(log_f_BTK, mask_BT, options), options.chunk)
  local_BCQKP = _sums_within(step_BCQKP)
  if carry is None:
    carry = _carries(local_BCQKP, initial_BKP)
  flat = lambda x: x.reshape(B, -1, K, options.num_pairs)[:, :T]
  before_BC1KP = carry[:, :-1, None]
  if options.inclusive:
    phase_BTKP = wrap(flat(local_BCQKP + before_BC1KP))
  else:
    shifted = jnp.concatenate([jnp.zeros_like(local_BCQKP[:, :, :1]), local_BCQKP[:, :, :-1]], axis=2)
    phase_BTKP = wrap(flat(shifted + before_BC1KP))
  final_BKP = carry[:, -1]
  if start_BT is not None:
    after_BTKP = phase_BTKP if options.inclusive else flat(local_BCQKP + before_BC1KP)
    reset_BTKP = jnp.take_along_axis(after_BTKP, jnp.maximum(start_BT - 1, 0)[:, :, None, None], axis=1)
    reset_BTKP = jnp.where((start_BT > 0)[:, :, None, None], reset_BTKP, 0.0)
    phase_BTKP, final_BKP = wrap(phase_BTKP - reset_BTKP), wrap(final_BKP - reset_BTKP[:, -1])
  return phase_BTKP, final_BKP, carry


def _pull_phases(log_f_BTK, mask_BT, next_BT, G_BTKP, dfinal_BKP, options: Options):
  """(dlog_f_BTK, dinitial_BKP) from the gradients of the phases and of the final phase."""
  B, T, K = log_f_BTK.shape
  local_BCQKP = _sums_within(_chunked(G_BTKP, options.chunk), reverse=True)
  totals = jnp.concatenate([local_BCQKP[:, :, 0], dfinal_BKP[:, None]], axis=1)
  carry = jax.lax.associative_scan(jnp.add, totals, axis=1, reverse=True)
  R_BTKP = (local_BCQKP + carry[:, 1:, None]).reshape(B, -1, K, options.num_pairs)[:, :T]
  R0_BKP = R_BTKP[:, 0]
  behind = None
  if next_BT is not None:    # what comes after the next reset does not depend on this token
    ends = jnp.concatenate([R_BTKP, jnp.zeros_like(R_BTKP[:, :1])], axis=1)
    behind = jnp.take_along_axis(ends, next_BT[:, :, None, None], axis=1)
    R0_BKP = R0_BKP - behind[:, 0]
  if not options.inclusive:
    R_BTKP = jnp.concatenate([R_BTKP[:, 1:], dfinal_BKP[:, None]], axis=1)
  if behind is not None:
    R_BTKP = R_BTKP - behind
  step_BTKP = _steps(log_f_BTK, mask_BT, options)
  return jnp.sum(_ladder(options) * step_BTKP * R_BTKP, axis=-1), R0_BKP


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _cumulative_phase(log_f_BTK, mask_BT, start_BT, next_BT, initial_BKP, options):
  return _phases(log_f_BTK, mask_BT, start_BT, initial_BKP, options)[:2]


def _cumulative_phase_fwd(log_f_BTK, mask_BT, start_BT, next_BT, initial_BKP, options):
  out = _phases(log_f_BTK, mask_BT, start_BT, initial_BKP, options)[:2]
  return out, (log_f_BTK, mask_BT, next_BT)


def _cumulative_phase_bwd(options, residuals, gradients):
  dlog_f, dinitial = _pull_phases(*residuals, *gradients, options)
  return dlog_f, None, None, None, dinitial


_cumulative_phase.defvjp(_cumulative_phase_fwd, _cumulative_phase_bwd)


class Turn(NamedTuple):
  rotary_dim: int
  layout: str


@functools.partial(jax.custom_vjp, nondiff_argnums=(7, 8))
def _carope_rotate(q_BTNH, k_BTKH, log_f_BTK, mask_BT, start_BT, next_BT, initial_BKP, turning, options):
  return _carope_rotate_fwd(q_BTNH, k_BTKH, log_f_BTK, mask_BT, start_BT, next_BT, initial_BKP, turning, options)[0]


def _carope_rotate_fwd(q_BTNH, k_BTKH, log_f_BTK, mask_BT, start_BT, next_BT, initial_BKP, turning, options):
  phase_BTKP, final_BKP, carry = _phases(log_f_BTK, mask_BT, start_BT, initial_BKP, options)
  sin, cos = sincos(phase_BTKP)
  q_BTNH, k_BTKH = turn(q_BTNH, cos, sin, *turning), turn(k_BTKH, cos, sin, *turning)
  return (q_BTNH, k_BTKH, final_BKP), (q_BTNH, k_BTKH, log_f_BTK, mask_BT, start_BT, next_BT, carry)


def _carope_rotate_bwd(turning, options, residuals, gradients):
  q_BTNH, k_BTKH, log_f_BTK, mask_BT, start_BT, next_BT, carry = residuals
  dq_BTNH, dk_BTKH, dfinal_BKP = gradients
  phase_BTKP, _, _ = _phases(log_f_BTK, mask_BT, start_BT, None, options, carry)
  sin, cos = sincos(phase_BTKP)
  B, T, K, P = phase_BTKP.shape

  def cross(dy, y):
    pairs = lambda x: split_pairs(x.reshape(B, T, K, -1, x.shape[-1]), *turning)[:2]
    (dy1, dy2), (y1, y2) = pairs(dy), pairs(y)
    return jnp.sum(dy2 * y1 - dy1 * y2, axis=3)

  G_BTKP = cross(dq_BTNH, q_BTNH) + cross(dk_BTKH, k_BTKH)
  dlog_f, dinitial = _pull_phases(log_f_BTK, mask_BT, next_BT, G_BTKP, dfinal_BKP, options)
  back = lambda dy: turn(dy, cos, -sin, *turning)
  return back(dq_BTNH), back(dk_BTKH), dlog_f, None, None, None, dinitial


_carope_rotate.defvjp(_carope_rotate_fwd, _carope_rotate_bwd)


def _starts(segment_ids_BT):
  return (None, None) if segment_ids_BT is None else segment_starts(segment_ids_BT)


def cumulative_phase(log_f_BTK, mask_BT, segment_ids_BT, initial_BKP, **options):
  return _cumulative_phase(log_f_BTK, mask_BT, *_starts(segment_ids_BT), initial_BKP, Options(**options))


def carope_rotate(q_BTNH, k_BTKH, log_f_BTK, mask_BT, segment_ids_BT, initial_BKP, *, rotary_dim, layout, **options):
  return _carope_rotate(q_BTNH, k_BTKH, log_f_BTK, mask_BT, *_starts(segment_ids_BT), initial_BKP,
                        Turn(rotary_dim, layout), Options(**options))
