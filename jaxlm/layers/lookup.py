"""Rows of a table by index, whose gradient is reduced over a mesh in the cheaper of two ways.

Axes: B batch, T time, V vocabulary, D d_model.

On a mesh of two axes, (data, fsdp), the partitioner sums the gradient of the whole table over both
and cuts it afterwards. Here a device with fewer tokens than the table has rows exchanges the columns
of their gradients over the axes of the table's columns, fsdp: it adds up its own columns, for the
tokens of all devices along fsdp. A device with more tokens adds up its own, and the sums are
scattered over fsdp. Only the device's columns are then summed over the rest. Where the mesh does not
split the columns, the whole table is summed. The forward is the partitioner's: it sends vectors, not
the table.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxlm.kernels.linear_cross_entropy.sharded import (
  column_axes,
  names,
  num_devices,
  row_axes,
)


def lookup(table_VD, tokens_BT, spec=None, table_spec=None):
  """table[token] (B, T, D) in the table's dtype; tokens outside [0, V) read the first or last row.

  spec, table_spec: PartitionSpecs of the result and of the table under the context mesh, None: the
  partitioner decides. Where the mesh does not split B or T, or does not divide them, it decides too.
  """
  if jax.sharding.get_abstract_mesh().size <= 1 or spec is None or table_spec is None:
    return _take(table_VD, tokens_BT)
  if num_devices(tuple(row_axes(spec))) == 1:
    return _take(table_VD, tokens_BT)
  if any(n % num_devices(names(part)) for n, part in zip(tokens_BT.shape, spec)):
    return _take(table_VD, tokens_BT)
  return _lookup(table_VD, tokens_BT, P(*spec), P(*table_spec))


def _take(table_VD, tokens_BT):
  return jnp.take(table_VD, tokens_BT, axis=0, mode="clip")


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _lookup(table_VD, tokens_BT, spec, table_spec):
  return _take(table_VD, tokens_BT)


def _forward(table_VD, tokens_BT, spec, table_spec):
  return _take(table_VD, tokens_BT), (tokens_BT, table_VD)


def _backward(spec, table_spec, residuals, dx_BTD):
  tokens_BT, table_VD = residuals
  table = jax.ShapeDtypeStruct(table_VD.shape, table_VD.dtype)
  columns, manual = column_axes(spec, table_spec, table), row_axes(spec)
  rest = tuple(sorted(manual - set(columns)))

  def own(tokens_BT, dx_BTD):
    part = jax.ShapeDtypeStruct((table.shape[0], dx_BTD.shape[2]), table.dtype)
    (d_VD,) = jax.linear_transpose(lambda e: _take(e, tokens_BT), part)(dx_BTD)
    return d_VD

  def local(tokens_BT, dx_BTD):
    if columns and tokens_BT.size < table.shape[0]:
      tokens_BT = jax.lax.all_gather(tokens_BT, columns, axis=0, tiled=True)
      dx_BTD = jax.lax.all_to_all(dx_BTD, columns, split_axis=2, concat_axis=0, tiled=True)
      d_VD = own(tokens_BT, dx_BTD)
    else:
      d_VD = own(tokens_BT, dx_BTD)
      if columns:
        d_VD = jax.lax.psum_scatter(d_VD, columns, scatter_dimension=1, tiled=True)
    return jax.lax.psum(d_VD, rest) if rest else d_VD

  d_VD = jax.shard_map(
    local,
    in_specs=(P(*spec[:2]), P(*spec[:2], None)),
    out_specs=P(None, columns or None),
    axis_names=manual,
    check_vma=False,
  )(tokens_BT, dx_BTD)
  return d_VD, None


_lookup.defvjp(_forward, _backward)
