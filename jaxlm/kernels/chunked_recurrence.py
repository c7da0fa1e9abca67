"""A linear recurrence by chunks as two TPU kernels: what ssd, gla and delta_rule share.

Axes: B batch, J blocks of heads, T time, C chunks; of one block: Q positions of a chunk, G heads, F
channels of the state, E its second axis, W channels of an operand.

The grid is (B, J, C). Chunks run one after the other, and the state stays in on-chip memory between
them. The forward kernel writes the state at every chunk's start if there will be a gradient; the
backward kernel runs the chunks in reverse, computes everything else again, and carries the gradient
of the state. A `Rule` says what happens in one chunk.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxlm.kernels import pallas_support

LANES = pallas_support.LANES

#: Layouts of operands. "wide" (B, T, J W): heads side by side; "group" (B, T, K W): one for all
#: heads of a group, K divides J; "row" (B, J, G, T): numbers per head and token; "head" (J, G, 1):
#: numbers per head.
LAYOUTS = ("wide", "group", "row", "head")


def heads_per_block(
  num_heads: int, num_groups: int, widths: tuple[int, ...], channels: int
) -> int | None:
  """The most heads of one group that have at most `channels` of the widest operand (or one head) and
  whole registers of 128 of every operand; all heads need not. None: there is no such number.
  """
  each = num_heads // num_groups
  for G in range(each, 0, -1):
    whole = G == num_heads or not any(G * width % LANES for width in widths)
    if each % G == 0 and whole and (G * max(widths) <= channels or G == 1):
      return G
  return None


def begins(segment_ids_BT):
  """Where a segment begins that does not stand first in its row."""
  return jnp.pad(segment_ids_BT[:, 1:] != segment_ids_BT[:, :-1], ((0, 0), (1, 0)))


def names(part) -> tuple[str, ...]:
  """Mesh axes of several devices in one part of a PartitionSpec."""
  axes = () if part is None else (part,) if isinstance(part, str) else tuple(part)
  return tuple(n for n in axes if jax.sharding.get_abstract_mesh().shape[n] > 1)


def shards(part) -> int:
  return math.prod(jax.sharding.get_abstract_mesh().shape[n] for n in names(part))


def why_not_split(B: int, num_heads: int, spec) -> str | None:
  """None, or why a mesh cannot share the recurrence as `spec` (batch, time, heads, ...) says."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.size <= 1:
    return None
  if spec is None:
    return (
      f"on a mesh of {mesh.size} devices it needs spec, the PartitionSpec of (B, T, N, ...): kernels "
      "are not partitioned by the compiler"
    )
  batch, time, heads = (*spec, None, None, None)[:3]
  if names(time):
    return (
      f"spec {spec} shards time over {', '.join(names(time))}, and the recurrence runs along it; "
      'gather that axis first or use implementation="xla"'
    )
  for what, size, part in (("batch", B, batch), ("heads", num_heads, heads)):
    if size % shards(part):
      return (
        f"{what} {size} cannot be split over the {shards(part)} devices of mesh axes "
        f'{", ".join(names(part))}; choose a multiple or use implementation="xla"'
      )
  return None


@dataclasses.dataclass(frozen=True)
class Rule:
  """What a chunk of one block of heads does.

  operands: layouts. forward(operands, state_FE) -> (y, new state_FE); y is "wide", and as wide as
  operand `like`, in its dtype. backward(operands, state_FE, dy, d new state_FE) -> (gradients of
  the operands, of the state). Gradients of "head" operands are (G, Q), summed over Q outside.
  """

  name: str
  operands: tuple[str, ...]
  like: int
  forward: Callable
  backward: Callable


@dataclasses.dataclass(frozen=True)
class Call:
  """flops, exps: of one chunk of one block of heads, (forward, backward)."""

  rule: Rule
  chunk: int
  num_blocks: int
  num_groups: int
  flops: tuple[int, int]
  exps: tuple[int, int]


def _block(call: Call, layout: str, shape, time):
  """BlockSpec of an operand; time: chunk of grid step t."""
  Q, J = call.chunk, call.num_blocks
  if layout == "wide":
    return pl.BlockSpec((1, Q, shape[2] // J), lambda b, j, t: (b, time(t), j))
  if layout == "group":
    each = J // call.num_groups
    return pl.BlockSpec(
      (1, Q, shape[2] // call.num_groups), lambda b, j, t: (b, time(t), jax.lax.div(j, each))
    )
  if layout == "row":
    return pl.BlockSpec((1, 1, shape[2], Q), lambda b, j, t: (b, j, 0, time(t)))
  return pl.BlockSpec((1, *shape[1:]), lambda b, j, t: (j, 0, 0))


def _state(call: Call, shape):
  return pl.BlockSpec((1, shape[1] // call.num_blocks, shape[2]), lambda b, j, t: (b, j, 0))


def _starts(call: Call, shape, time):
  return pl.BlockSpec(
    (1, 1, shape[1] // call.num_blocks, shape[2]), lambda b, j, t: (b, time(t), j, 0)
  )


def _read(ref):
  """A block without its leading axes of length 1."""
  return ref[(0,) * (len(ref.shape) - 2)]


def _write(ref, value):
  ref[(0,) * (len(ref.shape) - 2)] = value.astype(ref.dtype)


def _forward_kernel(*refs, call: Call, with_starts: bool):
  n = len(call.rule.operands)
  operands, initial, y, final = refs[:n], refs[n], refs[n + 1], refs[n + 2]
  starts, state = refs[n + 3] if with_starts else None, refs[-1]
  t = pl.program_id(2)

  @pl.when(t == 0)
  def _():
    state[...] = _read(initial)

  old = state[...]
  if with_starts:
    _write(starts, old)
  out, new = call.rule.forward(tuple(map(_read, operands)), old)
  _write(y, out)
  state[...] = new

  @pl.when(t == pl.num_programs(2) - 1)
  def _():
    _write(final, new)


def _backward_kernel(*refs, call: Call):
  layouts = call.rule.operands
  n = len(layouts)
  operands, starts, dy, d_final = refs[:n], refs[n], refs[n + 1], refs[n + 2]
  gradients, d_initial, d_state = refs[n + 3 : 2 * n + 3], refs[-2], refs[-1]
  t = pl.program_id(2)  # counts from the last chunk

  @pl.when(t == 0)
  def _():
    d_state[...] = _read(d_final)
    for layout, ref in zip(layouts, gradients):
      if layout == "head":
        ref[...] = jnp.zeros_like(ref)

  values, d_old = call.rule.backward(
    tuple(map(_read, operands)), _read(starts), _read(dy), d_state[...]
  )
  for layout, ref, value in zip(layouts, gradients, values):
    _write(ref, _read(ref) + value if layout == "head" else value)
  d_state[...] = d_old

  @pl.when(t == pl.num_programs(2) - 1)
  def _():
    _write(d_initial, d_old)


def _cost(call: Call, backward: bool, shapes, specs, grid) -> pl.CostEstimate:
  """Bytes: a block counts in every grid step; of those that stay in place the difference is small."""
  steps = math.prod(grid)
  moved = sum(math.prod(spec.block_shape) * s.dtype.itemsize for s, spec in zip(shapes, specs))
  return pl.CostEstimate(
    flops=steps * call.flops[backward],
    transcendentals=steps * call.exps[backward],
    bytes_accessed=steps * moved,
  )


def forward(call: Call, operands, state_BFE, *, with_starts: bool):
  """(y, final state_BFE, starts_BCFE or None). T is a multiple of the chunk; the state is float32."""
  like = operands[call.rule.like]
  B, T = like.shape[:2]
  grid = B, call.num_blocks, T // call.chunk
  state = jax.ShapeDtypeStruct(state_BFE.shape, jnp.float32)
  starts = jax.ShapeDtypeStruct((B, grid[2], *state_BFE.shape[1:]), jnp.float32)

  def now(t):
    return t

  in_specs = [_block(call, k, x.shape, now) for k, x in zip(call.rule.operands, operands)]
  in_specs.append(_state(call, state.shape))
  out_shape = [jax.ShapeDtypeStruct(like.shape, like.dtype), state] + [starts] * with_starts
  out_specs = [_block(call, "wide", like.shape, now), _state(call, state.shape)]
  out_specs += [_starts(call, state.shape, now)] * with_starts
  shapes, specs = [*operands, state, *out_shape], in_specs + out_specs
  out = pl.pallas_call(
    functools.partial(_forward_kernel, call=call, with_starts=with_starts),
    name=f"{call.rule.name}_forward",
    grid=grid,
    in_specs=in_specs,
    out_specs=out_specs,
    out_shape=out_shape,
    scratch_shapes=[pltpu.VMEM(in_specs[-1].block_shape[1:], jnp.float32)],
    cost_estimate=_cost(call, False, shapes, specs, grid),
    **pallas_support.on_tpu("parallel", "parallel", "arbitrary"),
  )(*operands, state_BFE)
  return out[0], out[1], out[2] if with_starts else None


def backward(call: Call, operands, starts_BCFE, dy, d_final_BFE):
  """(gradients of the operands in their dtypes, of the initial state)."""
  B, C = starts_BCFE.shape[:2]
  J, Q = call.num_blocks, call.chunk
  grid = B, J, C
  state = jax.ShapeDtypeStruct(d_final_BFE.shape, jnp.float32)

  def now(t):
    return C - 1 - t

  in_specs = [_block(call, k, x.shape, now) for k, x in zip(call.rule.operands, operands)]
  in_specs += [
    _starts(call, state.shape, now),
    _block(call, "wide", dy.shape, now),
    _state(call, state.shape),
  ]
  out_shape, out_specs = [], []
  for layout, x, spec in zip(call.rule.operands, operands, in_specs):
    if layout == "group":  # one part per block of heads, summed outside
      W = x.shape[2] // call.num_groups
      out_shape.append(jax.ShapeDtypeStruct((B, J, C * Q, W), jnp.float32))
      out_specs.append(pl.BlockSpec((1, 1, Q, W), lambda b, j, t: (b, j, now(t), 0)))
    elif layout == "head":
      out_shape.append(jax.ShapeDtypeStruct((B, J, x.shape[1], Q), jnp.float32))
      out_specs.append(pl.BlockSpec((1, 1, x.shape[1], Q), lambda b, j, t: (b, j, 0, 0)))
    else:
      out_shape.append(jax.ShapeDtypeStruct(x.shape, x.dtype))
      out_specs.append(spec)
  out_shape.append(state)
  out_specs.append(_state(call, state.shape))
  shapes = [*operands, starts_BCFE, dy, state, *out_shape]
  *gradients, d_initial = pl.pallas_call(
    functools.partial(_backward_kernel, call=call),
    name=f"{call.rule.name}_backward",
    grid=grid,
    in_specs=in_specs,
    out_specs=out_specs,
    out_shape=out_shape,
    scratch_shapes=[pltpu.VMEM(in_specs[-1].block_shape[1:], jnp.float32)],
    cost_estimate=_cost(call, True, shapes, in_specs + out_specs, grid),
    **pallas_support.on_tpu("parallel", "parallel", "arbitrary"),
  )(*operands, starts_BCFE, dy, d_final_BFE)
  for i, (layout, x) in enumerate(zip(call.rule.operands, operands)):
    if layout == "group":
      parts = gradients[i].reshape(B, call.num_groups, -1, C * Q, x.shape[2] // call.num_groups)
      gradients[i] = jnp.moveaxis(jnp.sum(parts, 2), 1, 2).reshape(x.shape).astype(x.dtype)
    elif layout == "head":
      gradients[i] = jnp.sum(gradients[i], (0, 3))[..., None].astype(x.dtype)
  return tuple(gradients), d_initial


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def recurrence(call: Call, operands, state_BFE):
  """(y, final state_BFE) over whole chunks, differentiable in operands and state."""
  return forward(call, operands, state_BFE, with_starts=False)[:2]


def _recurrence_fwd(call, operands, state_BFE):
  y, final_BFE, starts_BCFE = forward(call, operands, state_BFE, with_starts=True)
  return (y, final_BFE), (operands, starts_BCFE)


def _recurrence_bwd(call, residuals, cotangents):
  return backward(call, *residuals, *cotangents)


recurrence.defvjp(_recurrence_fwd, _recurrence_bwd)


def over_mesh(fn, arguments, layouts: str, results: str, spec):
  """fn(*arguments) under shard_map. layouts, results: a letter per array, "w" (B, T, N, ...), "g"
  (B, T, one for all heads, ...), "s" (B, N, ...), "n" (N); spec: of "w".
  """
  if spec is None or jax.sharding.get_abstract_mesh().size <= 1:
    return fn(*arguments)
  batch, _, heads = (names(part) or None for part in (*spec, None, None, None)[:3])
  places = {
    "w": jax.P(batch, None, heads),
    "g": jax.P(batch),
    "s": jax.P(batch, heads),
    "n": jax.P(heads),
  }
  return jax.shard_map(
    fn,
    in_specs=tuple(places[k] for k in layouts),
    out_specs=tuple(places[k] for k in results),
    check_vma=False,
  )(*arguments)
