"""Newton-Schulz as two TPU kernels: one matrix of the batch at a time, on chip from the first step to
the last.

Axes: L matrices, M rows (the shorter side), N columns, R columns of a symmetric product at a time.

The formulas are those of `xla.py`. A = X X^T and P = b A + (c A) A are symmetric: the kernels
multiply the blocks on and above the diagonal and turn them, 2/3 of the product at M = 384. Sums are
float32 and rounded once, where the XLA form rounds b A and (c A) A as well. The backward kernel
computes X, A and P of every step again, so that nothing but G is kept.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec as P

from jaxlm.kernels import pallas_support
from jaxlm.kernels.newton_schulz import blocks
from jaxlm.kernels.pallas_support import dot
from jaxlm.kernels.platform import target_device_kind


def supports(shape, dtype, steps: int, spec=None) -> str | None:
  """None, or the sentence that says why not. shape: (..., M, N); dtype: of the iteration."""
  reason = pallas_support.why_not_here()
  if reason is not None:
    return reason
  if dtype not in (jnp.float32, jnp.bfloat16):
    return f'the iteration is in {jnp.dtype(dtype).name}; the kernel takes float32 or bfloat16: set dtype or use implementation="xla"'
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.size > 1:
    if spec is None:
      return f"on a mesh of {mesh.size} devices it needs spec: kernels are not partitioned by the compiler"
    for size, part in zip(shape[:-2], spec):
      ways = _num_devices(part)
      if size % ways:
        return (
          f"{size} matrices are not divisible by the {ways} devices of mesh axes {part}; "
          'use implementation="xla"'
        )
  kind, size = target_device_kind(), jnp.dtype(dtype).itemsize
  M, N = blocks.padded(min(shape[-2:]), max(shape[-2:]))
  room = pallas_support.vmem_bytes(kind)
  if blocks.buffers(M, N, size, steps, room) is None:
    needed = blocks.backward_bytes(M, N, size, steps, 1)
    return (
      f"a matrix of {shape[-2]} x {shape[-1]} needs {needed >> 20} MiB on chip, {kind} gives "
      f'{room >> 20}; use implementation="xla"'
    )
  return None


def _num_devices(axes) -> int:
  mesh = jax.sharding.get_abstract_mesh()
  names = () if axes is None else (axes,) if isinstance(axes, str) else axes
  return math.prod(mesh.shape[name] for name in names)


def symmetric(out_ref, column):
  """Writes a symmetric (M, M) matrix: column(start, stop) is the part above the diagonal, (stop,
  stop - start) float32.
  """
  M = out_ref.shape[0]
  size = blocks.columns(target_device_kind(), M)
  for start in range(0, M, size):
    stop, here = start + size, slice(start, start + size)
    out_ref[:stop, here] = column(start, stop).astype(out_ref.dtype)
    if start:
      out_ref[here, :start] = out_ref[:start, here].T


def iterate(x_ref, next_ref, a_ref, p_ref, scaled_ref, step):
  """One step from x_ref to next_ref; A and P stay in a_ref and p_ref. scaled_ref: (M, M), for c A."""
  a, b, c = step
  low = x_ref.dtype
  symmetric(a_ref, lambda start, stop: dot(x_ref[:stop, :], x_ref[start:stop, :], (1, 1)))
  scaled_ref[...] = (c * a_ref[...].astype(jnp.float32)).astype(low)

  def column(start, stop):
    here = slice(start, stop)
    return b * a_ref[:stop, here].astype(jnp.float32) + dot(
      scaled_ref[:stop, :], a_ref[:, here], (1, 0)
    )

  symmetric(p_ref, column)
  next_ref[...] = (a * x_ref[...].astype(jnp.float32) + dot(p_ref[...], x_ref[...], (1, 0))).astype(
    low
  )


def turn_back(xbar_ref, x_ref, a_ref, p_ref, s_ref, t_ref, step):
  """The gradient of the next X in xbar_ref becomes that of X (`xla._backward`). s_ref, t_ref: (M, M)."""
  a, b, c = step
  low = x_ref.dtype
  t_ref[...] = dot(xbar_ref[...], x_ref[...], (1, 1)).astype(low)
  s_ref[...] = (t_ref[...].astype(jnp.float32) + t_ref[...].T.astype(jnp.float32)).astype(low)
  scaled = (c * s_ref[...].astype(jnp.float32)).astype(low)
  t_ref[...] = dot(scaled, a_ref[...], (1, 0)).astype(low)
  s_ref[...] = (
    b * s_ref[...].astype(jnp.float32)
    + t_ref[...].astype(jnp.float32)
    + t_ref[...].T.astype(jnp.float32)
  ).astype(low)
  xbar_ref[...] = (
    a * xbar_ref[...].astype(jnp.float32)
    + dot(p_ref[...], xbar_ref[...], (1, 0))
    + dot(s_ref[...], x_ref[...], (1, 0))
  ).astype(low)


def normalise(g_MN, eps, dtype):
  """(G / (|G| + eps), |G|) of a float32 value, as `xla._normalise` rounds it."""
  norm = jnp.sqrt(jnp.sum(jnp.square(g_MN), (0, 1), keepdims=True))
  divisor = (norm + eps).astype(dtype).astype(jnp.float32)
  return (g_MN / divisor).astype(dtype), norm


def normalise_back(g_MN, norm, xbar_MN, eps):
  """The gradient of G, all in float32; at G = 0 the slope of G / eps."""
  inner = jnp.sum(g_MN * xbar_MN, (0, 1), keepdims=True) / (norm + eps)
  unit = g_MN / jnp.where(norm > 0, norm, 1)
  return (xbar_MN - unit * inner) / (norm + eps)


def _forward_kernel(g_ref, out_ref, x_ref, a_ref, p_ref, scaled_ref, *, coefficients, eps):
  x_ref[0], _ = normalise(g_ref[0].astype(jnp.float32), eps, x_ref.dtype)
  for i, step in enumerate(coefficients):
    iterate(x_ref.at[i % 2], x_ref.at[1 - i % 2], a_ref, p_ref, scaled_ref, step)
  out_ref[0] = x_ref[len(coefficients) % 2].astype(out_ref.dtype)


def _backward_kernel(
  g_ref, ct_ref, out_ref, x_ref, a_ref, p_ref, s_ref, t_ref, *, coefficients, eps
):
  xbar_ref = out_ref.at[0]
  g_MN = g_ref[0].astype(jnp.float32)
  x_ref[0], norm = normalise(g_MN, eps, x_ref.dtype)
  steps = list(enumerate(coefficients))
  for i, step in steps:
    iterate(x_ref.at[i], x_ref.at[i + 1], a_ref.at[i], p_ref.at[i], s_ref, step)
  xbar_ref[...] = ct_ref[0].astype(xbar_ref.dtype)
  for i, step in reversed(steps):
    turn_back(xbar_ref, x_ref.at[i], a_ref.at[i], p_ref.at[i], s_ref, t_ref, step)
  xbar_MN = xbar_ref[...].astype(jnp.float32)
  xbar_ref[...] = normalise_back(g_MN, norm, xbar_MN, eps).astype(xbar_ref.dtype)


def cost(L: int, M: int, N: int, itemsize: int, steps: int, backward: bool) -> pl.CostEstimate:
  """Bytes: every matrix of the arguments and the result once."""
  size = blocks.columns(target_device_kind(), M)
  part = (M // size + 1) * size / (2 * M)  # of a symmetric product
  forward = steps * (part * (M * M * N + M * M * M) + M * M * N)
  back = steps * (3 * M * M * N + M * M * M) if backward else 0
  return pl.CostEstimate(
    flops=int(2 * L * (forward + back)),
    transcendentals=L,
    bytes_accessed=L * M * N * itemsize * (3 if backward else 2),
  )


def _call(kernel, args, coefficients, eps, backward: bool):
  """The kernel on matrices (L, M, N) of whole registers."""
  (L, M, N), dtype, steps = args[0].shape, args[0].dtype, len(coefficients)
  room = pallas_support.vmem_bytes(target_device_kind())
  count = blocks.buffers(M, N, dtype.itemsize, steps, room)
  matrix = pl.BlockSpec(
    (1, M, N), lambda n: (n, 0, 0), pipeline_mode=None if count == 2 else pl.Buffered(count)
  )
  kept, square = max(steps, 1), pltpu.VMEM((M, M), dtype)
  if backward:
    trace = [pltpu.VMEM((kept, M, M), dtype)] * 2
    scratch = [pltpu.VMEM((steps + 1, M, N), dtype), *trace, square, square]
  else:
    scratch = [pltpu.VMEM((2, M, N), dtype)] + [square] * 3
  return pl.pallas_call(
    functools.partial(kernel, coefficients=coefficients, eps=eps),
    out_shape=jax.ShapeDtypeStruct((L, M, N), dtype),
    grid=(L,),
    in_specs=[matrix] * len(args),
    out_specs=matrix,
    scratch_shapes=scratch,
    name=f"newton_schulz_{'backward' if backward else 'forward'}",
    cost_estimate=cost(L, M, N, dtype.itemsize, steps, backward),
    **pallas_support.on_tpu("parallel"),
  )(*args)


def _whole(x):
  """(..., M, N) of either orientation to wide matrices (L, M, N) of whole registers."""
  x = x.mT if x.shape[-2] > x.shape[-1] else x
  rows, width = x.shape[-2:]
  M, N = blocks.padded(rows, width)
  x = x.reshape(-1, rows, width)
  return jnp.pad(x, ((0, 0), (0, M - rows), (0, N - width)))


def _like(x, like):
  """The inverse of `_whole`."""
  *leading, rows, width = like.shape
  short, long = min(rows, width), max(rows, width)
  x = x[:, :short, :long].reshape(*leading, short, long)
  return x.mT if rows > width else x


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _local(g, coefficients, eps):
  return _like(_call(_forward_kernel, [_whole(g)], coefficients, eps, backward=False), g)


def _backward(coefficients, eps, g, ct):
  args = [_whole(g), _whole(ct.astype(g.dtype))]
  return (_like(_call(_backward_kernel, args, coefficients, eps, backward=True), g),)


_local.defvjp(lambda g, coefficients, eps: (_local(g, coefficients, eps), g), _backward)


def newton_schulz(g_MN, coefficients, eps, spec=None):
  """The same function as `reference.newton_schulz`. spec: PartitionSpec of the leading axes, under a
  mesh.
  """
  if math.prod(g_MN.shape) == 0:
    return g_MN

  def fn(g):
    return _local(g, coefficients, eps)

  if spec is None or jax.sharding.get_abstract_mesh().size <= 1:
    return fn(g_MN)
  place = P(*tuple(spec)[: g_MN.ndim - 2])
  return jax.shard_map(fn, in_specs=(place,), out_specs=place, check_vma=False)(g_MN)
