"""What an architecture has to say to be converted, and the parts that several of them share.

To add one: a module with an `Architecture` subclass that reads its config.json into a
DecoderConfig, writes it back, and lists its weights as rules; then a line in ARCHITECTURES (this
package's __init__).
"""

from jaxlm.config import ConfigError
from jaxlm.interop.huggingface.fields import Fields
from jaxlm.interop.huggingface.table import Rule, Table
from jaxlm.layers.attention import AttentionConfig
from jaxlm.layers.mixer import PatternConfig
from jaxlm.models.decoder import DecoderConfig

#: Their activation -> ours. gelu_new, gelu_fast and gelu_accurate are the tanh form written
#: differently.
ACTIVATIONS = {
  "gelu": "gelu",
  "gelu_python": "gelu",
  "gelu_new": "gelu_tanh",
  "gelu_pytorch_tanh": "gelu_tanh",
  "gelu_python_tanh": "gelu_tanh",
  "gelu_fast": "gelu_tanh",
  "gelu_accurate": "gelu_tanh",
  "silu": "silu",
  "swish": "silu",
  "relu": "relu",
  "relu2": "relu2",
  "quick_gelu": "quick_gelu",
  "tanh": "tanh",
}
#: Ours -> the name written to a config.json.
ACTIVATION_NAMES = {
  "gelu": "gelu",
  "gelu_tanh": "gelu_pytorch_tanh",
  "silu": "silu",
  "relu": "relu",
  "relu2": "relu2",
  "quick_gelu": "quick_gelu",
  "tanh": "tanh",
}


class Architecture:
  """One family of checkpoints. Stateless: the methods are given what they need."""

  name: str  # as in config.json's `architectures`
  model_type: str
  #: A release of its own, whose config.json has neither of the two and no place for them.
  bare = False
  #: A head that differs from the embedding it is tied to is read as a head of its own (transformers
  #: 5), not refused.
  own_head = True
  #: An untied configuration without a stored head means a tied one (T5 in transformers 5), not a
  #: missing array.
  headless_ties = False
  #: Fields that `read` knows to change nothing and that an export of an imported checkpoint writes
  #: back.
  kept: tuple[str, ...] = ()

  def read(self, fields: Fields, seq_len: int | None) -> DecoderConfig:
    """config.json -> ours. Raises ConfigError for what the decoder does not do."""
    raise NotImplementedError(f"{type(self).__name__} does not read configurations")

  def write(self, cfg: DecoderConfig, max_len: int) -> dict:
    """Ours -> config.json, without `architectures` and `model_type`. max_len: for a model without a
    limit.

    What has no field there may be dropped: the caller reads the result back and refuses a
    difference.
    """
    raise NotImplementedError(f"{type(self).__name__} does not write configurations")

  def table(self, cfg: DecoderConfig) -> Table:
    """The rules of a model that `read` gave."""
    raise NotImplementedError(f"{type(self).__name__} has no name table")


def attention_of(cfg: DecoderConfig, name: str) -> AttentionConfig:
  """The attention that all layers share, up to window and scale.

  Raises ConfigError if they differ otherwise.
  """
  if not isinstance(cfg, DecoderConfig):
    raise ConfigError(f"{type(cfg).__name__} is no stack of one kind of layer")
  first, same = cfg.mixers[0], lambda m: m.stack_key
  if not isinstance(first, AttentionConfig) or any(same(m) != same(first) for m in cfg.mixers):
    kinds = sorted({type(m).__name__.removesuffix("Config") for m in cfg.mixers})
    raise ConfigError(
      f"its layers are {', '.join(kinds)} with parameters of their own, {name} has one kind of "
      f"attention in all layers"
    )
  return first


def sizes_of(cfg: DecoderConfig, attention: AttentionConfig) -> dict[str, int]:
  """Axis letters of the name tables -> sizes."""
  heads = attention.heads(cfg.d_model)
  return dict(
    d=cfg.d_model,
    n=heads.num_heads,
    k=heads.num_kv_heads,
    h=heads.head_dim,
    v=cfg.vocab_size,
    f=cfg.mlp.d_ff or 4 * cfg.d_model,
  )


def pattern(mixers: list[AttentionConfig]):
  """The shortest description of these layers: one mixer, or a pattern of its period."""
  period = next(
    p for p in range(1, len(mixers) + 1) if all(m == mixers[i % p] for i, m in enumerate(mixers))
  )
  if period == 1:
    return mixers[0]
  members = list(dict.fromkeys(mixers[:period]))
  return PatternConfig(tuple(members), tuple(members.index(m) for m in mixers[:period]))


def read_layer_types(fields: Fields, num_layers: int, default: list[str]) -> list[bool]:
  """Which layers have a sliding window."""
  types = fields.get("layer_types", default)
  if not isinstance(types, (list, tuple)) or len(types) != num_layers:
    raise ConfigError(
      f"{fields.what}: layer_types = {types!r}, wanted one for each of num_hidden_layers = "
      f"{num_layers}"
    )
  for kind in types:
    if kind not in ("full_attention", "sliding_attention"):
      raise ConfigError(
        f"{fields.what}: layer_types holds {kind!r}, which is not supported; known: full_attention, "
        f"sliding_attention"
      )
  return [kind == "sliding_attention" for kind in types]


def write_layer_types(cfg: DecoderConfig) -> tuple[list[str], int | None]:
  """(layer_types, the window that all windowed layers share or None)."""
  windows = [m.window for m in cfg.mixers]
  given = sorted({w for w in windows if w is not None})
  if len(given) > 1:
    raise ConfigError(f"its windows are {given}, this architecture has one window size")
  return ["full_attention" if w is None else "sliding_attention" for w in windows], given[
    0
  ] if given else None


def norm_rules(theirs: str, ours: str, *, bias: bool = False) -> list[Rule]:
  rules = [Rule(f"{theirs}.weight", f"{ours}/scale", "d -> d")]
  return rules + [Rule(f"{theirs}.bias", f"{ours}/bias", "d -> d")] if bias else rules
