"""What a fast weight is and how it changes: the network, its update rule, its state, its schedule.

Axes: B batch, N fast-weight heads, T tokens, H width of a head, F inner width. Leading axes may be
anything.

Weights are a tuple: (w0_BNFH, w1_BNHF, w2_BNFH) for 'swiglu', (w_BNHH,) for 'linear'; a step of the
inner loop has the same structure.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.kernels.newton_schulz import newton_schulz
from jaxlm.kernels.platform import target_platform

MATRICES = {"swiglu": 3, "linear": 1}  # of each network


@dataclasses.dataclass(frozen=True)
class Rule:
  """How the weights move after a chunk (docs/specs/lact.md, section 2).

  network: 'swiglu' f(x) = W1 [silu(W0 x) * (W2 x)], or 'linear' f(x) = W x.
  muon: Newton-Schulz triples applied to the step (see `newton_schulz.coefficients`); None adds the
  step as it is.
    () is not None: it still divides by the Frobenius norm, as the view-synthesis code does with 0
    steps.
  muon_dtype: of the Newton-Schulz iteration, 'bfloat16' officially; None keeps the weights'.
  prenorm: an un-normalised master accumulates and its normalised copy is read; False normalises in
  place.
  detach_norms: the row norms that the weights are held to are constants (view synthesis), not
  differentiated.
  fused: the semantics of the released fused kernels: one Newton-Schulz for the stacked [W0; W2],
  eps inside the
    root when not prenorm, and steps rounded to `dtype`. A different algorithm, not a faster one.
  dtype: of matmul inputs, 'bfloat16' officially; sums and elementwise work are float32. None keeps
  the inputs'.
  """

  network: Literal["swiglu", "linear"] = "swiglu"
  muon: tuple[tuple[float, float, float], ...] | None = None
  muon_dtype: str | None = None
  prenorm: bool = False
  detach_norms: bool = False
  fused: bool = False
  eps: float = 1e-5
  dtype: str | None = None


@dataclasses.dataclass(frozen=True)
class Causal:
  """Language: every chunk of `chunk` tokens is read with the weights before it, then learned; the
  last is only read.
  """

  chunk: int

  def __post_init__(self):
    if self.chunk < 1:
      raise ValueError(
        f"chunk {self.chunk} of the fast weights is not positive; the papers use 2048 or more"
      )


class Item(NamedTuple):
  """One entry of a listed schedule: learn tokens start..stop-1 (if update), then read with them (if
  apply).
  """

  start: int
  stop: int
  update: bool
  apply: bool


class FastWeights(NamedTuple):
  """Fast weights in motion.

  current: what is read. master: un-normalised weights (prenorm) or None. momentum: of the raw
  steps, before Newton-Schulz, or None. norms: the row norms (..., rows, 1) that `current` is held
  to.
  """

  current: tuple
  master: tuple | None
  momentum: tuple | None
  norms: tuple


def initial_state(rule: Rule, weights, *, momentum: bool) -> FastWeights:
  """State before the first chunk, in float32 or better.

  Row norms are those of the weights passed in.
  """
  weights = tuple(
    w.astype(jnp.promote_types(w.dtype, jnp.float32)) for w in weights
  )  # bfloat16 parameters, gathered
  norms = tuple(_row_norm(w) for w in weights)
  if rule.detach_norms:
    norms = jax.lax.stop_gradient(norms)
  return FastWeights(
    current=weights,
    master=weights if rule.prenorm else None,
    momentum=tuple(map(jnp.zeros_like, weights)) if momentum else None,
    norms=norms,
  )


def apply_update(
  rule: Rule, state: FastWeights, step, momentum_BN=None, *, implementation=None
) -> FastWeights:
  """M <- step + m M (if momentum); W <- W + NS(M); rows of W rescaled to their first norms (spec
  2.4-2.6).

  step: the sum over the chunk's tokens, same structure as the weights. momentum_BN: m, mean of beta
  over the chunk.
  implementation: of `newton_schulz`.
  """
  if state.momentum is not None:
    step = add_momentum(step, state.momentum, momentum_BN)
  return apply_moved(rule, state, step, implementation)


def add_momentum(step, momentum, momentum_BN):
  """M <- step + m M. This is the momentum after the chunk: the backward pass of the fast form
  (xla.py `_walk`) keeps it as what moved the weights, and takes it for the momentum that the next
  chunk finds. A rule that keeps something else as its momentum must keep both there."""
  return tuple(s + momentum_BN[..., None, None] * m for s, m in zip(step, momentum))


def apply_moved(rule: Rule, state: FastWeights, step, implementation=None) -> FastWeights:
  """The rest of `apply_update`; step: with its momentum."""
  if state.momentum is not None:
    state = state._replace(momentum=step)
  if rule.muon is not None:
    step = _orthogonalise(rule, step, implementation)
  base = state.current if state.master is None else state.master
  base = tuple(w + s for w, s in zip(base, step))
  inside = rule.fused and not rule.prenorm
  current = tuple(_rescale(w, n, rule.eps, inside) for w, n in zip(base, state.norms))
  return state._replace(current=current, master=None if state.master is None else base)


def read(rule: Rule, weights, x_BNTH):
  """f_W(x) for every token. float32 accumulation; the result has the weights' dtype."""
  dot = dot_in(rule.dtype)
  if rule.network == "linear":
    return dot("...tj,...hj->...th", x_BNTH, weights[0])
  w0_BNFH, w1_BNHF, w2_BNFH = weights
  gate_BNTF = jax.nn.silu(dot("...th,...fh->...tf", x_BNTH, w0_BNFH))
  up_BNTF = dot("...th,...fh->...tf", x_BNTH, w2_BNFH)
  return dot("...tf,...hf->...th", gate_BNTF * up_BNTF, w1_BNHF)


def dot_in(dtype):
  """einsum of two arrays in `dtype` (None: theirs), accumulated and returned in float32 or better."""

  def dot(spec, a, b):
    to = jnp.dtype(dtype) if dtype else jnp.promote_types(a.dtype, b.dtype)
    out = jnp.promote_types(to, jnp.float32)
    if (
      out != to and target_platform() == "cpu"
    ):  # whose compiler has no program for some bfloat16 products into float32
      bits = jnp.finfo(to)
      a, b = (jax.lax.reduce_precision(x.astype(out), bits.nexp, bits.nmant) for x in (a, b))
      return jnp.einsum(spec, a, b)
    return jnp.einsum(spec, a.astype(to), b.astype(to), preferred_element_type=out)

  return dot


def _orthogonalise(rule, step, implementation):
  def ns(x):
    return newton_schulz(x, rule.muon, dtype=rule.muon_dtype, implementation=implementation)

  if rule.fused and rule.network == "swiglu":
    s0_BNFH, s1_BNHF, s2_BNFH = step
    inner = s0_BNFH.shape[-2]
    both = ns(jnp.concatenate([s0_BNFH, s2_BNFH], -2))
    return both[..., :inner, :], ns(s1_BNHF), both[..., inner:, :]
  if len(step) == 1 or implementation == "reference":
    return tuple(map(ns, step))

  # NS(X') = NS(X)', so the three are one batch: a third of the products that wait for each other.
  def turn(x):
    return x.mT if x.shape[-2] > x.shape[-1] else x

  return tuple(
    y if y.shape == x.shape else y.mT for x, y in zip(step, ns(jnp.stack(list(map(turn, step)))))
  )


def _row_norm(w_BNFH):
  square = jnp.sum(jnp.square(w_BNFH), -1, keepdims=True)
  # The derivative of a square root at 0 is infinite; a zero row has norm 0 and derivative 0.
  return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def _rescale(w_BNFH, norm_BNF1, eps, inside):
  if inside:
    return w_BNFH * (
      jax.lax.rsqrt(jnp.sum(jnp.square(w_BNFH), -1, keepdims=True) + eps) * norm_BNF1
    )
  return w_BNFH * (norm_BNF1 / (_row_norm(w_BNFH) + eps))
