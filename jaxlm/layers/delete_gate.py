"""Which tokens of an encoder go on: MrT5's learned delete gate, and deletion at random or by rule.

A reduction is chosen by its config, registered in REDUCTIONS of `models/encoder_decoder.py`, with
`layer`, `build(init, name) -> nn.Module` and `tau`: hard deletion keeps G > tau, and None means that
it deletes nothing. The module answers
`(h_BLD, tokens_BL, valid_BL, mode, *, train, noise) -> Reduced`, and one that deletes tokens ends
in `apply_gate`. A learned gate's config is a subclass of DeleteGateConfig, which regularisers and
hard deletion in evaluation ask for.

Axes: B batch, L encoder length, C capacity, D d_model. docs/specs/mrt5.md, sections 2, 4, 6.
"""

import dataclasses
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.config import ConfigError, checked
from jaxlm.kernels.compact import compact, gather
from jaxlm.layers.t5 import Norm
from jaxlm.layers.taps import tap
from jaxlm.layers.weights import weights
from jaxlm.ranges import BelowOne, Natural, Negative

PAD = 0
#: ByT5 ids of tab, newline, space, ASCII punctuation, and the end.
SEPARATORS = (12, 13, *range(35, 51), *range(61, 68), *range(94, 100), *range(126, 130), 1)


class Mode(NamedTuple):
  """hard: deleted tokens leave the arrays. capacity: slots for the others, None = all. threshold:
  None = the config's.

  rows: sequences that share one buffer of `capacity` slots, one behind the other, so that the slots
  follow their mean and not the longest; it divides the batch. drop: of too many tokens those with
  the highest gates stay (else the first).
  """

  hard: bool = False
  capacity: int | None = None
  threshold: float | None = None
  rows: int = 1
  drop: bool = False


class Reduced(NamedTuple):
  """What the encoder continues with. Where nothing was shortened C = L.

  index_BC: int32 position of each slot, for the relative bias; None = 0, 1, 2 ...
  valid_BC, cross_valid_BC: bool, who may be seen by the encoder and by the decoder. gate_BC: added
  to logits, or None.
  gate_BL, logits_BL: the gate of every input position (float32; None for pooling). keep_BL: bool,
  not deleted.
  source_BC: int32. count_B: tokens that want to go on, of a buffer. overflow_B: bool, more of them
  than the capacity.
  row_BC: int32, the row 1, 2 .. of a slot where a buffer holds several (then B is the number of
  buffers, in
    everything named _BC and in count_B and overflow_B). extra: what one kind alone reports.
  """

  h_BCD: jax.Array
  valid_BC: jax.Array
  cross_valid_BC: jax.Array
  index_BC: jax.Array | None = None
  gate_BC: jax.Array | None = None
  gate_BL: jax.Array | None = None
  logits_BL: jax.Array | None = None
  keep_BL: jax.Array | None = None
  source_BC: jax.Array | None = None
  count_B: jax.Array | None = None
  overflow_B: jax.Array | None = None
  row_BC: jax.Array | None = None
  extra: dict = {}


def apply_gate(
  h_BLD, gate_BL, valid_BL, threshold: float, mode: Mode, *, compact_positions: bool
) -> Reduced:
  """Soft: the gate is added to the logits of its key. Hard: keys with G > threshold move together,
  gate 0.

  A row of which nothing is kept retains its first position. compact_positions: relative positions
  count slots; else they stay those of the input.
  """
  threshold = threshold if mode.threshold is None else mode.threshold
  keep_BL = gate_BL > threshold
  if not mode.hard:
    count_B = jnp.sum(keep_BL, axis=1, dtype=jnp.int32)
    return Reduced(
      h_BLD,
      valid_BL,
      valid_BL,
      gate_BC=gate_BL,
      gate_BL=gate_BL,
      keep_BL=keep_BL,
      count_B=count_B,
      overflow_B=jnp.zeros_like(count_B, bool),
    )
  (B, L), n = keep_BL.shape, mode.rows
  some_BL = keep_BL | (~jnp.any(keep_BL, axis=1, keepdims=True) & (jnp.arange(L) == 0)[None])

  def buffers(x_BL):
    return x_BL.reshape(B // n, n * L, *x_BL.shape[2:])

  capacity = mode.capacity or n * L
  slots = compact(buffers(some_BL), capacity)
  if mode.drop and capacity < n * L:
    fits = compact(
      buffers(some_BL) & highest(jnp.where(buffers(some_BL), buffers(gate_BL), -jnp.inf), capacity),
      capacity,
    )
    slots = fits._replace(count_B=slots.count_B, overflow_B=slots.overflow_B)
  valid_BC = slots.valid_BC & jnp.take_along_axis(buffers(valid_BL), slots.source_BC, axis=1)
  source_BC = slots.source_BC if n == 1 else slots.source_BC % L
  # Only differences of positions count, so slots of a shared buffer need not begin anew.
  return Reduced(
    gather(buffers(h_BLD), slots),
    valid_BC,
    valid_BC,
    None if compact_positions else source_BC,
    None,
    gate_BL,
    None,
    keep_BL,
    source_BC,
    slots.count_B,
    slots.overflow_B,
    None if n == 1 else slots.source_BC // L + 1,
  )


def highest(x_BT, number: int):
  """Bool (B, T): the `number` largest of each row, the first of equal ones."""
  order_BT = jnp.argsort(-x_BT, axis=1, stable=True)
  rank_BT = jnp.argsort(order_BT, axis=1)
  return rank_BT < number


@dataclasses.dataclass(frozen=True)
@checked
class DeleteGateConfig:
  """G = k sigmoid(-z), z = w . norm(h) + b, at the start of encoder block `layer`; k < 0. Or G =
  log sigmoid(z).

  threshold: hard deletion keeps G > threshold; None = k / 2. norm: of the gate's input.
  gumbel: in training -log(-log u) is added to z.
  """

  layer: Natural = 3
  scale: Negative = -30.0
  threshold: Negative | None = None
  activation: Literal["scaled_sigmoid", "log_sigmoid"] = "scaled_sigmoid"
  norm: bool = True
  gumbel: bool = False

  def __post_init__(self):
    if not self.scale < self.tau < 0:
      raise ConfigError(
        f"threshold = {self.threshold}: wanted a value inside ({self.scale}, 0), the gate's range"
      )

  @property
  def tau(self) -> float:
    return self.scale / 2 if self.threshold is None else self.threshold

  def build(self, init: float, name=None) -> nn.Module:
    return DeleteGate(self, init, name=name)


class DeleteGate(nn.Module):
  """Positions with token 0 get G = k. noise: uniform numbers (B, L) for gumbel; drawn from rng
  'noise' if None.
  """

  cfg: DeleteGateConfig
  init: float = 1.0

  @nn.compact
  def __call__(
    self, h_BLD, tokens_BL, valid_BL, mode: Mode, *, train: bool = False, noise=None
  ) -> Reduced:
    cfg, w = self.cfg, weights(self)
    x_BLD = (Norm(self.init, name="norm")(h_BLD) if cfg.norm else h_BLD).astype(jnp.float32)
    w_D = w("w", (x_BLD.shape[-1], 1), ("embed", None), init=nn.initializers.xavier_uniform())[:, 0]
    z_BL = (
      jnp.einsum("bld,d->bl", x_BLD, w_D)
      + w("b", (1,), (None,), init=nn.initializers.ones_init())[None]
    )
    if cfg.gumbel and train:
      u_BL = jax.random.uniform(self.make_rng("noise"), z_BL.shape) if noise is None else noise
      z_BL = z_BL + gumbel(u_BL)
    gate_BL = (
      jax.nn.log_sigmoid(z_BL)
      if cfg.activation == "log_sigmoid"
      else cfg.scale * jax.nn.sigmoid(-z_BL)
    )
    gate_BL = tap(self, "gate", jnp.where(tokens_BL == PAD, cfg.scale, gate_BL))
    return apply_gate(
      h_BLD, gate_BL, valid_BL, cfg.tau, mode, compact_positions=cfg.layer == 0
    )._replace(logits_BL=z_BL)


def gumbel(u, eps: float = 1e-10):
  """-log(-log u), u kept in [eps, 1 - eps]."""
  u = jnp.clip(u, eps, 1 - eps)
  return -jnp.log(-jnp.log(u))


@dataclasses.dataclass(frozen=True)
@checked
class RandomDeletionConfig:
  """n = trunc(Normal(probability, 0.05) B L) positions of the batch, padding included, get G =
  scale; the others 0.
  """

  layer: Natural = 3
  probability: BelowOne = 0.5
  scale: Negative = -30.0

  @property
  def tau(self) -> float:
    return self.scale / 2

  def build(self, init: float, name=None) -> nn.Module:
    return RandomDeletion(self, name=name)


class RandomDeletion(nn.Module):
  """noise: (fraction, permutation of B L positions); drawn from rng 'noise' if None."""

  cfg: RandomDeletionConfig

  @nn.compact
  def __call__(
    self, h_BLD, tokens_BL, valid_BL, mode: Mode, *, train: bool = False, noise=None
  ) -> Reduced:
    size = tokens_BL.size
    if noise is None:
      key = self.make_rng("noise")
      noise = (
        self.cfg.probability + 0.05 * jax.random.normal(key, ()),
        jax.random.permutation(jax.random.fold_in(key, 1), size),
      )
    fraction, order = noise
    number = jnp.trunc(fraction * size).astype(jnp.int32)
    deleted = jnp.zeros(size, bool).at[order].set(jnp.arange(size) < number)
    gate_BL = jnp.where(deleted.reshape(tokens_BL.shape), self.cfg.scale, 0.0)
    reduced = apply_gate(
      h_BLD, gate_BL, valid_BL, self.cfg.tau, mode, compact_positions=self.cfg.layer == 0
    )
    return reduced._replace(extra={"number": number})


@dataclasses.dataclass(frozen=True)
@checked
class FixedDeletionConfig:
  """Of each segment, which a separator begins, the first ceil((1 - amount) length) tokens stay.

  pooled_counts: the release's rule, whose segment lengths are sums over the batch; for replay only.
  """

  layer: Natural = 3
  amount: BelowOne = 0.5
  scale: Negative = -30.0
  separators: tuple[Natural, ...] = SEPARATORS
  pooled_counts: bool = False

  @property
  def tau(self) -> float:
    return self.scale / 2

  def build(self, init: float, name=None) -> nn.Module:
    return FixedDeletion(self, name=name)


class FixedDeletion(nn.Module):
  cfg: FixedDeletionConfig

  @nn.compact
  def __call__(
    self, h_BLD, tokens_BL, valid_BL, mode: Mode, *, train: bool = False, noise=None
  ) -> Reduced:
    cfg = self.cfg
    gate_BL = jnp.where(
      fixed_deletion(tokens_BL, cfg.amount, cfg.separators, cfg.pooled_counts), cfg.scale, 0.0
    )
    return apply_gate(h_BLD, gate_BL, valid_BL, cfg.tau, mode, compact_positions=cfg.layer == 0)


def fixed_deletion(tokens_BL, amount: float, separators, pooled_counts: bool = False):
  """Bool (B, L): the tail of each segment."""
  B, L = tokens_BL.shape
  segment_BL = jnp.cumsum(jnp.isin(tokens_BL, jnp.asarray(separators)), axis=1)
  count_BJ = jax.vmap(lambda s: jnp.zeros(L + 1, jnp.int32).at[s].add(1))(segment_BL)
  if pooled_counts:
    count_BJ = jnp.broadcast_to(jnp.sum(count_BJ, axis=0, keepdims=True), count_BJ.shape)
  # In float64, as ceil of a rounded product differs: 0.6 * 5 must stay 3.
  kept = jnp.asarray(np.ceil((1 - amount) * np.arange(B * L + 1)).astype(np.int32))
  end_BJ = jnp.cumsum(count_BJ, axis=1)
  segment_BL = jax.vmap(lambda end: jnp.searchsorted(end, jnp.arange(L), side="right"))(end_BJ)

  def of(x_BJ):
    return jnp.take_along_axis(x_BJ, segment_BL, axis=1)

  return jnp.arange(L)[None] - of(end_BJ - count_BJ) >= kept[of(count_BJ)]
