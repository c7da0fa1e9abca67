"""The decoder language model: GPT-2, Llama, Mistral, Qwen3, Gemma-2, GPT-NeoX, hybrids, as settings
of one file.

Axes: B batch, T time, D d_model, V vocab.
"""

import dataclasses
from typing import Annotated, Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.config import ConfigError, checked
from jaxlm.layers import stack
from jaxlm.layers.attention import AttentionConfig
from jaxlm.layers.embedding import EMBEDDINGS, EmbeddingConfig, Head
from jaxlm.layers.fixed_stream import FixedStreamConfig
from jaxlm.layers.lexinvariant import LexinvariantConfig, check_embedding, check_packing
from jaxlm.layers.mixer import MIXERS, Context, PatternConfig, layers_of
from jaxlm.layers.mlp import MLPConfig
from jaxlm.layers.norms import NORMS, RMSNormConfig
from jaxlm.layers.positions import POSITIONS, Heads, NoPosition
from jaxlm.layers.positions.shared import SharedPosition
from jaxlm.layers.rewind import Reach, keep, rewind, trail
from jaxlm.layers.taps import tap
from jaxlm.models.base import ModelConfig, StackPart, check_rows
from jaxlm.models.score import Score
from jaxlm.ranges import Count, Dtype, Layers, Positive


@dataclasses.dataclass(frozen=True)
@checked
class DecoderConfig(ModelConfig):
  """A stack of mixers and MLPs between an embedding and a softmax.

  mixer: attention by default in every layer; `pattern` mixes kinds. mlp: None for mixers that stand
  alone.
  position: added to the embedding, or used by every mixer that has none of its own.
  residual, remat, unroll: see layers.stack.BlockConfig. softcap: c tanh(logit / c).
  tie_embeddings: the head is the embedding's table. dtype: of the computation; parameters are
  float32.
  loss_chunk: positions of the sequence whose logits exist at a time, so that (B, T, V) never does;
  None: by size.
  final_norm: False leaves out the norm in front of the head. fixed_stream: see layers.fixed_stream;
  such a model does not decode token by token.
  """

  vocab_size: Count
  d_model: Count
  num_layers: Layers
  mixer: Annotated[object, MIXERS]
  mlp: MLPConfig | None = MLPConfig()
  norm: Annotated[object, NORMS] = RMSNormConfig()
  position: Annotated[object, POSITIONS] = NoPosition()
  embedding: Annotated[object, EMBEDDINGS] = EmbeddingConfig()
  residual: Literal["sequential", "parallel", "sandwich", "post"] = "sequential"
  softcap: Positive | None = None
  tie_embeddings: bool = True
  remat: Literal["none", "full", "minimal", "dots"] = "none"
  unroll: Count = 1
  dtype: Dtype = "float32"
  loss_chunk: Count | None = None
  final_norm: bool = True
  fixed_stream: FixedStreamConfig | None = None

  def __post_init__(self):
    if self.fixed_stream is not None and isinstance(self.embedding, LexinvariantConfig):
      raise ConfigError(
        "fixed_stream with a lexinvariant embedding: a table that differs between rows has no fixed "
        "stream; leave one of them out"
      )
    check_embedding(self.embedding, self.tie_embeddings)
    for mixer in self.mixers:
      mixer.heads(self.d_model)
    if self.heads is not None:
      self.position.check(self.heads)

  @property
  def mixers(self) -> tuple:
    """The mixer of each layer, with its position."""
    return layers_of(self.mixer.with_position(self.position), self.num_layers)

  @property
  def period(self) -> int:
    return len(self.mixer.period) if isinstance(self.mixer, PatternConfig) else 1

  @property
  def block(self) -> stack.BlockConfig:
    return stack.BlockConfig(
      self.d_model, self.mlp, self.norm, self.residual, self.remat, self.unroll, self.dtype
    )

  @property
  def heads(self) -> Heads | None:
    """Of the first mixer that uses the model's position."""
    found = ((m.heads(self.d_model), m.position) for m in self.mixers)
    return next(
      (heads for heads, position in found if heads is not None and position == self.position), None
    )

  @property
  def max_len(self) -> int | None:
    """Longest sequence that the model can read; None = any."""
    return self.position.max_positions

  @property
  def stacks(self) -> dict[str, tuple[StackPart, ...]]:
    return {
      "blocks": tuple(
        StackPart(("blocks", *path), layers)
        for path, layers in stack.parts(self.mixers, self.period)
      )
    }

  @property
  def decodes(self) -> bool:
    return self.fixed_stream is None

  @property
  def why_unstructured(self) -> str | None:
    """Why it cannot read draft trees and set prompts, as the end of 'this model ..'; None: it can.

    Their masks go by the order of the tokens, their positions do not.
    """
    for mixer in self.mixers:
      if not isinstance(mixer, AttentionConfig):
        return f"has a {type(mixer).__name__}, whose state knows no branches"
      if mixer.window is not None:
        return "has a window, which counts tokens in order"
      position = NoPosition() if mixer.position is None else mixer.position
      for used in (position, self.position):
        if not used.by_position:
          return f"has position {type(used).__name__}, which goes by the order of the tokens"
    return None

  def build(self) -> nn.Module:
    return Decoder(self)

  def build_stack(self, *, init: bool) -> nn.Module:
    """The layers: `x_BTD, states = stack(x_BTD, context, states)`. init: is_initializing()."""
    return stack.build(self.block, self.mixers, self.period, "blocks", init=init)

  def init_state(self, batch_size: int, max_len: int, rewindable: int = 0) -> "DecoderState":
    """The state before the first token; at most max_len tokens per row may follow, and each row can
    go back by `rewindable` tokens.
    """
    if not self.decodes:
      raise ConfigError(
        "a model with fixed_stream has no decoding state; run it on the whole sequence again"
      )
    position = (
      self.position.init_model_state(self.heads, batch_size) if self.heads is not None else ()
    )
    layers = stack.init_states(
      self.block, self.mixers, self.period, batch_size, max_len, rewindable
    )
    return DecoderState(
      jnp.zeros(batch_size, jnp.int32),
      trail(position, rewindable),
      layers,
      Reach.begin(batch_size, rewindable),
    )

  def rewind(self, state: "DecoderState", length_B) -> "DecoderState":
    length_B = state.reach.allowed(length_B, state.length_B)
    return state._replace(
      length_B=length_B,
      position=rewind(state.position, length_B),
      layers=rewind(state.layers, length_B),
    )

  def keep(self, state: "DecoderState", base_B, path_BK, count_B) -> "DecoderState":
    """The state when each row has its first base tokens and those numbered path behind them, `count`
    of them (`layers.rewind.keep`). base_B: int32, at least the oldest length that is kept.
    """
    base_B = state.reach.allowed(base_B, state.length_B)
    layers = keep(state.layers, base_B, path_BK, count_B)
    return state._replace(length_B=base_B + count_B, layers=layers)


class DecoderState(NamedTuple):
  """length_B: tokens seen; position: of the model's position encoding; layers: of the stack. reach:
  how far the rows can go back.
  """

  length_B: jax.Array
  position: Any
  layers: Any
  reach: Reach = Reach()


class Decoder(nn.Module):
  """logits = head(norm(block_L(... block_1(embed(tokens) + position)))). Methods: see jaxlm.models."""

  cfg: DecoderConfig

  def setup(self):
    cfg = self.cfg
    self.embed = cfg.embedding.build(cfg.vocab_size, cfg.d_model, cfg.dtype)
    self.position = SharedPosition(cfg.position, cfg.heads)
    self.blocks = cfg.build_stack(init=self.is_initializing())
    self.final_norm = (
      cfg.norm.build(cfg.dtype, "final_norm") if cfg.final_norm else lambda x_BTD: x_BTD
    )
    self.head = self.embed if cfg.tie_embeddings else Head(cfg.vocab_size, cfg.d_model, cfg.dtype)

  def __call__(
    self, tokens_BT, segment_ids_BT=None, positions_BT=None, lexicon=None, structure=None
  ):
    """float32 logits (B, T, V). structure: see `Context`."""
    h_BTD, context, _ = self._hidden(
      tokens_BT, segment_ids_BT, positions_BT, lexicon=lexicon, structure=structure
    )
    return self.head.logits(h_BTD, context, softcap=self.cfg.softcap)

  def score(
    self, tokens_BT, targets_BT, segment_ids_BT=None, positions_BT=None, lexicon=None
  ) -> Score:
    """log p(target | tokens up to here) at every position. lexicon: see layers.lexinvariant."""
    h_BTD, context, _ = self._hidden(tokens_BT, segment_ids_BT, positions_BT, lexicon=lexicon)
    return Score(
      *self.head.score(
        h_BTD, targets_BT, context, softcap=self.cfg.softcap, chunk=self.cfg.loss_chunk
      )
    )

  def states(self, tokens_BT, segment_ids_BT=None, positions_BT=None, lexicon=None):
    """What the head reads, (B, T, D)."""
    return self._hidden(tokens_BT, segment_ids_BT, positions_BT, lexicon=lexicon)[0]

  def vectors(self, tokens_BT, lexicon=None):
    """The embedding's vectors of tokens, in whatever order: (B, T, D)."""
    every_BT = jnp.ones_like(tokens_BT)
    return self.embed.encode(tokens_BT, Context(every_BT, every_BT, packed=False, lexicon=lexicon))

  def extend(
    self,
    tokens_BT,
    state: DecoderState,
    segment_ids_BT=None,
    lexicon=None,
    positions_BT=None,
    structure=None,
  ):
    """(logits_BTV, state) after more tokens of each row's one document; tokens of segment 0 are
    passed over.

    positions_BT: int32, for the position encoding, where it is not the number of tokens before;
    structure: see `Context`. Both need `why_unstructured` None.
    """
    check_rows(tokens_BT, state)
    valid_BT = (
      jnp.ones_like(tokens_BT)
      if segment_ids_BT is None
      else (segment_ids_BT != 0).astype(jnp.int32)
    )
    order_BT = state.length_B[:, None] + jnp.maximum(jnp.cumsum(valid_BT, axis=1) - 1, 0)
    h_BTD, context, state = self._hidden(
      tokens_BT,
      valid_BT,
      order_BT if positions_BT is None else positions_BT,
      state,
      lexicon,
      order_BT,
      structure,
    )
    return self.head.logits(h_BTD, context, softcap=self.cfg.softcap), state

  def _hidden(
    self,
    tokens_BT,
    segment_ids_BT,
    positions_BT,
    state=None,
    lexicon=None,
    order_BT=None,
    structure=None,
  ):
    cfg = self.cfg
    check_packing(cfg.embedding, segment_ids_BT, positions_BT)
    packed = segment_ids_BT is not None or positions_BT is not None
    segment_ids_BT = jnp.ones_like(tokens_BT) if segment_ids_BT is None else segment_ids_BT
    positions_BT = positions_in_segment(segment_ids_BT) if positions_BT is None else positions_BT
    B, rows = tokens_BT.shape[0], 0
    if cfg.fixed_stream is not None:
      tokens_BT, segment_ids_BT, positions_BT, rows = cfg.fixed_stream.append(
        tokens_BT, segment_ids_BT, positions_BT
      )
    context = Context(
      segment_ids_BT,
      positions_BT,
      num_fixed_rows=rows,
      depth=2 * cfg.num_layers,
      packed=packed,
      lexicon=lexicon,
      tokens_BT=tokens_BT,
      streaming=state is not None,
      order_BT=order_BT,
      structure=structure,
    )

    x_BTD = nn.with_logical_constraint(
      self.embed.encode(tokens_BT, context), ("batch", "seq", "embed_act")
    )
    x_BTD, context, position_state = self.position(
      x_BTD, context, state.position if state else None
    )
    if rows:
      x_BTD = cfg.fixed_stream.set(x_BTD, rows)
    x_BTD = tap(self, "embedded", x_BTD)
    layers = state.layers if state else stack.no_states(cfg.mixers, cfg.period)
    x_BTD, layers = self.blocks(x_BTD, context, layers)
    if rows:
      x_BTD, context = x_BTD[:B], context.replace(tokens_BT=tokens_BT[:B])
    h_BTD = tap(self, "final", self.final_norm(x_BTD))
    if state:
      valid_B = jnp.sum((segment_ids_BT != 0).astype(jnp.int32), axis=1)
      length_B = state.length_B + valid_B
      state = DecoderState(length_B, position_state, layers, state.reach.after(length_B))
    return h_BTD, context, state


def positions_in_segment(segment_ids_BT):
  """0, 1, 2 ... from the start of each run of equal segment ids."""
  index_1T = jnp.arange(segment_ids_BT.shape[1], dtype=jnp.int32)[None]
  starts_BT = jnp.concatenate(
    [jnp.ones_like(segment_ids_BT[:, :1], bool), segment_ids_BT[:, 1:] != segment_ids_BT[:, :-1]],
    axis=1,
  )
  return index_1T - jax.lax.cummax(jnp.where(starts_BT, index_1T, 0), axis=1)
