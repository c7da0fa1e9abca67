"""The op on a mesh: each device keeps its own rows, gathers w once and scatters dw once, whatever
the chunking.

Left to the partitioner, the running sum of dw over chunks is reduced over the mesh in every chunk.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxlm.kernels.linear_cross_entropy import xla
from jaxlm.kernels.platform import target_device_kind

#: Device kinds whose SparseCores reduce and scatter.
SPARSE_CORES = ("TPU v5", "TPU v6 lite")


def names(part) -> tuple[str, ...]:
  return () if part is None else (part,) if isinstance(part, str) else tuple(part)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7, 8))
def _op(h_BTD, w_VD, bias_V, targets_BT, softcap, chunk, keep_bytes, spec, w_spec):
  return _forward(h_BTD, w_VD, bias_V, targets_BT, softcap, chunk, 0, spec, w_spec)[0]


def _forward(h_BTD, w_VD, bias_V, targets_BT, softcap, chunk, keep_bytes, spec, w_spec):
  rows, columns, manual = P(*spec[:2]), column_axes(spec, w_spec, w_VD), row_axes(spec)

  def local(h_BTD, w_VD, bias_V, targets_BT):
    w_VD, size = gathered(w_VD, columns), min(chunk, h_BTD.shape[1])
    keep = xla.kept(h_BTD, w_VD, softcap, size, keep_bytes)
    return xla.forward(h_BTD, w_VD, bias_V, targets_BT, softcap, size, keep)

  # Optional arguments are None in their spec too: shard_map takes any pytree prefix.
  out, q_kBQV = jax.shard_map(
    local,
    in_specs=(P(*spec[:2], None), P(None, columns or None), P(), rows),
    out_specs=(rows, P(None, *spec[:2])),
    axis_names=manual,
    check_vma=False,
  )(h_BTD, w_VD, bias_V, targets_BT)
  return out, (h_BTD, w_VD, bias_V, targets_BT, out, q_kBQV)


def _backward(softcap, chunk, keep_bytes, spec, w_spec, residuals, gradients):
  h_BTD, w_VD, bias_V = residuals[:3]
  rows, columns, manual = P(*spec[:2]), column_axes(spec, w_spec, w_VD), row_axes(spec)

  def local(h_BTD, w_VD, bias_V, targets_BT, out, q_kBQV, gradients):
    dh, dw, dbias = xla.backward(
      h_BTD,
      gathered(w_VD, columns),
      bias_V,
      targets_BT,
      out,
      q_kBQV,
      gradients,
      softcap,
      min(chunk, h_BTD.shape[1]),
    )
    # An array of its own: a TPU's compiler else puts what reads dh, a norm's reductions, into the
    # product, a third slower.
    dh = jax.lax.optimization_barrier(dh)
    dw = dw.astype(w_VD.dtype)  # as parameters are gathered, so their gradients are reduced
    if columns:
      dw = scattered(dw, columns, whole=num_devices(names(w_spec[0])) == 1)
    rest = tuple(sorted(manual - set(columns)))
    dw = jax.lax.psum(dw, rest) if rest else dw
    return dh, dw, None if dbias is None else jax.lax.psum(dbias, tuple(sorted(manual)))

  dh, dw, dbias = jax.shard_map(
    local,
    in_specs=(
      P(*spec[:2], None),
      P(None, columns or None),
      P(),
      rows,
      rows,
      P(None, *spec[:2]),
      rows,
    ),
    out_specs=(P(*spec[:2], None), P(None, columns or None), P()),
    axis_names=manual,
    check_vma=False,
  )(*residuals, gradients)
  return dh, dw, None if bias_V is None else dbias.astype(bias_V.dtype), None


_op.defvjp(_forward, _backward)


def gathered(w_VD, columns):
  return jax.lax.all_gather(w_VD, columns, axis=1, tiled=True) if columns else w_VD


def scattered(dw_VD, columns, whole: bool):
  """Sums over the mesh, each device its columns.

  A SparseCore's reduce-scatter needs V / 128 without a prime factor above 13: 128,128 =
  128 x 7 x 11 x 13 rows are scattered, 128,256 = 256 x 3 x 167 are all-reduced, twice the bytes. So
  the largest such part is scattered first, then the rest.
  whole: not cut over other axes, whose pieces would be cut again."""
  if not whole or target_device_kind() not in SPARSE_CORES:
    return jax.lax.psum_scatter(dw_VD, columns, scatter_dimension=1, tiled=True)
  cut = 128 * next((n for n in range(dw_VD.shape[0] // 128, 0, -1) if _smooth(n)), 0)
  pieces = [x for x in (dw_VD[:cut], dw_VD[cut:]) if x.shape[0]]
  return jnp.concatenate(
    [jax.lax.psum_scatter(x, columns, scatter_dimension=1, tiled=True) for x in pieces]
  )


def _smooth(n: int) -> bool:
  """Whether no prime factor of n is above 13."""
  for p in (2, 3, 5, 7, 11, 13):
    while n % p == 0:
      n //= p
  return n == 1


def row_axes(spec) -> set[str]:
  """Mesh axes of h's rows: the ones this file handles.

  Others (a vocabulary over `tensor`) stay the partitioner's.
  """
  return {name for part in spec[:2] for name in names(part)}


def column_axes(spec, w_spec, w_VD) -> tuple[str, ...]:
  """Axes over which w's columns are split, where they are among the rows' axes and divide D."""
  found = tuple(
    name for name in names((tuple(w_spec or ()) + (None, None))[1]) if name in row_axes(spec)
  )
  return found if w_VD.shape[1] % num_devices(found) == 0 else ()


def num_devices(axes: tuple[str, ...]) -> int:
  return math.prod(jax.sharding.get_abstract_mesh().shape[name] for name in axes)


def linear_cross_entropy(
  h_BTD, w_VD, bias_V, targets_BT, *, softcap, chunk: int, keep_bytes: int, spec, w_spec=None
):
  """As reference.linear_cross_entropy. spec: of h (B, T, D); w_spec: of w (V, D). chunk: of a
  device's own T.
  """
  targets_BT = jnp.zeros(h_BTD.shape[:2], jnp.int32) if targets_BT is None else targets_BT
  return _op(
    h_BTD,
    w_VD,
    bias_V,
    targets_BT,
    softcap,
    chunk,
    keep_bytes,
    P(*spec),
    None if w_spec is None else P(*w_spec),
  )
