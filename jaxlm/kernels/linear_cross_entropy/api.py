"""The public log softmax of an output projection.

Axes: B batch, T time, D d_model, V vocabulary.
"""

import functools
import math

import jax
import jax.numpy as jnp

from jaxlm.kernels.choices import note
from jaxlm.kernels.compact import compact, gather, scatter
from jaxlm.kernels.linear_cross_entropy import blocks, pallas_op, reference, rows, sharded, xla
from jaxlm.kernels.pallas_support import vmem_bytes
from jaxlm.kernels.platform import target_device_kind, target_platform


def linear_cross_entropy(
  h_BTD,
  w_VD,
  targets_BT=None,
  *,
  bias_V=None,
  softcap: float | None = None,
  where_BT=None,
  chunk: int | None = None,
  keep_bytes: int | None = None,
  implementation: str | None = None,
  spec=None,
  w_spec=None,
):
  """log_prob = s_y - log_z, log_z = logsumexp_v s_v, s = c tanh(a / c), a = h w^T + bias. Float32.

  h_BTD, w_VD: same dtype, products with float32 sums. targets_BT: int32 y in [0, V). Returns
  (log_prob_BT, log_z_BT), both differentiable in h, w and bias (log_z for z-loss); without targets
  log_z_BT alone.
  where_BT: bool, rows that count; the others give 0 and have no gradient. On one device those that
  count are brought
    together and stretches without any are not computed, forward or backward; the time follows their
    number, and nothing is kept.
  chunk: positions of T whose logits exist at a time, forward and backward; the gradient of w is
  summed in
    float32 over them. None: by size, dense when all logits are small.
  keep_bytes: per device, of softmaxes kept from the forward for the backward pass, which computes
  the logits of
    the other positions a second time; in w's dtype, none with a softcap. None: by device.
  implementation: None, "reference" (dense), "xla" (by chunks), "pallas" (TPU kernels: tiles of
  logits, whatever chunk says,
    and nothing is kept). None takes "pallas" where it is supported and blocks.py says that it is
    faster.
  spec, w_spec: PartitionSpecs of h and w under the context mesh. With spec each device works on its
  own rows and
    sums its own dw; w is gathered and dw scattered once. Without it the partitioner decides.
  """
  B, T, D = h_BTD.shape
  V = w_VD.shape[0]
  if w_VD.shape != (V, D) or (targets_BT is not None and targets_BT.shape != (B, T)):
    raise ValueError(
      f"h {h_BTD.shape}, w {w_VD.shape}, targets {getattr(targets_BT, 'shape', None)}: want "
      "(B, T, D), (V, D), (B, T)"
    )
  if implementation not in (None, "reference", "xla", "pallas"):
    raise NotImplementedError(
      f"linear_cross_entropy implementation {implementation!r} does not exist; "
      "known: reference, xla, pallas"
    )
  if implementation == "reference" and chunk is not None:
    raise NotImplementedError(
      f"linear_cross_entropy 'reference' holds all logits: chunk {chunk} needs 'xla'"
    )
  keep_bytes = blocks.keep_bytes(target_device_kind()) if keep_bytes is None else keep_bytes
  mesh = jax.sharding.get_abstract_mesh()
  if implementation in (None, "pallas"):
    kernel = _kernel(h_BTD, w_VD, implementation, spec, w_spec)
    if kernel is not None:
      _note("pallas", h_BTD, w_VD, implementation, spec, w_spec)
      log_prob_BT, log_z_BT = _by_kernel(
        kernel, h_BTD, w_VD, bias_V, targets_BT, where_BT, softcap, mesh.size <= 1
      )
      return log_z_BT if targets_BT is None else (log_prob_BT, log_z_BT)
  if where_BT is not None:
    return _counted(
      h_BTD,
      w_VD,
      targets_BT,
      where_BT,
      alone=mesh.size <= 1,
      chunk=chunk,
      bias_V=bias_V,
      softcap=softcap,
      implementation=implementation,
      keep_bytes=keep_bytes,
      spec=spec,
      w_spec=w_spec,
    )
  if target_platform() == "cpu" and mesh.size <= 1 and B > 1:
    # One long row: a CPU multiplies a matrix faster than a stack of matrices.
    flat = linear_cross_entropy(
      h_BTD.reshape(1, B * T, D),
      w_VD,
      None if targets_BT is None else targets_BT.reshape(1, B * T),
      bias_V=bias_V,
      softcap=softcap,
      chunk=chunk and chunk * B,
      keep_bytes=keep_bytes,
      implementation=implementation,
    )
    return jax.tree.map(lambda x: x.reshape(B, T), flat)
  split = (
    1
    if mesh.size <= 1 or spec is None
    else math.prod(mesh.shape[name] for part in spec[:2] for name in sharded.names(part))
  )
  devices = max(1, mesh.size if spec is None else split)
  sizes = blocks.CPU if target_platform() == "cpu" else blocks.ACCELERATOR
  small = chunk is None and 4 * B * T * V <= sizes.dense_bytes * devices
  dense = implementation == "reference" or (implementation is None and small and split == 1)
  _note("reference" if dense else "xla", h_BTD, w_VD, implementation, spec, w_spec)
  if dense:
    log_prob_BT, log_z_BT = reference.linear_cross_entropy(
      h_BTD, w_VD, bias_V, targets_BT, softcap=softcap
    )
  else:
    chunk = chunk or blocks.chunk_length(B, T, V, devices, sizes)
    if split > 1:
      log_prob_BT, log_z_BT = sharded.linear_cross_entropy(
        h_BTD,
        w_VD,
        bias_V,
        targets_BT,
        softcap=softcap,
        chunk=chunk,
        keep_bytes=keep_bytes,
        spec=spec,
        w_spec=w_spec,
      )
    else:
      log_prob_BT, log_z_BT = xla.linear_cross_entropy(
        h_BTD, w_VD, bias_V, targets_BT, softcap=softcap, chunk=chunk, keep_bytes=keep_bytes
      )
  return log_z_BT if targets_BT is None else (log_prob_BT, log_z_BT)


def _tiles(w_VD) -> blocks.Tiles:
  kind = target_device_kind()
  return blocks.tiles(kind, w_VD.shape[1], w_VD.dtype.itemsize, vmem_bytes(kind))


def _note(taken, h_BTD, w_VD, implementation, spec, w_spec):
  note(
    "linear_cross_entropy",
    taken,
    {"h": h_BTD, "w": w_VD},
    named=implementation is not None,
    refused=lambda: {
      "pallas": pallas_op.supports(h_BTD, w_VD, target_device_kind(), _tiles(w_VD), spec, w_spec)
    },
  )


def _kernel(h_BTD, w_VD, implementation, spec, w_spec):
  """The TPU kernels as a function, or None where they are not the choice; refused where named and
  not supported.
  """
  kind, (B, T, D) = target_device_kind(), h_BTD.shape
  devices = max(1, jax.sharding.get_abstract_mesh().size)
  if implementation is None and not blocks.prefers_pallas(kind, D, B * T * w_VD.shape[0] / devices):
    return None
  tiles = _tiles(w_VD)
  reason = pallas_op.supports(h_BTD, w_VD, kind, tiles, spec, w_spec)
  if reason is None:
    return functools.partial(pallas_op.linear_cross_entropy, tiles=tiles, spec=spec, w_spec=w_spec)
  if implementation == "pallas":
    raise NotImplementedError(f"linear_cross_entropy implementation 'pallas': {reason}")
  return None


def _by_kernel(kernel, h_BTD, w_VD, bias_V, targets_BT, where_BT, softcap, alone: bool):
  if where_BT is None:
    return kernel(h_BTD, w_VD, bias_V, targets_BT, softcap=softcap)
  if not alone:
    out = kernel(h_BTD, w_VD, bias_V, targets_BT, softcap=softcap)
    return jax.tree.map(lambda x_BT: jnp.where(where_BT, x_BT, 0.0), out)
  order, front = _in_front(where_BT)
  targets = None if targets_BT is None else front(targets_BT)[None]
  out = kernel(front(h_BTD)[None], w_VD, bias_V, targets, softcap=softcap, count=order.count_B[0])
  return jax.tree.map(lambda x_1T: scatter(x_1T, order).reshape(where_BT.shape), out)


def _in_front(where_BT):
  """(order, front): front(x_BT) has the rows of where_BT side by side in front of the others, (B T,
  ...).
  """
  order = compact(where_BT.reshape(1, -1), where_BT.size)
  return order, lambda x_BT: gather(x_BT.reshape(1, where_BT.size, *x_BT.shape[2:]), order)[0]


def _counted(
  h_BTD, w_VD, targets_BT, where_BT, *, alone: bool, chunk, implementation, bias_V, softcap, **specs
):
  """The rows of where_BT, side by side in front of the others where they lie on one device."""
  (B, T), V = where_BT.shape, w_VD.shape[0]

  def zero(out):
    return jax.tree.map(lambda x_BT: jnp.where(where_BT, x_BT, 0.0), out)

  sizes = blocks.CPU if target_platform() == "cpu" else blocks.ACCELERATOR
  small = chunk is None and 4 * B * T * V <= sizes.dense_bytes
  if not alone or implementation == "reference" or (implementation is None and small):
    return zero(
      linear_cross_entropy(
        h_BTD,
        w_VD,
        targets_BT,
        bias_V=bias_V,
        softcap=softcap,
        chunk=chunk,
        implementation=implementation,
        **specs,
      )
    )
  _note("xla", h_BTD, w_VD, implementation, specs.get("spec"), specs.get("w_spec"))
  order, front = _in_front(where_BT)
  tile = sizes.tile if chunk is None else None
  chunk = blocks.chunk_length(1, B * T, V, 1, sizes) if chunk is None else chunk * B
  targets = None if targets_BT is None else front(targets_BT)
  out = rows.linear_cross_entropy(
    front(h_BTD),
    w_VD,
    bias_V,
    targets,
    softcap=softcap,
    chunk=chunk,
    count=order.count_B[0],
    tile=tile,
  )
  log_prob_BT, log_z_BT = jax.tree.map(lambda x_T: scatter(x_T[None], order).reshape(B, T), out)
  return log_z_BT if targets_BT is None else (log_prob_BT, log_z_BT)
