"""Public functions of accumulated rotary phases (CARoPE, arXiv 2507.23083; docs/specs/carope.md
sections 2, 4, 5).

Axes: B batch, T time, N query heads, K kv heads, H head_dim, P channel pairs.
"""

import functools

import jax
import jax.numpy as jnp

from jaxlm.kernels.choices import note
from jaxlm.kernels.phase import blocks, pallas_tpu, reference, xla
from jaxlm.kernels.phase.circle import turn, wrap
from jaxlm.kernels.platform import target_device_kind

_IMPLEMENTATIONS = {"reference": reference, "xla": xla, "pallas": pallas_tpu}
CHUNK = 32
ONLY_ROTATES = 'the kernel turns queries and keys and writes no phases; use implementation="xla"'


def _checked(name: str | None) -> str | None:
  if name is not None and name not in _IMPLEMENTATIONS:
    raise NotImplementedError(
      f"phase implementation {name!r} does not exist; known: {', '.join(_IMPLEMENTATIONS)}"
    )
  return name


def _operands(log_f_BTK, num_pairs, mask_BT, initial_BKP):
  B, _, K = log_f_BTK.shape
  if initial_BKP is None:
    initial_BKP = jnp.zeros((B, K, num_pairs), jnp.float32)
  mask_BT = None if mask_BT is None else mask_BT.astype(jnp.float32)
  return log_f_BTK.astype(jnp.float32), mask_BT, initial_BKP.astype(jnp.float32)


def cumulative_phase(
  log_f_BTK,
  num_pairs: int,
  *,
  ladder_start: int = 0,
  inclusive: bool = True,
  increments_mask_BT=None,
  segment_ids_BT=None,
  initial_BKP=None,
  chunk: int = CHUNK,
  implementation: str | None = None,
  spec=None,
):
  """phi_m = initial + sum_{t <= m} f_t^i modulo 2 pi, i = ladder_start .. ladder_start + P - 1
  (exclusive: t < m).

  log_f_BTK: log of f in (0, 1). Returns (phase_BTKP, final_BKP), float32 in [-pi, pi); final is the
  phase after the last token, whichever the convention. Differentiable in log_f and initial.
  increments_mask_BT: 0 where a token adds nothing (padding). segment_ids_BT: int32, not falling
  along T; the phase starts again from 0 at each new segment, padding (0) apart. initial_BKP: phase
  before the first token.
  chunk: tokens between two wraps of the sum; error about 3e-5 at T = 8k, 2e-4 at 131k.
  spec: PartitionSpec of log_f. If it shards T over a mesh axis of more than one device, each device
  sums its part and the parts are joined by `shard_prefix`; otherwise the compiler partitions and
  spec is not needed.
  """
  name = _checked(implementation) or "xla"
  if name == "pallas":
    raise NotImplementedError(f"phase implementation 'pallas': {ONLY_ROTATES}")
  note(
    "phase",
    name,
    {"log_f": log_f_BTK},
    named=implementation is not None,
    refused=lambda: {"pallas": ONLY_ROTATES},
  )
  impl = _IMPLEMENTATIONS[name]
  log_f_BTK, mask_BT, initial_BKP = _operands(log_f_BTK, num_pairs, increments_mask_BT, initial_BKP)
  options = dict(num_pairs=num_pairs, ladder_start=ladder_start, inclusive=inclusive, chunk=chunk)
  if not _time_is_sharded(spec):
    return impl.cumulative_phase(log_f_BTK, mask_BT, segment_ids_BT, initial_BKP, **options)
  _refuse_segments(segment_ids_BT)
  batch, time, heads = (*spec, None, None)[:3]

  def part(log_f_BTK, mask_BT, initial_BKP):
    initial, final = _shard_ends(log_f_BTK, mask_BT, initial_BKP, time, options)
    return impl.cumulative_phase(log_f_BTK, mask_BT, None, initial, **options)[0], final

  specs = _specs(batch, time, heads)
  run = jax.shard_map(
    part,
    in_specs=(specs["log_f"], None if mask_BT is None else specs["mask"], specs["state"]),
    out_specs=(specs["phase"], specs["state"]),
    check_vma=False,
  )
  return run(log_f_BTK, mask_BT, initial_BKP)


def carope_rotate(
  q_BTNH,
  k_BTKH,
  log_f_BTK,
  *,
  rotary_dim: int,
  layout: str = "half",
  ladder_start: int = 0,
  inclusive: bool = True,
  increments_mask_BT=None,
  segment_ids_BT=None,
  initial_BKP=None,
  chunk: int = CHUNK,
  implementation: str | None = None,
  spec=None,
):
  """(turn(q, phi), turn(k, phi), final_BKP) with phi = cumulative_phase(log_f, rotary_dim / 2,
  ...).

  The fused form of `cumulative_phase` and `rotate`: phases, cosines and sines are not kept for the
  backward pass. Query head n turns by the phase of its kv head n // (N / K). q, k keep their dtype;
  everything between is float32. The other arguments are those of `cumulative_phase` (spec: of
  log_f).
  """
  name = _checked(implementation)
  why_not = functools.partial(pallas_tpu.supports, q_BTNH, k_BTKH, rotary_dim, layout, spec)
  if name == "pallas" and why_not() is not None:
    raise NotImplementedError(f"phase implementation 'pallas': {why_not()}")
  if name is None:
    preferred = blocks.prefers_pallas(target_device_kind(), q_BTNH.shape[1])
    name = "pallas" if preferred and why_not() is None else "xla"
  note(
    "phase",
    name,
    {"q": q_BTNH, "k": k_BTKH},
    named=implementation is not None,
    refused=lambda: {"pallas": why_not()},
  )
  impl, by_kernel = _IMPLEMENTATIONS[name], name == "pallas"
  num_pairs = rotary_dim // 2
  log_f_BTK, mask_BT, initial_BKP = _operands(log_f_BTK, num_pairs, increments_mask_BT, initial_BKP)
  options = dict(num_pairs=num_pairs, ladder_start=ladder_start, inclusive=inclusive, chunk=chunk)
  turning = dict(rotary_dim=rotary_dim, layout=layout)
  time_is_sharded = _time_is_sharded(spec)
  if time_is_sharded:
    _refuse_segments(segment_ids_BT)
  elif not by_kernel or jax.sharding.get_abstract_mesh().size <= 1:
    return impl.carope_rotate(
      q_BTNH, k_BTKH, log_f_BTK, mask_BT, segment_ids_BT, initial_BKP, **turning, **options
    )
  batch, time, heads = (*spec, None, None, None)[:3]

  def part(q_BTNH, k_BTKH, log_f_BTK, mask_BT, segment_ids_BT, initial_BKP):
    if not time_is_sharded:
      return impl.carope_rotate(
        q_BTNH, k_BTKH, log_f_BTK, mask_BT, segment_ids_BT, initial_BKP, **turning, **options
      )
    initial, final = _shard_ends(log_f_BTK, mask_BT, initial_BKP, time, options)
    q, k, _ = impl.carope_rotate(
      q_BTNH, k_BTKH, log_f_BTK, mask_BT, None, initial, **turning, **options
    )
    return q, k, final

  specs = _specs(batch, time, heads)
  run = jax.shard_map(
    part,
    in_specs=(
      specs["phase"],
      specs["phase"],
      specs["log_f"],
      None if mask_BT is None else specs["mask"],
      None if segment_ids_BT is None else specs["mask"],
      specs["state"],
    ),
    out_specs=(specs["phase"], specs["phase"], specs["state"]),
    check_vma=False,
  )
  return run(q_BTNH, k_BTKH, log_f_BTK, mask_BT, segment_ids_BT, initial_BKP)


def rotate(x_BTNH, cos, sin, *, layout: str = "half", rotary_dim: int | None = None):
  """y1 = x1 cos - x2 sin, y2 = x2 cos + x1 sin on the first rotary_dim channels; float32 inside,
  x's dtype out.

  cos, sin: (T, P) for all rows and heads, or (B or 1, T, K, P), where head n reads n // (N / K). P
  = rotary_dim / 2.
  layout: pairs are (first half, second half) or "interleaved" (even, odd) channels.
  """
  if cos.ndim == 2:
    cos, sin = cos[None, :, None], sin[None, :, None]
  return turn(x_BTNH, cos, sin, rotary_dim or 2 * cos.shape[-1], layout)


def total_phase(
  log_f_BTK, num_pairs: int, *, ladder_start: int = 0, increments_mask_BT=None, chunk: int = CHUNK
):
  """sum_t f_t^i modulo 2 pi, (B, K, P): what a part of a sequence adds to the phase of all that
  follow.
  """
  return cumulative_phase(
    log_f_BTK,
    num_pairs,
    ladder_start=ladder_start,
    increments_mask_BT=increments_mask_BT,
    chunk=chunk,
  )[1]


def shard_prefix(total_BKP, axis_name: str = "sequence"):
  """(prefix_BKP, all_BKP): wrapped sums of the totals of the shards before this one, and of all
  shards.

  For use inside shard_map, where each device holds one part of the sequence, in the order of the
  axis.
  Communication: one all-gather of B * K * P numbers per shard.
  """
  totals = jax.lax.all_gather(total_BKP, axis_name)
  sums = jax.lax.associative_scan(lambda a, b: wrap(a + b), totals, axis=0)
  before = jnp.concatenate([jnp.zeros_like(sums[:1]), sums[:-1]], axis=0)
  return jax.lax.dynamic_index_in_dim(
    before, jax.lax.axis_index(axis_name), 0, keepdims=False
  ), sums[-1]


def _time_is_sharded(spec) -> bool:
  if spec is None or len(spec) < 2 or spec[1] is None:
    return False
  names = (spec[1],) if isinstance(spec[1], str) else spec[1]
  return (
    functools.reduce(
      lambda n, name: n * jax.sharding.get_abstract_mesh().shape.get(name, 1), names, 1
    )
    > 1
  )


def _refuse_segments(segment_ids_BT):
  if segment_ids_BT is not None:
    raise NotImplementedError(
      "phase resets at segments while T is sharded: drop segment_ids_BT, since a "
      "block-diagonal attention mask makes them unnecessary"
    )


def _shard_ends(log_f_BTK, mask_BT, initial_BKP, axis_name, options):
  """(phase before this shard's first token, phase after the whole sequence)."""
  total = total_phase(
    log_f_BTK,
    options["num_pairs"],
    ladder_start=options["ladder_start"],
    increments_mask_BT=mask_BT,
    chunk=options["chunk"],
  )
  prefix, everything = shard_prefix(total, axis_name)
  return wrap(initial_BKP + prefix), wrap(initial_BKP + everything)


def _specs(batch, time, heads):
  return {
    "log_f": jax.P(batch, time, heads),
    "mask": jax.P(batch, time),
    "state": jax.P(batch, heads, None),
    "phase": jax.P(batch, time, heads, None),
  }
