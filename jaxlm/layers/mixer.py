"""The contract of token mixers: what a decoder asks of attention, Mamba-2, fast weights and the rest.

Axes: B batch, T time, D d_model.

A mixer is chosen by its config, a frozen dataclass registered in MIXERS, with two methods:

  build(d_model, dtype, name) -> nn.Module         called inside the parent's compact scope
  init_state(d_model, batch_size, max_len, dtype) -> pytree of arrays, batch axis first

The module is called as `y_BTD, state = module(x_BTD, context, state)`. With `state=None` it maps a whole
sequence and returns None as the state. With a state it continues after the tokens the state has seen, for
any T >= 1 (prefill or one step), and returns the state after the last *valid* token of each row; a row whose
token is invalid (segment id 0) keeps its state. Both paths share their functions and must agree.
"""

import jax
from flax import struct

from jaxlm.config import Kinds

MIXERS = Kinds("mixer", {
    "attention": "jaxlm.layers.attention:AttentionConfig",
})


@struct.dataclass
class Context:
  """What every layer may know about the tokens it sees.

  segment_ids_BT: int32, documents packed in a row count from 1; 0 marks padding.
  positions_BT: int32, position within the segment (for decoding: tokens already seen in the row).
  embedding_BTD: the layer-0 token embedding, for mixers that read it (CARoPE's token_embedding source).
  """

  segment_ids_BT: jax.Array
  positions_BT: jax.Array
  embedding_BTD: jax.Array | None = None
