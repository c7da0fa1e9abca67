"""The TPU kernels of a SwiGLU fast weight in the walk over chunks (`xla.causal`, `xla.listed`): its
inner gradient and its reading, forward and backward.

What stays XLA's: the walk, momentum, the sum, the rescaled rows, and Newton-Schulz where its own
table says so. Axes as in `pallas_kernels`.
"""

import functools

import jax
import jax.numpy as jnp

from jaxlm.kernels import pallas_support
from jaxlm.kernels.fast_weight_chunk import blocks, pallas_kernels, reference, xla
from jaxlm.kernels.fast_weight_chunk.rule import apply_moved
from jaxlm.kernels.pallas_support import LANES, round_up
from jaxlm.kernels.platform import target_device_kind

OTHERWISE = 'use implementation="xla"'


def supports(rule, q_BNTH, F: int, C: int, eta, spec=None) -> str | None:
  """None, or the sentence that says why not. F: inner width; C: most tokens of a chunk."""
  reason = pallas_support.why_not_here()
  if reason is not None:
    return reason
  if rule.network != "swiglu":
    return f"the fast weight is {rule.network!r} and the kernels know 'swiglu'; {OTHERWISE}"
  if any(rate.shape[-1] > 1 for rate in eta):
    return f"eta has one rate per channel and the kernels take one per token; {OTHERWISE}"
  low, H = low_dtype(rule, q_BNTH), q_BNTH.shape[-1]
  if low not in (jnp.float32, jnp.bfloat16):
    return f"products are in {low.name} and the kernels take float32 or bfloat16; {OTHERWISE}"
  if (reason := why_not_split(q_BNTH, spec)) is not None:
    return reason
  kind = target_device_kind()
  room = pallas_support.vmem_bytes(kind)
  F, H = round_up(F, LANES), round_up(H, LANES)
  if blocks.tiles(kind, C, F, H, low.itemsize, room) is None:
    needed = blocks.step_bytes(LANES, LANES, H, low.itemsize)
    return (
      f"heads of {H} need {needed >> 20} MiB on chip, {kind} gives {room >> 20}; more and narrower "
      f"heads need less, or {OTHERWISE}"
    )
  return None


def why_not_split(q_BNTH, spec) -> str | None:
  """None, or why a mesh cannot share rows and heads as `spec` says."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.size <= 1:
    return None
  if spec is None:
    return (
      f"on a mesh of {mesh.size} devices it needs spec: kernels are not partitioned by the compiler"
    )
  for name, size, part in zip(("batch", "heads"), q_BNTH.shape, spec):
    if size % num_devices(part) and size > 1:
      return (
        f"{name} {size} is not divisible by the {num_devices(part)} devices of mesh axes {part}"
      )
  return None


def num_devices(axes) -> int:
  mesh, count = jax.sharding.get_abstract_mesh(), 1
  for name in () if axes is None else (axes,) if isinstance(axes, str) else axes:
    count *= mesh.shape[name]
  return count


def low_dtype(rule, x):
  """The dtype of products: that of `rule.dot_in` for float32 weights."""
  return jnp.dtype(rule.dtype) if rule.dtype else jnp.promote_types(x.dtype, jnp.float32)


def _plan(low, weights, x_BNTH):
  """(low, tiles, padded F, padded H, padded C)"""
  (F, H), C = weights[0].shape[-2:], x_BNTH.shape[-2]
  F, H, kind = round_up(F, LANES), round_up(H, LANES), target_device_kind()
  tiles = blocks.tiles(kind, C, F, H, jnp.dtype(low).itemsize, pallas_support.vmem_bytes(kind))
  return tiles, F, H, round_up(C, tiles.tokens)


def _whole(x, *sizes):
  """(B, N, ...) as (B N, ...), the last axes padded with zeros: a channel of zeros stays zero, a token
  of zeros teaches nothing.
  """
  x = x.reshape(-1, *x.shape[2:])
  return jnp.pad(x, [(0, 0), *((0, to - n) for n, to in zip(x.shape[1:], sizes))])


def _matrices(weights, F, H):
  w0, w1, w2 = weights
  return tuple(
    _whole(w.astype(jnp.float32), *s) for w, s in ((w0, (F, H)), (w1, (H, F)), (w2, (F, H)))
  )


def _rates(eta, C):
  """(B N, 3, C), and no array with one lane."""
  return _whole(jnp.stack([e[..., 0].astype(jnp.float32) for e in eta], 2), 3, C)


def _like(x, like):
  x = x[(slice(None), *map(slice, like.shape[2:]))]
  return x.reshape(like.shape).astype(like.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _step(low, weights, k_BNTH, v_BNTH, eta):
  tiles, F, H, C = _plan(low, weights, k_BNTH)
  sums = pallas_kernels.step(
    _matrices(weights, F, H),
    _whole(k_BNTH, C, H),
    _whole(v_BNTH, C, H),
    _rates(eta, C),
    low=low,
    tiles=tiles,
  )
  return tuple(map(_like, sums, weights))


def _step_back(low, saved, ct):
  weights, k_BNTH, v_BNTH, eta = saved
  tiles, F, H, C = _plan(low, weights, k_BNTH)
  wbar, kbar, vbar, etabar_G3C = pallas_kernels.step_back(
    _matrices(weights, F, H),
    _matrices(ct, F, H),
    _whole(k_BNTH, C, H),
    _whole(v_BNTH, C, H),
    _rates(eta, C),
    low=low,
    tiles=tiles,
  )
  of_eta = tuple(_like(etabar_G3C[:, i, :, None], e) for i, e in enumerate(eta))
  return tuple(map(_like, wbar, weights)), _like(kbar, k_BNTH), _like(vbar, v_BNTH), of_eta


_step.defvjp(lambda low, *args: (_step(low, *args), args), _step_back)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _read(low, weights, x_BNTH):
  tiles, F, H, C = _plan(low, weights, x_BNTH)
  o = pallas_kernels.read(_matrices(weights, F, H), _whole(x_BNTH, C, H), low=low, tiles=tiles)
  return _like(o, x_BNTH)


def _read_back(low, saved, ct_BNTH):
  weights, x_BNTH = saved
  tiles, F, H, C = _plan(low, weights, x_BNTH)
  wbar, xbar = pallas_kernels.read_back(
    _matrices(weights, F, H), _whole(x_BNTH, C, H), _whole(ct_BNTH, C, H), low=low, tiles=tiles
  )
  return tuple(map(_like, wbar, weights)), _like(xbar, x_BNTH)


_read.defvjp(lambda low, *args: (_read(low, *args), args), _read_back)


def step(rule, weights, k_BNTH, v_BNTH, eta):
  """As `reference.step`, for rates per token."""
  sums = _step(low_dtype(rule, k_BNTH), tuple(weights), k_BNTH, v_BNTH, tuple(eta))
  return reference._rounded(rule, sums)


def read(rule, weights, x_BNTH):
  """As `rule.read`, in x's dtype."""
  return _read(low_dtype(rule, x_BNTH), tuple(weights), x_BNTH)


def form(rule) -> xla.Form:
  return xla.Form(rule, step, read, apply_moved)
