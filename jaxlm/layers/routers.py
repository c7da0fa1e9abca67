"""Routers: who decides where a chunk starts (`docs/specs/hnet.md` sections 7 and 17).

Axes: B batch, T time, D d_model.

A router is chosen by its config, registered in ROUTERS:

  build(d_model, dtype, name) -> nn.Module, or a function with its signature if it has no parameters
  init_state(d_model, batch_size, dtype) -> pytree, batch axis first; () if it does not look back
  module(x_BTD, inputs, state) -> (Route, state)      x: the encoder's output
  learned: bool                 the ratio loss applies
  level: None or 0              0: needs bytes or given boundaries, which only the outermost stage has

What it must return:

  p_BT           float32 in [0, 1], whatever x's dtype; exactly 1, without gradient, at a document's first token
  boundary_BT    bool; True at every document's first token, False where `valid_BT` is. Padding is on the right
  confidence_BT  float32, max(p, 1 - p) of the decision before the mask
  state          with state=None: None (or the () of a router that has none). Otherwise that after the last *valid* token
                 of each row; a row without a valid token keeps its own. A row that goes on must get
                 what it would whole. It may be a Trail: read it with `latest`, go on with `last_valid`
                 (`layers.rewind`)

Nothing may depend on another document of the row, nor on later tokens. A router with a rule has p =
b, hence c = 1, and P = 0.9999 by the clip: `certain_boundaries` does all of this. `given` is for callers in
Python: no data kind makes boundaries.
"""

import dataclasses
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.config import Kinds, checked
from jaxlm.kernels.route import Route, route
from jaxlm.layers.rewind import last_valid, latest
from jaxlm.layers.taps import tap
from jaxlm.layers.weights import weights, zeros
from jaxlm.ranges import Count

ROUTERS = Kinds(
  "router",
  {
    "learned": "jaxlm.layers.routers:CosineRouter",
    "direct": "jaxlm.layers.routers:SigmoidRouter",
    "pool": "jaxlm.layers.routers:FixedStride",
    "space": "jaxlm.layers.routers:SpaceBoundaries",
    "given": "jaxlm.layers.routers:ExternalBoundaries",
  },
)


class RouterInputs(NamedTuple):
  """What a router may look at besides the hidden rows.

  first_BT: bool, the first token of a document. valid_BT: bool. positions_BT: int32, index in the
  document.
  tokens_BT: int32 bytes, and boundaries_BT: bool given boundaries; both None at inner stages.
  """

  first_BT: jax.Array
  valid_BT: jax.Array
  positions_BT: jax.Array
  tokens_BT: jax.Array | None = None
  boundaries_BT: jax.Array | None = None


def certain_boundaries(start_BT, inputs: RouterInputs) -> Route:
  """p = b, where b is a rule's boundary or a document's first token."""
  start_BT = (start_BT | inputs.first_BT) & inputs.valid_BT
  return Route(start_BT.astype(jnp.float32), start_BT, jnp.ones(start_BT.shape, jnp.float32))


def tap_boundaries(module: nn.Module, decision: Route, first_BT, valid_BT) -> Route:
  """The decision after the tap `boundary` (bool, B, T). Where an edit changes it, it counts as a
  rule's: p = b, c = 1.

  The first token of a document stays a boundary and padding none, whatever the edit says.
  """
  boundary_BT = tap(module, "boundary", decision.boundary_BT)
  if boundary_BT is decision.boundary_BT:
    return decision
  boundary_BT = (boundary_BT | first_BT) & valid_BT
  changed_BT = boundary_BT != decision.boundary_BT
  return Route(
    jnp.where(changed_BT, boundary_BT.astype(jnp.float32), decision.p_BT),
    boundary_BT,
    jnp.where(changed_BT, 1.0, decision.confidence_BT),
  )


def identity(key, shape, dtype=jnp.float32):
  return jnp.eye(*shape, dtype=dtype)


@dataclasses.dataclass(frozen=True)
class CosineRouter:
  """p_t = (1 - cos(W_q x_{t-1}, W_k x_t)) / 2; both matrices start as the identity."""

  learned = True
  level = None
  implementation: Literal["xla", "reference", "pallas"] | None = None

  def build(self, d_model, dtype, name=None):
    return CosineRouterLayer(self, d_model, dtype, name=name)

  def init_state(self, d_model, batch_size, dtype):
    return jnp.zeros((batch_size, d_model), dtype)


class CosineRouterLayer(nn.Module):
  """State: the last row seen, before the projections."""

  cfg: CosineRouter
  d_model: int
  dtype: str

  @nn.compact
  def __call__(self, x_BTD, inputs, state):
    w, D = weights(self, self.dtype, init=identity), self.d_model
    decision = route(
      x_BTD,
      w("w_q", (D, D), ("embed", None)),
      w("w_k", (D, D), ("embed", None)),
      first_BT=inputs.first_BT,
      valid_BT=inputs.valid_BT,
      previous_BD=latest(state),
      implementation=self.cfg.implementation,
      spec=nn.logical_to_mesh_axes(("batch", "seq", "embed_act")),
    )
    return decision, None if state is None else last_valid(x_BTD, inputs.valid_BT, state)


@dataclasses.dataclass(frozen=True)
class SigmoidRouter:
  """p_t = sigmoid(w . x_t + b): the ablation without the cosine of neighbours (paper, figure 7)."""

  learned = True
  level = None

  def build(self, d_model, dtype, name=None):
    return SigmoidRouterLayer(self, d_model, dtype, name=name)

  def init_state(self, d_model, batch_size, dtype):
    return ()


class SigmoidRouterLayer(nn.Module):
  cfg: SigmoidRouter
  d_model: int
  dtype: str

  @nn.compact
  def __call__(self, x_BTD, inputs, state):
    w = weights(self)
    logit_BT = jnp.einsum(
      "btd,d->bt", x_BTD.astype(jnp.float32), w("w", (self.d_model,), ("embed",))
    )
    p_BT = jnp.where(
      inputs.first_BT, 1.0, jax.nn.sigmoid(logit_BT + w("b", (1,), (None,), init=zeros)[None])
    )
    start_BT = p_BT > 0.5
    return Route(p_BT, start_BT & inputs.valid_BT, jnp.where(start_BT, p_BT, 1 - p_BT)), state


@dataclasses.dataclass(frozen=True)
@checked
class FixedStride:
  """A boundary every `width` tokens of a document."""

  width: Count
  learned = False
  level = None

  def build(self, d_model, dtype, name=None):
    return lambda x_BTD, inputs, state: (
      certain_boundaries(inputs.positions_BT % self.width == 0, inputs),
      state,
    )

  def init_state(self, d_model, batch_size, dtype):
    return ()


def space_like(tokens_BT):
  """Neither an ASCII letter or digit nor a UTF-8 continuation byte (SpaceByte)."""

  def among(low, high):
    return (tokens_BT >= low) & (tokens_BT <= high)

  return ~(
    among(ord("a"), ord("z"))
    | among(ord("A"), ord("Z"))
    | among(ord("0"), ord("9"))
    | among(0x80, 0xBF)
  )


@dataclasses.dataclass(frozen=True)
class SpaceBoundaries:
  """A boundary at a space-like byte whose predecessor is not space-like. State: was the last byte
  space-like?
  """

  learned = False
  level = 0

  def build(self, d_model, dtype, name=None):
    return _space

  def init_state(self, d_model, batch_size, dtype):
    return jnp.ones((batch_size,), bool)


def _space(x_BTD, inputs, state):
  like_BT = space_like(inputs.tokens_BT)
  before_B = jnp.ones(like_BT.shape[:1], bool) if state is None else latest(state)
  start_BT = like_BT & ~jnp.concatenate([before_B[:, None], like_BT[:, :-1]], axis=1)
  return certain_boundaries(start_BT, inputs), None if state is None else last_valid(
    like_BT, inputs.valid_BT, state
  )


@dataclasses.dataclass(frozen=True)
class ExternalBoundaries:
  """The boundaries that came with the batch (`boundaries`), a tokenizer's for example."""

  learned = False
  level = 0

  def build(self, d_model, dtype, name=None):
    return _external

  def init_state(self, d_model, batch_size, dtype):
    return ()


def _external(x_BTD, inputs, state):
  if inputs.boundaries_BT is None:
    raise ValueError(
      "router 'given': this batch has no boundaries; pass a bool array (B, T) or choose another router"
    )
  return certain_boundaries(inputs.boundaries_BT, inputs), state
