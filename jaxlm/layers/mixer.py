"""The contract of token mixers: what a decoder asks of attention, Mamba-2, fast weights and the
rest.

Axes: B batch, T time, D d_model.

A mixer is chosen by its config, a frozen dataclass that derives from `Mixer` and is registered in
MIXERS.

The module is called as `y_BTD, state = module(x_BTD, context, state)`. With `state=None` it maps a
whole sequence and returns None as the state; without a context every token is valid and each row is one
document (`given_or_plain`), so that a mixer stands alone in any module: `y_BTD, state = module(x_BTD)`.
With a state it continues after the tokens the state
has seen, for any T >= 1 (prefill or one step), and returns the state after the last *valid* token
of each row; a row whose token is invalid (segment id 0) keeps its state. Both paths share their
functions and must agree. `layers.rewind.rewind` takes tokens back, exactly, from a state that was
begun with `rewindable`.
"""

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxlm.config import ConfigError, Kinds, checked
from jaxlm.ranges import Natural

MIXERS = Kinds(
  "mixer",
  {
    "attention": "jaxlm.layers.attention:AttentionConfig",
    "similarity_attention": "jaxlm.layers.similarity_attention:SimilarityAttentionConfig",
    "key_only_attention": "jaxlm.layers.deconstructed:KeyOnlyAttentionConfig",
    "stream_attention": "jaxlm.layers.deconstructed:StreamAttentionConfig",
    "channel_mlp": "jaxlm.layers.deconstructed:ChannelMLPConfig",
    "mamba2": "jaxlm.layers.mamba2:Mamba2Config",
    "lact": "jaxlm.layers.lact:LaCTConfig",
    "gla": "jaxlm.layers.gla:GLAConfig",
    "delta_rule": "jaxlm.layers.delta_rule:DeltaRuleConfig",
    "gated_delta_rule": "jaxlm.layers.delta_rule:GatedDeltaRuleConfig",
    "hybrid": "jaxlm.layers.hybrid:HybridConfig",
    "pattern": "jaxlm.layers.mixer:PatternConfig",
  },
)


@struct.dataclass
class Context:
  """What every layer may know about the tokens it sees.

  segment_ids_BT: int32, documents packed in a row count from 1; 0 marks padding.
  positions_BT: int32, position within the segment (for decoding: tokens already seen in the row).
  key_segment_ids_BT: of the tokens as attention's keys, where it is not segment_ids_BT: 0 is looked
  at by nobody, while
    the token itself looks at others. Needs packed.
  embedding_BTD: the layer-0 token embedding, for mixers that read it (CARoPE's token_embedding
  source).
  shared: what the model's position encoding computed once for all layers, for the layers whose
    (position, heads) equals `shared_by`.
  depth: number of residual branches; output projections start at 0.02 / sqrt(depth).
  packed: False promises that every token is valid and each row is one document starting at position
  0.
  lexicon: layers.lexinvariant.Lexicon, what an embedding that differs between sequences knows about
  each of them.
  tokens_BT: the token ids, for embeddings whose softmax depends on which occur.
  streaming: the tokens continue rows whose earlier tokens are not here.
  num_fixed_rows: so many rows at the end are the model's fixed stream.
  order_BT: int32, index of a token among those of its row, where it is not positions_BT: causality and
  the key-value cache go by it. structure: a mask of jaxlm.kernels.attention.structure, None for none.
  """

  segment_ids_BT: jax.Array
  positions_BT: jax.Array
  embedding_BTD: jax.Array | None = None
  shared: Any = None
  shared_by: Any = struct.field(pytree_node=False, default=None)
  depth: int = struct.field(pytree_node=False, default=1)
  packed: bool = struct.field(pytree_node=False, default=True)
  lexicon: Any = None
  tokens_BT: jax.Array | None = None
  streaming: bool = struct.field(pytree_node=False, default=False)
  key_segment_ids_BT: jax.Array | None = None
  num_fixed_rows: int = struct.field(pytree_node=False, default=0)
  order_BT: jax.Array | None = None
  structure: Any = None


def given_or_plain(context: Context | None, x_BTD, state=None) -> Context:
  """The context, or that of rows of one document each, without padding, which go on where `state`
  ends.
  """
  if context is not None:
    return context
  B, T, _ = x_BTD.shape
  cached = [
    part
    for part in jax.tree.leaves(state, is_leaf=lambda part: hasattr(part, "index_BS"))
    if hasattr(part, "index_BS")
  ]
  positions_BT = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (B, T))
  if cached:  # only attention asks for positions, and its cache knows them
    index_BS = cached[0].index_BS.reshape(-1, *cached[0].index_BS.shape[-2:])[
      0
    ]  # of a stack, the first layer
    positions_BT = positions_BT + jnp.max(index_BS, axis=1, keepdims=True) + 1
  return Context(
    jnp.ones((B, T), jnp.int32), positions_BT, packed=False, streaming=state is not None
  )


class Mixer:
  """Base of mixer configs. Override `build` and `init_state`; the rest has defaults.

  followed_by_mlp: False means that the block ends after the mixer (Mamba). causal: no token sees a
  later one. window: of attention, None where there is none. position: of a mixer that takes a
  position encoding. reads_embedding: the input of the first layer must be in the context.
  """

  followed_by_mlp = True
  causal = True
  window = None
  position = None
  reads_embedding = False

  def build(self, d_model: int, dtype: str, name: str | None = None):
    """The Linen module. Called inside the parent's compact scope."""
    raise NotImplementedError(f"{type(self).__name__} builds no module")

  def init_state(self, d_model: int, batch_size: int, max_len: int, dtype, rewindable: int = 0):
    """The decoding state before the first token: a pytree of arrays, batch axis first.

    rewindable: by how many tokens a row can go back, see `layers.rewind`.
    """
    raise NotImplementedError(f"{type(self).__name__} has no decoding state")

  def heads(self, d_model: int):
    """`Heads` of a mixer that takes a position encoding, else None.

    ConfigError if they do not fit the width.
    """
    return None

  def with_position(self, position) -> "Mixer":
    """The same config with the model's position, if it takes one and has none of its own."""
    return self

  @property
  def stack_key(self):
    """A hashable. Layers with equal keys have equal parameters and share one stack."""
    return self


@dataclasses.dataclass(frozen=True)
@checked
class PatternConfig(Mixer):
  """Layers of several kinds in a repeating order.

  members: the mixers. order: their indices in one period, (0, 0, 1) for two of the first and one of
  the second; default each once. Layer l is members[order[l % len(order)]]; the number of layers is
  free.
  """

  members: tuple[Annotated[object, MIXERS], ...]
  order: tuple[Natural, ...] | None = None

  def __post_init__(self):
    if not self.members:
      raise ConfigError("members = (): a pattern needs at least one mixer")
    for index in self.order or ():
      if not 0 <= index < len(self.members):
        raise ConfigError(
          f"order = {self.order}: {index} is not the index of one of {len(self.members)} members"
        )
    if self.order == ():
      raise ConfigError(
        "order = (): one period needs at least one layer; leave it out for each member once"
      )
    if any(isinstance(m, PatternConfig) for m in self.members):
      raise ConfigError("members: a pattern inside a pattern; write one order instead")

  @property
  def period(self) -> tuple:
    return tuple(self.members[i] for i in self.order or range(len(self.members)))

  def with_position(self, position):
    return dataclasses.replace(self, members=tuple(m.with_position(position) for m in self.members))


def check_width(mixer, d_model: int) -> None:
  """Raises ConfigError where a mixer cannot be `d_model` wide. Nothing is allocated."""
  jax.eval_shape(lambda: mixer.init_state(d_model, 1, 1, "float32"))


def layers_of(mixer, num_layers: int) -> tuple:
  """The mixer config of each layer."""
  period = mixer.period if isinstance(mixer, PatternConfig) else (mixer,)
  return tuple(period[l % len(period)] for l in range(num_layers))
