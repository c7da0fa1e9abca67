"""Rows of a table by index, whose gradient is reduced over a mesh in two steps.

Axes: B batch, T time, V vocabulary, D d_model.

Left to the partitioner, the gradient of a table is summed whole over all axes of the rows, (data,
fsdp), and cut afterwards. Here each device adds up the gradient of its own rows, the sums are
scattered over the axes of the table's columns, fsdp, and the pieces are summed over the rest: half
the bytes. The forward is the partitioner's: it sends vectors, not the table.
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
  scattered,
)


def lookup(table_VD, tokens_BT, spec=None, table_spec=None):
  """table[token] (B, T, D) in the table's dtype; tokens outside [0, V) read the first or last row.

  spec, table_spec: PartitionSpecs of the result and of the table under the context mesh, None: the
  partitioner decides. Where the mesh does not divide B and T, it decides too.
  """
  if jax.sharding.get_abstract_mesh().size <= 1 or spec is None or table_spec is None:
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

  def local(tokens_BT, dx_BTD):
    (d_VD,) = jax.linear_transpose(lambda e: _take(e, tokens_BT), table)(dx_BTD)
    if columns:
      d_VD = scattered(d_VD, columns, whole=num_devices(names(table_spec[0])) == 1)
    rest = tuple(sorted(manual - set(columns)))
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
