"""JAX's splash attention on TPU: block-sparse flash attention with window, segments and softcap."""

import functools

import jax
import jax.numpy as jnp

from jaxlm.kernels.attention import blocks
from jaxlm.kernels.attention.reference import AttentionSpec, MaskInputs
from jaxlm.kernels.platform import target_platform


def supports(
  q, k, v, mask_inputs: MaskInputs, biases: tuple, rule: AttentionSpec, spec=None
) -> str | None:
  """None, or the sentence that says why not. q, k, v: anything with shape and dtype."""
  if target_platform() != "tpu":
    return f"the trace is for {target_platform()}, splash attention needs a TPU"
  precision = jax.config.jax_default_matmul_precision
  if q.dtype != jnp.float32 and precision not in (None, "default", "bfloat16", "fastest"):
    return f"its {q.dtype} products do not compile with jax_default_matmul_precision={precision!r}"
  if biases or rule.softmax1:
    return "biases and softmax1 are not in its kernel"
  if not rule.contiguous:
    return "its mask is static: explicit indices cannot be used"
  if q.shape[1] != k.shape[1]:
    return f"{q.shape[1]} queries and {k.shape[1]} keys: only self-attention is covered"
  if q.shape[1] % 128:
    return f"length {q.shape[1]} is not a multiple of 128"
  if (
    mask_inputs.kv_segment_ids_BS is not None
  ) and mask_inputs.q_segment_ids_BT is not mask_inputs.kv_segment_ids_BS:
    return "queries and keys have segment ids of their own"
  return None


def _kernel(length: int, heads: int, rule: AttentionSpec, block: int, interpret: bool = False):
  from jax.experimental.pallas.ops.tpu.splash_attention import (
    BlockSizes,
    CausalMask,
    FullMask,
    LocalMask,
    MultiHeadMask,
    make_splash_mqa_single_device,
  )

  shape = (length, length)
  if rule.window is not None:
    mask = LocalMask(shape, (rule.window - 1, 0 if rule.causal else rule.window - 1), 0)
  else:
    mask = CausalMask(shape) if rule.causal else FullMask(shape)
  sizes = BlockSizes(
    block_q=block,
    block_kv=block,
    block_kv_compute=block,
    block_q_dkv=block,
    block_kv_dkv=block,
    block_kv_dkv_compute=block,
    block_q_dq=block,
    block_kv_dq=block,
  )
  # Made anew in every trace: its tables become constants of that trace, and under the mesh of a
  # slice that is not there nothing may be computed ahead of it.
  return make_splash_mqa_single_device(
    MultiHeadMask([mask] * heads),
    block_sizes=sizes,
    attn_logits_soft_cap=rule.softcap,
    interpret=interpret,
  )


def _whole_lanes(x):
  """Zeros behind the head's channels, to a multiple of 64: they change neither a score nor a value."""
  return jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((0, -x.shape[-1] % 64),))


def _attention(q_BTNH, k_BSKH, v_BSKF, segment_ids_BT, *, rule: AttentionSpec, block: int):
  from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

  B, T, N, _ = q_BTNH.shape
  K, F = v_BSKF.shape[2:]
  kernel = _kernel(T, N // K, rule, block)
  q_BTNH, k_BSKH, v_BSKF = map(_whole_lanes, (q_BTNH, k_BSKH, v_BSKF))
  q_BKGTH = (
    (q_BTNH * jnp.asarray(rule.scale, q_BTNH.dtype))
    .reshape(B, T, K, N // K, -1)
    .transpose(0, 2, 3, 1, 4)
  )
  segments = None if segment_ids_BT is None else SegmentIds(segment_ids_BT, segment_ids_BT)
  over_heads = jax.vmap(kernel, in_axes=(0, 0, 0, None))
  o_BKGTF = jax.vmap(over_heads, in_axes=(0, 0, 0, None if segments is None else 0))(
    q_BKGTH, k_BSKH.swapaxes(1, 2), v_BSKF.swapaxes(1, 2), segments
  )
  o_BTNF = o_BKGTF.transpose(0, 3, 1, 2, 4).reshape(B, T, N, -1)[..., :F]
  if segment_ids_BT is not None:  # the kernel lets padding see padding
    o_BTNF = jnp.where((segment_ids_BT != 0)[:, :, None, None], o_BTNF, 0)
  return o_BTNF.astype(q_BTNH.dtype)


def attention(q_BTNH, k_BSKH, v_BSKF, segment_ids_BT, rule: AttentionSpec, spec=None):
  """Under a mesh of several devices `spec` places q (B, T, N, H); k and v follow it; T must be
  whole.
  """
  fn = functools.partial(_attention, rule=rule, block=blocks.splash_block(q_BTNH.shape[1]))
  if spec is not None and jax.sharding.get_abstract_mesh().size > 1:
    batch, time, heads = (*spec, None, None, None)[:3]
    if time is not None:
      raise ValueError(
        f"spec {spec} shards time; splash attention needs it whole: gather the sequence axis first"
      )
    heads_spec = jax.P(batch, None, heads, None)
    segment_spec = None if segment_ids_BT is None else jax.P(batch, None)
    fn = jax.shard_map(
      fn,
      in_specs=(heads_spec, heads_spec, heads_spec, segment_spec),
      out_specs=heads_spec,
      check_vma=False,
    )
  return fn(q_BTNH, k_BSKH, v_BSKF, segment_ids_BT)
