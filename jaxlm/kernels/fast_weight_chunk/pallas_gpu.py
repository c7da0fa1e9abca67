"""A SwiGLU fast weight on Hopper GPUs, in the walk over chunks (`xla.causal`, `xla.listed`): the
products that read the tokens, with what follows them, are a Mosaic GPU kernel; the products that
read its results, and the backward pass, are XLA's.

Axes as in `mosaic_kernels`.
"""

import functools

import jax
import jax.numpy as jnp

from jaxlm.kernels import mosaic_support
from jaxlm.kernels.fast_weight_chunk import reference, xla
from jaxlm.kernels.fast_weight_chunk.pallas_tpu import low_dtype, why_not_split
from jaxlm.kernels.fast_weight_chunk.rule import apply_moved
from jaxlm.kernels.mosaic_support import ROWS
from jaxlm.kernels.pallas_support import round_up

TOKENS = 2 * ROWS
OTHERWISE = 'use implementation="xla"'


def supports(rule, q_BNTH, F: int, eta, spec=None) -> str | None:
  """None, or the sentence that says why not. F: inner width."""
  reason = mosaic_support.why_not_here() or why_not_split(q_BNTH, spec)
  if reason is not None:
    return reason
  if rule.network != "swiglu":
    return f"the fast weight is {rule.network!r} and the kernels know 'swiglu'; {OTHERWISE}"
  if any(rate.shape[-1] > 1 for rate in eta):
    return f"eta has one rate per channel and the kernels take one per token; {OTHERWISE}"
  low, H = low_dtype(rule, q_BNTH), q_BNTH.shape[-1]
  if low not in (jnp.bfloat16, jnp.float16):
    return f"products are in {low.name} and the kernels take bfloat16 or float16; {OTHERWISE}"
  if H % ROWS or F % ROWS:
    return f"head width {H} and inner width {F} are not multiples of {ROWS}; {OTHERWISE}"
  return None


def _flat(x, low):
  """(B, N, ...) as (B N, ...) in the products' dtype."""
  return x.reshape(-1, *x.shape[2:]).astype(low)


def _tokens(x_GTH):
  """Padded to whole tiles: tokens of zeros teach nothing."""
  T = x_GTH.shape[1]
  return jnp.pad(x_GTH, ((0, 0), (0, round_up(T, TOKENS) - T), (0, 0)))


def _product(spec, a, b):
  return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _step(low, weights, k_BNTH, v_BNTH, eta):
  from jaxlm.kernels.fast_weight_chunk import mosaic_kernels as kernels

  w0_GFH, w1_GHF, w2_GFH = (_flat(w, low) for w in weights)
  k_GCH, v_GCH = (_tokens(_flat(x, low)) for x in (k_BNTH, v_BNTH))
  rates = _tokens(_flat(jnp.concatenate(eta, -1), jnp.float32)).mT
  dy0_GCF, hidden_GCF, dy2_GCF = kernels.step(w0_GFH, w1_GHF, w2_GFH, k_GCH, v_GCH, rates)
  sums = (
    _product("gcf,gch->gfh", dy0_GCF, k_GCH),
    _product("gch,gcf->ghf", v_GCH, hidden_GCF),
    _product("gcf,gch->gfh", dy2_GCF, k_GCH),
  )
  return tuple(s.reshape(w.shape) for s, w in zip(sums, weights))


_step.defvjp(lambda low, *args: (_step(low, *args), args), xla.step_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _read(low, weights, x_BNTH):
  from jaxlm.kernels.fast_weight_chunk import mosaic_kernels as kernels

  w0_GFH, w1_GHF, w2_GFH = (_flat(w, low) for w in weights)
  hidden_GCF = kernels.read(w0_GFH, w2_GFH, _tokens(_flat(x_BNTH, low)))
  o_GCH = _product("gcf,ghf->gch", hidden_GCF, w1_GHF)
  return o_GCH[:, : x_BNTH.shape[2]].reshape(x_BNTH.shape)


_read.defvjp(lambda low, *args: (_read(low, *args), args), xla.read_backward)


def step(rule, weights, k_BNTH, v_BNTH, eta):
  """As `reference.step`, for rates per token."""
  sums = _step(low_dtype(rule, k_BNTH).name, tuple(weights), k_BNTH, v_BNTH, tuple(eta))
  return reference._rounded(rule, sums)


def read(rule, weights, x_BNTH):
  """As `rule.read`."""
  return _read(low_dtype(rule, x_BNTH).name, tuple(weights), x_BNTH)


def form(rule) -> xla.Form:
  return xla.Form(rule, step, read, apply_moved)
