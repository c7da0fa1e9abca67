"""Attention by blocks of queries, in plain XLA: O(T * block) memory forward and backward.

Axes as in reference.py; Q queries of one block, W keys that a block may see.

The grid is static. Without a window the queries are cut into a few query ranges, each scanned block by
block against the keys up to the end of the range; with a window every block slices the keys it can
reach. A block sees all its keys at once, so nothing is rescaled and biases that need whole rows
(CoPE) work as well. Only o and the log-sum-exp are kept for the backward pass, which computes the
scores of a block again:

  p = exp(s - lse);  dv^T = do^T p;  ds = p (do v^T - sum(do o));
  dc, dbias = vjp of s, a function of the products c = q k^T, at ds;  dq = dc k;  dk^T = q^T dc,

with p and dc in the dtype of the products, as the other implementations have them, and sums in
float32.

Keys and values are turned once, and their gradients are summed turned: no product then has p or dc,
the largest arrays here, transposed, which a CPU copies first.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.kernels.attention import blocks
from jaxlm.kernels.attention.reference import (
  AttentionSpec,
  MaskInputs,
  from_products,
  products,
  softmax,
  weighted_sum,
)


class QueryRange(NamedTuple):
  """Query blocks first .. first + count - 1, each against `width` keys: from 0, or sliding with the
  block.
  """

  first: int
  count: int
  width: int
  sliding: bool


def plan(T: int, S: int, block: int, rule: AttentionSpec) -> list[QueryRange]:
  """The static grid: query ranges that together hold ceil(T / block) query blocks."""
  num_blocks = -(-T // block)
  if rule.contiguous and rule.window is not None:
    reach = block + rule.window - 1 + (0 if rule.causal else rule.window - 1)
    if reach < S:
      return [QueryRange(0, num_blocks, reach, True)]
  if not (rule.contiguous and rule.causal):
    return [QueryRange(0, num_blocks, S, False)]
  count = -(-num_blocks // blocks.NUM_QUERY_RANGES)
  return [
    QueryRange(first, min(count, num_blocks - first), min(S, (first + count) * block), False)
    for first in range(0, num_blocks, count)
  ]


def _cut(x, start, size, axis):
  return None if x is None else jax.lax.dynamic_slice_in_dim(x, start, size, axis)


class _Blocks:
  """Slices of all arguments for block n of a query range, and their adjoint for keys and values."""

  def __init__(self, query_range: QueryRange, block: int, S: int, rule: AttentionSpec):
    self.query_range, self.block, self.S, self.rule = query_range, block, S, rule

  def starts(self, n):
    start_q = n * self.block
    if not self.query_range.sliding:
      return start_q, 0
    return start_q, jnp.clip(start_q - (self.rule.window - 1), 0, self.S - self.query_range.width)

  def mask_inputs(self, mask_inputs: MaskInputs, start_q, start_k):
    return MaskInputs(
      _cut(mask_inputs.i_BT, start_q, self.block, 1),
      _cut(mask_inputs.j_BS, start_k, self.query_range.width, 1),
      _cut(mask_inputs.q_segment_ids_BT, start_q, self.block, 1),
      _cut(mask_inputs.kv_segment_ids_BS, start_k, self.query_range.width, 1),
      None if mask_inputs.structure is None else mask_inputs.structure.cut(start_q, self.block),
    )

  def scores(self, c_BNQW, q_BNQH, mask_inputs, biases, start_q, start_k):
    """Scores of one block, whose products are c, from the *whole* biases: their gradient comes back
    whole.
    """
    biases = tuple(b.cut(start_q, self.block, start_k, self.query_range.width) for b in biases)
    return from_products(c_BNQW, q_BNQH, mask_inputs, biases, self.rule)


def _pad_queries(x, padded: int, axis: int):
  if x is None or x.shape[axis] == padded:
    return x
  widths = [(0, 0)] * x.ndim
  widths[axis] = (0, padded - x.shape[axis])
  return jnp.pad(x, widths)


def _pad_mask_inputs(mask_inputs: MaskInputs, padded: int) -> MaskInputs:
  return MaskInputs(
    _pad_queries(mask_inputs.i_BT, padded, 1),
    mask_inputs.j_BS,
    _pad_queries(mask_inputs.q_segment_ids_BT, padded, 1),
    mask_inputs.kv_segment_ids_BS,
    None if mask_inputs.structure is None else mask_inputs.structure.pad_queries(padded),
  )


def _join(parts, axis: int = 2):
  """Blocks stacked on the leading axis, per query range, to one array with time at `axis`."""
  flat = jnp.moveaxis(jnp.concatenate(parts, axis=0), 0, axis)
  return flat.reshape(*flat.shape[:axis], -1, *flat.shape[axis + 2 :])


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _attention(q_BNTH, k_BKSH, v_BKSF, mask_inputs, biases, rule: AttentionSpec, block: int):
  return _forward(q_BNTH, k_BKSH, v_BKSF, mask_inputs, biases, rule, block)[0]


def _forward(q_BNTH, k_BKSH, v_BKSF, mask_inputs, biases, rule, block):
  S, dtype, outs, lses = k_BKSH.shape[2], q_BNTH.dtype, [], []
  k_BKHS = k_BKSH.swapaxes(2, 3)
  for query_range in plan(q_BNTH.shape[2], S, block, rule):
    cut = _Blocks(query_range, block, S, rule)

    def step(_, n, cut=cut, query_range=query_range):
      start_q, start_k = cut.starts(n)
      q_BNQH = _cut(q_BNTH, start_q, block, 2)
      s_BNQW = cut.scores(
        products(q_BNQH, _cut(k_BKHS, start_k, query_range.width, 3)),
        q_BNQH,
        cut.mask_inputs(mask_inputs, start_q, start_k),
        biases,
        start_q,
        start_k,
      )
      p_BNQW, l_BNQ1, m_BNQ1 = softmax(s_BNQW, rule.softmax1)
      l_BNQ1 = jnp.where(l_BNQ1 == 0, 1.0, l_BNQ1)
      o_BNQF = weighted_sum(p_BNQW, _cut(v_BKSF, start_k, query_range.width, 2)) / l_BNQ1
      return None, (o_BNQF.astype(dtype), (m_BNQ1 + jnp.log(l_BNQ1))[..., 0])

    _, (o, lse) = jax.lax.scan(step, None, query_range.first + jnp.arange(query_range.count))
    outs.append(o)
    lses.append(lse)
  o_BNTF, lse_BNT = _join(outs), _join(lses)
  return o_BNTF, (q_BNTH, k_BKSH, v_BKSF, mask_inputs, biases, o_BNTF, lse_BNT)


def _backward(rule, block, residuals, do_BNTF):
  q_BNTH, k_BKSH, v_BKSF, mask_inputs, biases, o_BNTF, lse_BNT = residuals
  B, N, T, _ = q_BNTH.shape
  K, S = k_BKSH.shape[1:3]
  delta_BNT = jnp.sum(do_BNTF.astype(jnp.float32) * o_BNTF.astype(jnp.float32), -1)
  k_BKHS, v_BKFS = k_BKSH.swapaxes(2, 3), v_BKSF.swapaxes(2, 3)

  def zeros(x):
    return jnp.zeros(x.shape, jnp.float32)

  dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  sums, dqs = (zeros(k_BKHS), zeros(v_BKFS), jax.tree.map(zeros, biases)), []
  for query_range in plan(T, S, block, rule):
    cut = _Blocks(query_range, block, S, rule)

    def step(sums, n, cut=cut, query_range=query_range):
      dk_BKHS, dv_BKFS, dbiases = sums
      start_q, start_k = cut.starts(n)
      local, width = cut.mask_inputs(mask_inputs, start_q, start_k), query_range.width
      q_BNQH, do_BNQF = _cut(q_BNTH, start_q, block, 2), _cut(do_BNTF, start_q, block, 2)
      s_BNQW, pull = jax.vjp(
        lambda c, q, biases: cut.scores(c, q, local, biases, start_q, start_k),
        products(q_BNQH, _cut(k_BKHS, start_k, width, 3)),
        q_BNQH,
        biases,
      )
      p_BNQW = jnp.exp(s_BNQW - _cut(lse_BNT, start_q, block, 2)[..., None])

      def group(x):
        return x.reshape(B, K, N // K, *x.shape[2:])

      q_BKGQH, do_BKGQF = group(q_BNQH), group(do_BNQF)
      dv_BKFW = dot("bkgqf,bkgqw->bkfw", do_BKGQF, group(p_BNQW.astype(v_BKSF.dtype)))
      dp_BKGQW = dot("bkgqf,bkfw->bkgqw", do_BKGQF, _cut(v_BKFS, start_k, width, 3))
      ds_BNQW = p_BNQW * (
        dp_BKGQW.reshape(p_BNQW.shape) - _cut(delta_BNT, start_q, block, 2)[..., None]
      )
      dc_BNQW, dq_BNQH, db = pull(ds_BNQW)
      dc_BKGQW = group(dc_BNQW.astype(jnp.result_type(q_BNTH, k_BKSH)))
      dq_BKGQH = dot("bkgqw,bkwh->bkgqh", dc_BKGQW, _cut(k_BKSH, start_k, width, 2))
      dq_BNQH += dq_BKGQH.reshape(dq_BNQH.shape).astype(dq_BNQH.dtype)
      dk_BKHW = dot("bkgqh,bkgqw->bkhw", q_BKGQH, dc_BKGQW)

      def add(total, part):
        return jax.lax.dynamic_update_slice_in_dim(
          total, _cut(total, start_k, width, 3) + part, start_k, 3
        )

      dbiases = jax.tree.map(lambda total, part: total + part.astype(jnp.float32), dbiases, db)
      return (add(dk_BKHS, dk_BKHW), add(dv_BKFS, dv_BKFW), dbiases), dq_BNQH

    sums, dq = jax.lax.scan(step, sums, query_range.first + jnp.arange(query_range.count))
    dqs.append(dq)

  def cast(gradient, x):
    return gradient.astype(x.dtype)

  dk_BKHS, dv_BKFS, dbiases = sums
  return (
    _join(dqs),
    cast(dk_BKHS.swapaxes(2, 3), k_BKSH),
    cast(dv_BKFS.swapaxes(2, 3), v_BKSF),
    None,
    jax.tree.map(cast, dbiases, biases),
  )


_attention.defvjp(_forward, _backward)


def attention(
  q_BTNH,
  k_BSKH,
  v_BSKF,
  mask_inputs: MaskInputs,
  biases: tuple,
  rule: AttentionSpec,
  *,
  block: int | None = None,
):
  """As reference.attention. block: queries at a time; None takes blocks.query_block."""
  B, T, N, _ = q_BTNH.shape
  block = block or blocks.query_block(B * N, T, k_BSKH.shape[1])
  block = min(block, T)
  padded = -(-T // block) * block
  if rule.contiguous:  # padded queries count on, so that the grid stays the grid
    mask_inputs = MaskInputs(
      jnp.arange(padded, dtype=jnp.int32)[None],
      mask_inputs.j_BS,
      mask_inputs.q_segment_ids_BT,
      mask_inputs.kv_segment_ids_BS,
      mask_inputs.structure,
    )
  biases = tuple(b.pad_queries(padded) for b in biases)
  o_BNTF = _attention(
    _pad_queries(q_BTNH.swapaxes(1, 2), padded, 2),
    k_BSKH.swapaxes(1, 2),
    v_BSKF.swapaxes(1, 2),
    _pad_mask_inputs(mask_inputs, padded),
    biases,
    rule,
    block,
  )
  return o_BNTF[:, :, :T].swapaxes(1, 2)
