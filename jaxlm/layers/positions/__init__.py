"""Position encodings, one file each, behind one contract.

Axes: B batch, T time, S cached keys, D d_model, N heads, K kv heads, H head_dim, P rotated pairs.

To add one, write a frozen dataclass that derives from `Position` in a file of this folder, override
what it does, and register it in POSITIONS. It is then a value of `model.position` in every model,
for training, evaluation and decoding. Parameters are declared on the given module, with `weights`
of jaxlm.layers.weights: `weights(module)("w_freq", (D, K), ("embed", "kv_heads"))`. `context` is
jaxlm.layers.mixer.Context: positions_BT, segment_ids_BT (0 marks padding), embedding_BTD and the
rest. Padding must leave a row's decoding state unchanged. A position may

  add to the embedding             add
  compute once for all layers      prepare (its parameters lie under params/position, not in the layers)
  rotate or change q and k         encode
  add a bias to the scores         bias, from what `encode` said about each key
  carry decoding state             init_state (layers), init_model_state (prepare), init_key_info (per cached key)
  except parameters from decay     the parameter's `role`, see `weights`
"""

import dataclasses
from typing import Any, NamedTuple

import jax

from jaxlm.config import ConfigError, Kinds

POSITIONS = Kinds(
  "position",
  {
    "none": "jaxlm.layers.positions:NoPosition",
    "sinusoidal": "jaxlm.layers.positions.additive:Sinusoidal",
    "learned": "jaxlm.layers.positions.additive:Learned",
    "rope": "jaxlm.layers.positions.rope:RoPE",
    "carope": "jaxlm.layers.positions.carope:CARoPE",
    "alibi": "jaxlm.layers.positions.alibi:ALiBi",
    "cable": "jaxlm.layers.positions.cable:CABLE",
    "cope": "jaxlm.layers.positions.cope:CoPE",
    "t5": "jaxlm.layers.positions.t5:T5Bias",
  },
)


@dataclasses.dataclass(frozen=True)
class Heads:
  """The sizes of the attention that a position encoding serves."""

  d_model: int
  num_heads: int
  num_kv_heads: int
  head_dim: int


class Encoded(NamedTuple):
  """What `encode` returns. key_info: pytree of (B, T, ...), cached with the keys and handed to
  `bias`.
  """

  q_BTNH: jax.Array
  k_BTKH: jax.Array
  key_info: Any = ()
  state: Any = ()


class Position:
  """Base of position configs: says nothing about positions."""

  #: Longest sequence that it can encode; None = any.
  max_positions = None

  #: The bias needs the keys of a row in order, so that a window's cache must not be a ring.
  ordered_keys = False

  #: Says nothing but what `context.positions_BT` says of each token, so that tokens may share
  #: positions and stand in any order (draft trees, set prompts, two copies of a row).
  by_position = False

  def check(self, heads: Heads) -> None:
    """Raises ConfigError if it does not fit these heads."""

  def add(self, module, x_BTD, context):
    """x with positions added, once, after the token embedding."""
    return x_BTD

  def prepare(self, module, heads: Heads, context, state):
    """(shared, state): computed once per forward pass and handed to every layer's `encode`."""
    return None, state

  def encode(self, module, heads: Heads, q_BTNH, k_BTKH, x_BTD, context, shared, state) -> Encoded:
    """New q and k of one layer. x: what they were projected from. state: None, or what the last
    call returned: `init_state`, or a Trail of it; `layers.rewind.walk` goes on with either.
    """
    return Encoded(q_BTNH, k_BTKH)

  def bias(self, module, heads: Heads, query_info, key_info, shared):
    """None, or a bias of jaxlm.kernels.attention (LinearBias, KeyBias ...).

    query_info: (B, T, ...); key_info: (B, S, ...), both from `encode`.
    """
    return None

  def init_state(self, heads: Heads, batch_size: int):
    """Decoding state of one layer, batch axis first; () if it needs none."""
    return ()

  def init_model_state(self, heads: Heads, batch_size: int):
    """Decoding state of `prepare`."""
    return ()

  def init_key_info(self, heads: Heads, batch_size: int, num_keys: int):
    """Zeros like `key_info` with S keys."""
    return ()


@dataclasses.dataclass(frozen=True)
class NoPosition(Position):
  """No position signal: the causal mask alone orders the tokens (NoPE)."""

  by_position = True


def check_even(name: str, value: int, limit: int) -> None:
  """Refuses a number of rotated channels that is odd, not positive or larger than the head."""
  if value % 2 or not 0 < value <= limit:
    raise ConfigError(f"{name} = {value}: wanted an even number from 2 to head_dim = {limit}")
