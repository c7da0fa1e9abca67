"""Flash attention with biases computed in the kernel, for Hopper GPUs: what it covers, its arguments
and its gradient.

Axes: B batch, T queries, S keys, N query heads, K kv heads, H head_dim of q and k, F of v, R
distances.

Biases come as in `pallas_tpu`: numbers by distance, one line per head, and numbers by query and by
key. For a tile of scores 64 shifted copies of the line are a strip in memory, (heads, 64, T + S).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.kernels import mosaic_support
from jaxlm.kernels.attention.bias import KeyBias, skew
from jaxlm.kernels.attention.operands import numbers, pad, segments
from jaxlm.kernels.attention.reference import AttentionSpec, MaskInputs
from jaxlm.kernels.mosaic_support import ROWS
from jaxlm.kernels.pallas_support import round_up

HEAD_SIZES = (64, 128)
BLOCK = 128  # queries of a block of threads, and what lengths are padded to


def supports(
  q, k, v, mask_inputs: MaskInputs, biases: tuple, rule: AttentionSpec, spec=None
) -> str | None:
  """None, or the sentence that says why not. q, k, v: anything with shape and dtype."""
  reason = mosaic_support.why_not_here()
  if reason is not None:
    return reason
  if spec is None and jax.sharding.get_abstract_mesh().size > 1:
    return "the compiler does not partition it: under a mesh of several devices pass spec, q's PartitionSpec"
  if q.dtype not in (jnp.bfloat16, jnp.float16) or not q.dtype == k.dtype == v.dtype:
    return (
      f"dtypes are {q.dtype}, {k.dtype}, {v.dtype}; it wants one of bfloat16, float16 for all: set the "
      'compute dtype, or use implementation="xla"'
    )
  if q.shape[-1] not in HEAD_SIZES or v.shape[-1] not in HEAD_SIZES:
    return (
      f"head sizes {q.shape[-1]}, {v.shape[-1]} are not 64 or 128, the tiles of its products; use "
      'implementation="xla"'
    )
  if not rule.contiguous:
    return "its tiles count queries and keys from 0: explicit indices cannot be used"
  for bias in biases:
    if not isinstance(bias, KeyBias) and bias.by_distance(jnp.zeros((1,), jnp.int32)) is None:
      return f"{type(bias).__name__} depends on a whole row of keys, and a tile sees a part of it"
  return None


class Arguments(NamedTuple):
  """As `mosaic_parts.Operands`, with line_NR in place of its strips: the bias at distances 1 - S ..
  T - 1.
  """

  q: Any
  k: Any
  v: Any
  line: Any
  row: Any
  column: Any
  q_segment: Any
  k_segment: Any


def _strip(line_NR, turned: bool):
  """Shifted copies of the line, (N, 64, R - 63)."""
  line_NR = line_NR if turned else line_NR[:, ::-1]
  return skew(line_NR, ROWS, line_NR.shape[1] + 1 - ROWS)


def _operands(x: Arguments, backward: bool):
  from jaxlm.kernels.attention.mosaic_parts import Operands

  there = x.line is not None
  return Operands(
    x.q,
    x.k,
    x.v,
    _strip(x.line, False) if there else None,
    _strip(x.line, True) if there and backward else None,
    *x[4:],
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(call, x: Arguments):
  return _forward(call, x)[0]


def _forward(call, x: Arguments):
  from jaxlm.kernels.attention import mosaic_forward

  o_BTNF, lse_BNT = mosaic_forward.forward(call, _operands(x, False))
  return o_BTNF, (x, o_BTNF, lse_BNT)


def _backward(call, residuals, do_BTNF):
  from jaxlm.kernels.attention import mosaic_backward

  x, o_BTNF, lse_BNT = residuals
  delta_BNT = jnp.sum(do_BTNF.astype(jnp.float32) * o_BTNF.astype(jnp.float32), 3).swapaxes(1, 2)
  d = mosaic_backward.backward(call, _operands(x, True), do_BTNF, lse_BNT, delta_BNT)

  def ungroup(y_BSNH, like):
    B, S, K, H = like.shape
    if y_BSNH.shape == like.shape:
      return y_BSNH
    return jnp.sum(y_BSNH.astype(jnp.float32).reshape(B, S, K, -1, H), 3).astype(like.dtype)

  def number(y_BNX, like_BNPX):
    # Every pair of numbers has the same gradient; one for all heads gets their sum.
    if like_BNPX is None:
      return None
    y_BNX = jnp.sum(y_BNX, 1, keepdims=True) if like_BNPX.shape[1] == 1 else y_BNX
    return jnp.broadcast_to(y_BNX[:, :, None], like_BNPX.shape)

  line = None
  if x.line is not None:
    line = jax.vjp(functools.partial(_strip, turned=False), x.line)[1](d["d_strip"])[0]
  return (
    Arguments(
      d["dq"],
      ungroup(d["dk"], x.k),
      ungroup(d["dv"], x.v),
      line,
      number(d.get("d_row"), x.row),
      number(d.get("d_column"), x.column),
      None,
      None,
    ),
  )


_attention.defvjp(_forward, _backward)


def _arguments(q_BTNH, k_BSKH, v_BSKF, mask_inputs: MaskInputs, biases: tuple) -> Arguments:
  """Arguments padded to whole blocks."""
  B, T, S = q_BTNH.shape[0], *(round_up(x.shape[1], BLOCK) for x in (q_BTNH, k_BSKH))
  line = None
  by_distance = [b for b in biases if not isinstance(b, KeyBias)]
  if by_distance:
    line = sum(b.by_distance(-jnp.arange(1 - S, T, dtype=jnp.int32)) for b in by_distance)
  row, column = numbers(biases, mask_inputs, k_BSKH.shape[1], S)
  q_segment, k_segment = segments(mask_inputs, B, T, S)

  def whole(x):
    return None if x is None else jnp.broadcast_to(x, (B, *x.shape[1:]))

  if column is not None:
    column = whole(pad(column, T, 3))
  return Arguments(
    pad(q_BTNH, T, 1),
    pad(k_BSKH, S, 1),
    pad(v_BSKF, S, 1),
    line,
    whole(row),
    column,
    q_segment,
    k_segment,
  )


def _over_mesh(fn, x: Arguments, spec):
  """fn under shard_map: batch and heads placed by spec."""
  batch, time, heads = (*spec, None, None, None)[:3]
  if time is not None:
    raise ValueError(
      f"spec {spec} shards time; the Pallas attention needs it whole: gather the sequence axis first"
    )
  tokens, ids = jax.P(batch, None, heads, None), jax.P(batch, None)

  def number(array):
    return jax.P(batch, heads if array is not None and array.shape[1] > 1 else None, None, None)

  specs = Arguments(
    tokens, tokens, tokens, jax.P(heads, None), number(x.row), number(x.column), ids, ids
  )
  specs = Arguments(*(None if array is None else place for array, place in zip(x, specs)))
  return jax.shard_map(fn, in_specs=(specs,), out_specs=specs.q, check_vma=False)(x)


def attention(
  q_BTNH, k_BSKH, v_BSKF, mask_inputs: MaskInputs, biases: tuple, rule: AttentionSpec, spec=None
):
  """As reference.attention. Under a mesh of several devices `spec` places q (B, T, N, H); the rest
  follows it.
  """
  from jaxlm.kernels.attention.mosaic_parts import Call

  x = _arguments(q_BTNH, k_BSKH, v_BSKF, mask_inputs, biases)
  fn = functools.partial(_attention, Call(rule, x.q.shape[1], x.k.shape[1], **_blocks(x)))
  if spec is not None and jax.sharding.get_abstract_mesh().size > 1:
    o_BTNF = _over_mesh(fn, x, spec)
  else:
    o_BTNF = fn(x)
  return o_BTNF[:, : q_BTNH.shape[1]]


def _blocks(x: Arguments) -> dict:
  """Keys of a tile, so that a tile's numbers fit into registers and all buffers into shared memory."""
  wide = max(x.q.shape[-1], x.v.shape[-1]) > HEAD_SIZES[0]
  return dict(block_k=64 if wide and x.line is not None else 128, block_back=64)
