"""T5 v1.1 and ByT5 as one encoder-decoder, whose encoder may shorten its sequence on the way (MrT5
and its baselines).

Axes: B batch, L encoder length, C slots after the reduction, T decoder length, D d_model, V vocab.
docs/specs/mrt5.md.
"""

import dataclasses
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.config import ConfigError, Kinds, checked
from jaxlm.layers.delete_gate import Mode, Reduced
from jaxlm.layers.embedding import logits as head_logits
from jaxlm.layers.embedding import score as head_score
from jaxlm.layers.stack import scan_layers
from jaxlm.layers.t5 import (
  KV,
  DecoderBlock,
  DecoderCache,
  EncoderBlock,
  Keys,
  Measure,
  Norm,
  T5LayerConfig,
)
from jaxlm.layers.taps import tap
from jaxlm.layers.weights import normal, weights
from jaxlm.models.base import ModelConfig, StackPart
from jaxlm.models.score import Outputs, Score
from jaxlm.parameter import SPARED, TABLE, Role
from jaxlm.ranges import BelowOne, Count, Dtype, Layers, Range

REDUCTIONS = Kinds(
  "reduction",
  {
    "delete_gate": "jaxlm.layers.delete_gate:DeleteGateConfig",
    "random": "jaxlm.layers.delete_gate:RandomDeletionConfig",
    "fixed": "jaxlm.layers.delete_gate:FixedDeletionConfig",
    "boundaries": "jaxlm.layers.byte_pooling:BoundaryPoolingConfig",
    "strided": "jaxlm.layers.byte_pooling:StridedPoolingConfig",
  },
)


@dataclasses.dataclass(frozen=True)
@checked
class EncoderDecoderConfig(ModelConfig):
  """ByT5-small by default. d_kv: width of a head, independent of d_model.

  reduction: what shortens the encoder's sequence, at the start of its block `reduction.layer`; None
  = T5.
  max_positions: learned absolute positions, one table per stack, instead of the relative bias.
  scale_logits: states before the head are multiplied by d_model^-1/2; None: where the head is tied,
  as T5 v1.0 does.
  scratch: initial weights shrink with the depth of their stack, norms included; False: factor 1.
  dropout acts on embeddings, residual branches and the hidden layer of the MLP; not on attention
  probabilities.
  """

  scores: ClassVar[str] = "target_sequence"

  vocab_size: Count = 384
  d_model: Count = 1472
  d_ff: Count = 3584
  num_heads: Count = 6
  d_kv: Count = 64
  num_encoder_layers: Layers = 12
  num_decoder_layers: Layers = 4
  num_buckets: Annotated[int, Range(2)] = 32
  max_distance: Count = 128
  max_positions: Count | None = None
  reduction: Annotated[object | None, REDUCTIONS] = None
  softmax1: bool = False
  gated: bool = True
  tie_embeddings: bool = False
  scale_logits: bool | None = None
  dropout: BelowOne = 0.0
  scratch: bool = True
  remat: bool = False
  unroll: Count = 1
  dtype: Dtype = "float32"
  implementation: Literal["reference", "xla", "cudnn", "splash", "pallas", "pallas_gpu"] | None = (
    None
  )

  def __post_init__(self):
    if self.reduction is not None and not 0 <= self.reduction.layer < self.num_encoder_layers:
      raise ConfigError(
        f"reduction.layer = {self.reduction.layer} lies outside the encoder; its blocks are 0 .. "
        f"{self.num_encoder_layers - 1}"
      )

  def layer(self, num_layers: int) -> T5LayerConfig:
    return T5LayerConfig(
      self.d_model,
      self.d_ff,
      self.num_heads,
      self.d_kv,
      self.gated,
      self.softmax1,
      self.max_distance,
      self.dropout,
      self.stack_init(num_layers),
      self.dtype,
      self.implementation,
    )

  def stack_init(self, num_layers: int) -> float:
    return num_layers**-0.5 if self.scratch else 1.0

  def inputs(self, batch) -> tuple:
    return batch["tokens"], batch.get("decoder_tokens", batch["tokens"])

  def train_flops_per_token(self, seq_len: int) -> float:
    """Per encoder token, without deletion; targets are as long as span corruption makes them (189
    of 1,024).
    """
    return 3 * forward_flops(self, seq_len, round(seq_len * 189 / 1024)) / seq_len

  @property
  def stacks(self) -> dict[str, tuple[StackPart, ...]]:
    """The encoder's layers before and behind the reduction are scanned apart."""
    front = self.num_encoder_layers if self.reduction is None else self.reduction.layer
    encoder = (
      StackPart(("encoder_front",), tuple(range(front))),
      StackPart(("encoder_back",), tuple(range(front, self.num_encoder_layers))),
    )
    return {
      "encoder": tuple(part for part in encoder if part.layers),
      "decoder": (StackPart(("decoder",), tuple(range(self.num_decoder_layers))),),
    }

  def rewind(self, state: "DecodingState", length) -> "DecodingState":
    """The state after `length` tokens, an integer: rows advance, and go back, together. The cache
    keeps every token, so any earlier length will do.
    """
    return state._replace(length=jnp.minimum(state.length, length))

  def build(self) -> nn.Module:
    return EncoderDecoder(self)


def layer_flops(cfg: EncoderDecoderConfig, length: int) -> float:
  """One encoder layer over `length` tokens, a multiply and an add counted as two."""
  width, f = cfg.num_heads * cfg.d_kv, 3 if cfg.gated else 2
  return 2.0 * length * (4 * cfg.d_model * width + 2 * length * width + f * cfg.d_model * cfg.d_ff)


def forward_flops(
  cfg: EncoderDecoderConfig, length: int, target_len: int, capacity: int | None = None
) -> float:
  """One example: the layers before the reduction at full length, those behind it and the decoder's
  keys at `capacity`.
  """
  front = cfg.num_encoder_layers if cfg.reduction is None else cfg.reduction.layer
  L, T, C, width = length, target_len, capacity or length, cfg.num_heads * cfg.d_kv
  cross = 2.0 * width * (2 * C * cfg.d_model + 2 * T * cfg.d_model + 2 * C * T)
  return (
    front * layer_flops(cfg, L)
    + (cfg.num_encoder_layers - front) * layer_flops(cfg, C)
    + cfg.num_decoder_layers * (layer_flops(cfg, T) + cross)
    + 2.0 * T * cfg.d_model * cfg.vocab_size
  )


class Memory(NamedTuple):
  """What the decoder reads: states (B, C, D), their keys' validity and gate; how the encoder came
  to them.
  """

  h_BCD: jax.Array
  keys: Keys
  reduced: Reduced | None
  excess: jax.Array  # sum of the score regulariser over the encoder's layers behind the gate


class Reading(NamedTuple):
  """What a pass found on the way. excess: the mean of the score regulariser over gated and cross
  attention, 0 unless `measure`.
  """

  memory: Memory
  excess: jax.Array


class DecodingState(NamedTuple):
  """length: tokens decoded so far, the same in all rows; layers: DecoderCache with a leading layers
  axis.
  """

  length: jax.Array
  layers: Any


class Table(nn.Module):
  """One learned table."""

  name_: str
  shape: tuple[int, int]
  axes: tuple
  std: float
  role: Role

  @nn.compact
  def __call__(self):
    return weights(self)(self.name_, self.shape, self.axes, init=normal(self.std), role=self.role)


def _scan(block, length: int, cfg: EncoderDecoderConfig, in_axes):
  block = nn.remat(block, prevent_cse=False, static_argnums=block.static) if cfg.remat else block
  return scan_layers(block, length, in_axes, unroll=cfg.unroll, dropout=True)


class EncoderDecoder(nn.Module):
  """logits = head(norm(decoder(shifted targets, norm(encoder(tokens))))).

  Token 0 is padding for the gate; `valid_BL` (default tokens != 0) is what attention may see.
  """

  cfg: EncoderDecoderConfig

  def setup(self):
    cfg = self.cfg
    D, n_e, n_d = cfg.d_model, cfg.num_encoder_layers, cfg.num_decoder_layers

    def table(name, rows, width, axes, std, role=TABLE):
      return Table(name, (rows, width), axes, std, role, name=None)

    self.embed = table("embedding", cfg.vocab_size, D, ("vocab", "embed"), D**-0.5)
    if not cfg.tie_embeddings:
      self.head = table("w_out", cfg.vocab_size, D, ("vocab", "embed"), D**-0.5)
    for side, layers in (("encoder", n_e), ("decoder", n_d)):
      if cfg.max_positions is None:
        position = table(
          "relative_bias",
          cfg.num_buckets,
          cfg.num_heads,
          (None, "heads"),
          cfg.stack_init(layers) * D**-0.5,
          SPARED,
        )
      else:
        position = table("positions", cfg.max_positions, D, (None, "embed"), D**-0.5, SPARED)
      setattr(self, f"{side}_position", position)
      setattr(self, f"{side}_norm", Norm(cfg.stack_init(layers)))
    if cfg.reduction is not None:
      self.reduction = cfg.reduction.build(cfg.stack_init(n_e))
    self.dropout = nn.Dropout(cfg.dropout)

    def broadcast(count):
      return (nn.broadcast,) * count

    def encoder(length):
      return _scan(EncoderBlock, length, cfg, broadcast(4))(cfg.layer(n_e))

    if self._front:
      self.encoder_front = encoder(self._front)
    if self._front < n_e:
      self.encoder_back = encoder(n_e - self._front)
    self.decoder = _scan(DecoderBlock, n_d, cfg, (0, *broadcast(8)))(cfg.layer(n_d))

  @property
  def _front(self) -> int:
    return self.cfg.num_encoder_layers if self.cfg.reduction is None else self.cfg.reduction.layer

  def __call__(self, tokens_BL, decoder_tokens_BT, valid_BL=None, **options):
    """float32 logits (B, T, V). options: of `encode`."""
    memory = self.encode(tokens_BL, valid_BL, **options)
    return self._logits(
      self.decode(decoder_tokens_BT, memory, train=options.get("train", False))[0]
    )

  def run(
    self, tokens_BL, decoder_tokens_BT, valid_BL=None, *, measure=False, train=False, **options
  ) -> Outputs:
    """The logits; aux: the `Reading`. options: of `encode`."""
    h_BTD, reading = self._run(
      tokens_BL, decoder_tokens_BT, valid_BL, measure=measure, train=train, **options
    )
    return Outputs(self._logits(h_BTD), reading)

  def score(
    self,
    tokens_BL,
    decoder_tokens_BT,
    targets_BT,
    valid_BL=None,
    *,
    chunk=None,
    measure=False,
    train=False,
    **options,
  ) -> Score:
    """Score of the targets; as `run`, without the (B, T, V) logits in float32 where chunk says so."""
    h_BTD, reading = self._run(
      tokens_BL, decoder_tokens_BT, valid_BL, measure=measure, train=train, **options
    )
    h_BTD, w_VD = self._head(h_BTD)
    return Score(*head_score(h_BTD, w_VD, targets_BT, None, chunk), reading)

  def _run(
    self, tokens_BL, decoder_tokens_BT, valid_BL, *, measure, train, mode: Mode = Mode(), **options
  ):
    measure = ("seen" if mode.hard else "all") if measure else None
    memory = self.encode(tokens_BL, valid_BL, mode=mode, measure=measure, train=train, **options)
    h_BTD, cross = self.decode(decoder_tokens_BT, memory, measure=measure, train=train)
    cfg = self.cfg
    num_measured = cfg.num_encoder_layers - self._front + cfg.num_decoder_layers
    return h_BTD, Reading(memory, (memory.excess + cross) / num_measured)

  def encode(
    self,
    tokens_BL,
    valid_BL=None,
    *,
    mode: Mode = Mode(),
    noise=None,
    measure: Measure = None,
    train=False,
  ) -> Memory:
    if tokens_BL.shape[0] % mode.rows:
      raise ConfigError(
        f"{mode.rows} rows per buffer do not divide a batch of {tokens_BL.shape[0]} rows"
      )
    h_BLD, keys = self.encode_front(tokens_BL, valid_BL, train=train)
    reduced = None
    if self.cfg.reduction is not None:
      reduced = self.reduction(h_BLD, tokens_BL, keys.valid_BS, mode, train=train, noise=noise)
    return self.encode_back(h_BLD, keys, reduced, measure=measure, train=train)

  def encode_front(self, tokens_BL, valid_BL=None, *, train=False):
    """(h_BLD entering the reduction's block, Keys): everything that runs at full length."""
    keys = Keys(tokens_BL != 0 if valid_BL is None else valid_BL.astype(bool))
    x_BLD = self._embed(tokens_BL, self.encoder_position, train)
    x_BLD = tap(self, "encoder_embed", x_BLD)
    if self._front:
      x_BLD, _ = self.encoder_front(
        x_BLD, keys, self._relative(self.encoder_position), not train, None
      )
    return x_BLD, keys

  def encode_back(
    self, h_BLD, keys: Keys, reduced: Reduced | None, *, measure: Measure = None, train=False
  ) -> Memory:
    excess, cross = jnp.zeros(()), keys
    if reduced is not None:
      keys = Keys(reduced.valid_BC, reduced.gate_BC, reduced.index_BC, reduced.row_BC)
      cross = Keys(reduced.cross_valid_BC, reduced.gate_BC, None, reduced.row_BC)
      table = self._relative(self.encoder_position)
      h_BLD, excess = self.encoder_back(reduced.h_BCD, keys, table, not train, measure)
      excess = jnp.sum(excess)
    h_BCD = self.dropout(self.encoder_norm(h_BLD), deterministic=not train)
    h_BCD = tap(self, "encoder_final", h_BCD)
    return Memory(h_BCD, cross, reduced, excess)

  def decode(self, tokens_BT, memory: Memory, *, measure: Measure = None, train=False):
    """(h_BTD before the head, sum of the cross-attentions' score regulariser)."""
    own = Keys(jnp.ones(tokens_BT.shape, bool))
    h_BTD, (_, excess) = self._decoder_blocks(
      tokens_BT, None, memory, own, None, None, measure, train
    )
    return h_BTD, jnp.sum(excess)

  def start(self, memory: Memory, max_len: int) -> DecodingState:
    """The state before the first token: no keys of its own, those of the memory in every layer."""
    cfg, B = self.cfg, memory.h_BCD.shape[0]
    if memory.keys.row_BS is not None:
      B = memory.reduced.keep_BL.shape[0]
    params = self.variables["params"]["decoder"]["cross"]

    def project(w):
      return jnp.einsum("bcd,ldnh->lbcnh", memory.h_BCD, jnp.asarray(w, cfg.dtype))

    unbox = nn.unbox(params)
    empty = jnp.zeros((cfg.num_decoder_layers, B, max_len, cfg.num_heads, cfg.d_kv), cfg.dtype)
    return DecodingState(
      jnp.zeros((), jnp.int32),
      DecoderCache(KV(empty, empty), KV(project(unbox["w_k"]), project(unbox["w_v"]))),
    )

  def extend(self, tokens_B1, memory: Memory, state: DecodingState):
    """(logits_B1V, state) after one more token of every row."""
    B, S = tokens_B1.shape[0], state.layers.own.k_BSNH.shape[2]
    at = state.length
    seen_BS = jnp.broadcast_to(jnp.arange(S)[None] <= at, (B, S))
    own = Keys(seen_BS, None, jnp.arange(S, dtype=jnp.int32)[None])
    h_BTD, (layers, _) = self._decoder_blocks(
      tokens_B1, state.layers, memory, own, at[None, None], at, None, False
    )
    return self._logits(h_BTD), DecodingState(at + 1, layers)

  def _decoder_blocks(self, tokens_BT, caches, memory, own, index_BT, at, measure, train):
    x_BTD = self._embed(tokens_BT, self.decoder_position, train, at)
    x_BTD = tap(self, "decoder_embed", x_BTD)
    x_BTD, out = self.decoder(
      x_BTD,
      caches,
      memory.h_BCD,
      memory.keys,
      own,
      self._relative(self.decoder_position),
      index_BT,
      at,
      not train,
      measure,
    )
    h_BTD = self.dropout(self.decoder_norm(x_BTD), deterministic=not train)
    h_BTD = tap(self, "decoder_final", h_BTD)
    return h_BTD, out

  def _relative(self, position):
    return position() if self.cfg.max_positions is None else None

  def _embed(self, tokens_BT, position, train, at=None):
    cfg, T = self.cfg, tokens_BT.shape[1]
    x_BTD = jnp.take(self.embed(), tokens_BT, axis=0, mode="clip")
    if cfg.max_positions is not None:
      if T > cfg.max_positions:
        raise ConfigError(
          f"a sequence of {T} tokens is longer than max_positions = {cfg.max_positions}"
        )
      table_PD = position()
      x_BTD += (table_PD[:T] if at is None else jax.lax.dynamic_slice_in_dim(table_PD, at, T, 0))[
        None
      ]
    return self.dropout(x_BTD.astype(cfg.dtype), deterministic=not train)

  def _head(self, h_BTD):
    """(h, w): tied weights are the embedding's; h is scaled as `scale_logits` says."""
    cfg = self.cfg
    w_VD = (self.embed if cfg.tie_embeddings else self.head)().astype(cfg.dtype)
    scaled = cfg.tie_embeddings if cfg.scale_logits is None else cfg.scale_logits
    return (h_BTD * cfg.d_model**-0.5 if scaled else h_BTD), w_VD

  def _logits(self, h_BTD):
    return head_logits(*self._head(h_BTD))
