"""Flash attention with biases computed in the kernel, for TPUs: what it covers, its arguments and
its gradient.

Axes: B batch, T queries, S keys, N query heads, K kv heads, H head_dim of q and k, F of v, P pairs
of numbers per query and key, R distances.

Biases come in two kinds, both small: numbers by distance, one line per head (LinearBias,
BucketBias; several are added up), and numbers by query and by key (KeyBias). A key that no query
may see has an infinite number, in effect.
"""

import functools

import jax
import jax.numpy as jnp

from jaxlm.kernels.attention import blocks
from jaxlm.kernels.attention import pallas_kernels as kernels
from jaxlm.kernels.attention.bias import KeyBias
from jaxlm.kernels.attention.operands import numbers, pad, segments
from jaxlm.kernels.attention.pallas_kernels import Call, Operands
from jaxlm.kernels.attention.reference import AttentionSpec, MaskInputs
from jaxlm.kernels.attention.tiles import tiles
from jaxlm.kernels.pallas_support import round_up, vmem_bytes, why_not_here
from jaxlm.kernels.platform import target_device_kind


def supports(
  q, k, v, mask_inputs: MaskInputs, biases: tuple, rule: AttentionSpec, spec=None
) -> str | None:
  """None, or the sentence that says why not. q, k, v: anything with shape and dtype."""
  reason = why_not_here()
  if reason is not None:
    return reason
  if spec is None and jax.sharding.get_abstract_mesh().size > 1:
    return "the compiler does not partition it: under a mesh of several devices pass spec, q's PartitionSpec"
  if q.dtype not in (jnp.bfloat16, jnp.float32) or not q.dtype == k.dtype == v.dtype:
    return f"dtypes are {q.dtype}, {k.dtype}, {v.dtype}; it wants one of bfloat16, float32 for all"
  if not rule.contiguous:
    return "its tiles count queries and keys from 0: explicit indices cannot be used"
  for bias in biases:
    if not isinstance(bias, KeyBias) and bias.by_distance(jnp.zeros((1,), jnp.int32)) is None:
      return f"{type(bias).__name__} depends on a whole row of keys, and a tile sees a part of it"
  need, most = _vmem_bytes(q, k, v, biases, rule), vmem_bytes(target_device_kind())
  if need > most:
    return (
      f"{q.shape[1]} queries and {k.shape[1]} keys need about {need >> 20} MiB of on-chip memory in the backward pass, "
      f"and it takes at most {most >> 20}; use the XLA form"
    )
  return None


def _grids(q, k, rule: AttentionSpec):
  """(forward, backward) grids over equally padded lengths. q (B, T, ...), k (B, S, ...)."""
  sizes = blocks.pallas_blocks(q.shape[1], k.shape[1], rule.causal or rule.window is not None)
  longest = [max(pair) for pair in zip(*sizes)]
  return tuple(
    tiles(round_up(q.shape[1], longest[0]), round_up(k.shape[1], longest[1]), *pair, rule)
    for pair in sizes
  )


def _vmem_bytes(q, k, v, biases, rule) -> int:
  strip = any(not isinstance(bias, KeyBias) for bias in biases)
  return max(
    grid.vmem_bytes(q.shape[-1], v.shape[-1], q.dtype.itemsize, strip, backward)
    for grid, backward in zip(_grids(q, k, rule), (False, True))
  )


def _precision(dtype):
  """Of the products: one pass for bfloat16; float32 as jax_default_matmul_precision asks, which
  knows two ways here.
  """
  one_pass = dtype == jnp.bfloat16 or jax.config.jax_default_matmul_precision in (
    None,
    "default",
    "bfloat16",
    "fastest",
  )
  return jax.lax.Precision.DEFAULT if one_pass else jax.lax.Precision.HIGHEST


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(call: Call, x: Operands):
  return _forward(call, x)[0]


def _line(grid, line_NR):
  """Of all distances -S .. T - 1 those of the grid's strip: from its least one, then those left of
  it, which wrap around.
  """
  low, high = grid.distances
  line_NR = line_NR[:, low - grid.block_k + grid.S : high + grid.block_q + grid.S]
  return jnp.roll(line_NR, -grid.block_k, axis=1)[:, None]


def _forward(call: Call, x: Operands):
  line = None if x.line is None else _line(call.forward, x.line)
  o_BNFT, lse_BN1T = kernels.forward(call, x._replace(line=line))
  return o_BNFT, (x, o_BNFT, lse_BN1T)


def _backward(call: Call, residuals, do_BNFT):
  x, o_BNFT, lse_BN1T = residuals
  delta_BN1T = jnp.sum(do_BNFT.astype(jnp.float32) * o_BNFT.astype(jnp.float32), 2, keepdims=True)
  line, unskew = (
    (None, None) if x.line is None else jax.vjp(functools.partial(_line, call.backward), x.line)
  )
  d = kernels.backward(call, x._replace(line=line), do_BNFT, lse_BN1T, delta_BN1T)
  B, K = x.k.shape[:2]

  def ungroup(y, like):
    return jnp.sum(y.reshape(B, K, -1, *y.shape[2:]), 2).astype(like.dtype) if y.shape[1] > K else y

  def number(
    name, like
  ):  # every pair of numbers has the same gradient; one for all heads gets their sum
    if like is None:
      return None
    y = d[name]
    return jnp.broadcast_to(jnp.sum(y, 1, keepdims=True) if like.shape[1] == 1 else y, like.shape)

  return (
    Operands(
      d["dq"],
      ungroup(d["dk"], x.k),
      ungroup(d["dv"], x.v),
      None if line is None else unskew(d["d_line"])[0],
      number("d_row", x.row),
      number("d_column", x.column),
      None,
      None,
    ),
  )


_attention.defvjp(_forward, _backward)


def _operands(
  q_BTNH, k_BSKH, v_BSKF, mask_inputs: MaskInputs, biases: tuple, T: int, S: int
) -> Operands:
  """Arguments padded to T queries and S keys."""
  B = q_BTNH.shape[0]
  line = None
  by_distance = [b for b in biases if not isinstance(b, KeyBias)]
  if by_distance:
    line = sum(b.by_distance(-jnp.arange(-S, T, dtype=jnp.int32)) for b in by_distance)
  row, column = numbers(biases, mask_inputs, k_BSKH.shape[1], S)
  q_segment, k_segment = (
    None if ids is None else ids[:, None] for ids in segments(mask_inputs, B, T, S)
  )

  def whole(x):
    return None if x is None else jnp.broadcast_to(x, (B, *x.shape[1:]))

  def turned(x, length):
    return pad(x.transpose(0, 2, 3, 1), length, 3)

  return Operands(
    turned(q_BTNH, T),
    turned(k_BSKH, S),
    turned(v_BSKF, S),
    line,
    whole(row),
    None if column is None else pad(whole(column), T, 3),
    q_segment,
    k_segment,
  )


def _over_mesh(fn, x: Operands, spec):
  """fn under shard_map: batch and heads placed by spec."""
  batch, time, heads = (*spec, None, None, None)[:3]
  if time is not None:
    raise ValueError(
      f"spec {spec} shards time; the Pallas attention needs it whole: gather the sequence axis first"
    )
  by_head, ids = jax.P(batch, heads, None, None), jax.P(batch, None, None)
  shared = jax.P(batch, None, None, None)  # one for all heads

  def number(array):
    return None if array is None else by_head if array.shape[1] == x.q.shape[1] else shared

  specs = Operands(
    by_head, by_head, by_head, jax.P(heads, None), number(x.row), number(x.column), ids, ids
  )
  specs = Operands(*(None if array is None else place for array, place in zip(x, specs)))
  return jax.shard_map(fn, in_specs=(specs,), out_specs=specs.q, check_vma=False)(x)


def attention(
  q_BTNH, k_BSKH, v_BSKF, mask_inputs: MaskInputs, biases: tuple, rule: AttentionSpec, spec=None
):
  """As reference.attention. Under a mesh of several devices `spec` places q (B, T, N, H); the rest
  follows it.
  """
  grids = _grids(q_BTNH, k_BSKH, rule)
  call = Call(rule, *grids, _precision(q_BTNH.dtype))
  x = _operands(q_BTNH, k_BSKH, v_BSKF, mask_inputs, biases, grids[0].T, grids[0].S)
  fn = functools.partial(_attention, call)
  if spec is not None and jax.sharding.get_abstract_mesh().size > 1:
    o_BNFT = _over_mesh(fn, x, spec)
  else:
    o_BNFT = fn(x)
  return o_BNFT[..., : q_BTNH.shape[1]].transpose(0, 3, 1, 2)
