"""The contract of decoding engines.

Axes: B batch, T position.

An engine is a frozen dataclass of base `Engine`, made for one model config and registered in
ENGINES. Its fields are static: what the model is, how tokens are chosen, which ids mean what. Its
`generate` takes parameters and prompts and returns `Generations`. To add one, write a file with the
class, override `decode_batch`, and register it; `jaxlm generate --algorithm NAME` then runs it. The
first engine of the table that serves a model is the model's default.

Rows are independent. Row number b of a call draws with the key fold_in(key(seed), b), and draw t of
it with fold_in(that, t), so that its draws depend neither on the other rows nor on `batch_size`.
With `batch_size` and `max_len` given, engines that decode from left to right also run every batch
in the same shapes. Otherwise the logits of a row may differ in their last bits from one shape to
another, which changes a token only where two are equally good to that precision.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.config import ConfigError, Kinds, check_number, check_seed, nearest
from jaxlm.generation.sampling import Sampling
from jaxlm.models import MODELS
from jaxlm.ranges import Count

ENGINES = Kinds(
  "decoding engine",
  {
    "left_to_right": "jaxlm.generation.left_to_right:LeftToRight",
    "encoder_decoder": "jaxlm.generation.encoder_decoder:EncoderDecoderEngine",
    "insertion": "jaxlm.generation.insertion_engines:InsertionEngine",
    "insertion_transformer": "jaxlm.generation.insertion_engines:InsertionTransformerEngine",
    "masked_diffusion": "jaxlm.generation.masked_diffusion:MaskedDiffusionEngine",
    "infilling": "jaxlm.generation.infilling:Infilling",
    "continuous": "jaxlm.generation.engine.continuous:Continuous",
    "beam": "jaxlm.generation.engine.beam:Beam",
    "speculative": "jaxlm.generation.engine.speculative:Speculative",
    "same_length": "jaxlm.generation.engine.same_length:SameLength",
    "tree": "jaxlm.generation.engine.trees:TreeSpeculative",
    "set_prompts": "jaxlm.generation.engine.set_prompts:SetPrompts",
    "blocks": "jaxlm.generation.engine.blocks:Blocks",
    "elastic": "jaxlm.generation.engine.elastic:Elastic",
    "constrained": "jaxlm.generation.engine.constrained:Constrained",
  },
)


@dataclasses.dataclass(frozen=True, eq=False)
class Prompt:
  """What one row begins with. tokens: ids as the model reads them, special ones included.

  closed: bool per token, whether nothing may be inserted right of it; None: open is the last alone.
  num_new: tokens that the answer has, for engines that must be told. removed: bool per token,
  whether it is to be found again, of infilling.
  """

  tokens: Sequence[int]
  closed: Sequence[bool] | None = None
  num_new: int | None = None
  removed: Sequence[bool] | None = None

  def __len__(self) -> int:
    return len(self.tokens)


class Row(NamedTuple):
  """sequence: int32, the finished row without pad, mask and end. begin: where the answer begins in
  it, 0 where new tokens stand between those of the prompt. num_new: tokens that the engine wrote.
  """

  sequence: np.ndarray
  begin: int
  num_new: int


class Batch(NamedTuple):
  """Rows that are decoded together. room_B: int32 NumPy array, tokens that each row may still get.

  keys_B: typed PRNG keys, one per row. max_len: tokens of a whole row that shapes may be made for;
  None: as many as these rows need.
  """

  prompts: list[Prompt]
  room_B: np.ndarray
  keys_B: jax.Array
  max_len: int | None

  @property
  def longest(self) -> int:
    """Tokens of a whole row that suffice for this batch."""
    own = max(len(p) + int(n) for p, n in zip(self.prompts, self.room_B))
    return own if self.max_len is None else self.max_len


class Generations(NamedTuple):
  """rows: in the order of the prompts. passes: forward passes of the network, all batches.

  row_passes: the sum over rows of the passes that their batch took.
  """

  rows: list[Row]
  passes: int
  row_passes: int

  @property
  def sequences(self) -> list[np.ndarray]:
    """Prompt and answer of each row, int32."""
    return [row.sequence for row in self.rows]

  @property
  def answers(self) -> list[np.ndarray]:
    """What stands behind each prompt, int32; the whole row where there is no such place."""
    return [row.sequence[row.begin :] for row in self.rows]

  @property
  def new_tokens(self) -> int:
    """Tokens that the engine wrote, all rows."""
    return sum(row.num_new for row in self.rows)

  @property
  def tokens_per_pass(self) -> float:
    """New tokens of a row per forward pass: 1 at most for insertion and from left to right."""
    return self.new_tokens / max(self.row_passes, 1)


class Snapshot(NamedTuple):
  """One row while it is decoded. newest: index of the token that came last, None for none or many.

  passes: forward passes so far. final: whether nothing follows. compiled: whether the last pass was
  the first of its shapes, so that its time is not that of a pass.
  """

  sequence: Sequence[int]
  newest: int | None
  passes: int
  final: bool = False
  compiled: bool = False


class Options(NamedTuple):
  """What a command line asks of an engine; None: not asked. See `Engine.from_options`."""

  temperature: float | None = None
  top_k: int | None = None
  top_p: float | None = None
  min_p: float | None = None
  slot_top_k: int | None = None
  slot_top_p: float | None = None
  stop_threshold: float | None = None
  draft: Any = None
  num_draft: int | None = None
  drafting: str | None = None
  constraint: str | None = None
  particles: int | None = None
  beams: int | None = None
  block_len: int | None = None
  processors: tuple | None = None

  def sampling(self, default_temperature: float) -> Sampling:
    """Of the token; ConfigError for a number outside its range."""
    temperature = default_temperature if self.temperature is None else self.temperature
    processors = self.processors or ()
    return Sampling(temperature, self.top_k, self.top_p, self.min_p, processors)


#: Options that every engine with a `sampling` has.
OF_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "processors")


class Engine:
  """Base of engines (frozen dataclasses whose first field is `model`). Override `decode_batch`.

  scores: what models that it serves score (`ModelConfig.scores`). token_by_token: they must also
  decode with a state (`ModelConfig.decodes`). form: the batch form (`DataConfig.batch_form`) that
  its models are trained on, which decides where two engines serve one model. is_default: False for
  one that runs only when it is named. An engine for another model cannot be made: ConfigError.
  """

  scores: ClassVar[tuple[str, ...]] = ("next_token",)
  token_by_token: ClassVar[bool] = False
  form: ClassVar[str | None] = None
  is_default: ClassVar[bool] = True

  def __post_init__(self):
    self.check(self.model)

  @classmethod
  def misfit(cls, model) -> str | None:
    """Why it cannot decode the model, as the end of the sentence 'this model ..'; None: it can."""
    if model.scores not in cls.scores:
      return f"scores {model.scores}"
    if cls.token_by_token and not model.decodes:
      return "does not decode token by token"
    return None

  @classmethod
  def check(cls, model) -> None:
    """Raises ConfigError for a model that it does not serve; names what would fit either."""
    why = cls.misfit(model)
    if why is None:
      return
    token_by_token = ", token by token" if cls.token_by_token else ""
    serves = [kind for kind in MODELS.table if MODELS.cls(kind).scores in cls.scores]
    raise ConfigError(
      f"engine {registered_name(ENGINES, cls)!r} decodes models that score {' or '.join(cls.scores)}"
      f"{token_by_token}, and model.kind = {registered_name(MODELS, type(model))!r} {why}; engines of this model: "
      f"{', '.join(engines_of(model)) or 'none'}; models of this engine: {', '.join(serves)}"
    )

  @classmethod
  def from_data(cls, data) -> dict[str, Any]:
    """The fields that a data config decides, such as the ids that end a row."""
    return {}

  @classmethod
  def from_objective(cls, objective) -> dict[str, Any]:
    """The fields that the objective of the training decides, above those of the data: a mask that is no
    token of the data.
    """
    return {}

  @classmethod
  def from_options(cls, options: Options) -> dict[str, Any]:
    """The fields that a command line decides: `sampling`, where the engine has it.

    ConfigError for an option that the engine does not have.
    """
    if "sampling" not in (field.name for field in dataclasses.fields(cls)):
      refuse_options(cls, options, Options._fields)
      return {}
    refuse_options(cls, options, [name for name in Options._fields if name not in OF_SAMPLING])
    return {"sampling": options.sampling(default_temperature=0.8)}

  @classmethod
  def from_command(cls, model, data, options: Options, objective=None) -> "Engine":
    """The engine for a model trained on data by an objective, as a command line wants it. objective
    None: not known.
    """
    own = {} if objective is None else cls.from_objective(objective)
    return cls(model, **cls.from_data(data) | own | cls.from_options(options))

  def decode_batch(self, params, batch: Batch) -> tuple[list[Row], int]:
    """(the rows in order, forward passes). Prompts hold at least one token of the vocabulary."""
    raise NotImplementedError(f"{type(self).__name__} decodes nothing")

  def generate(
    self,
    params,
    prompts: Sequence[Prompt | Sequence[int]],
    max_new_tokens: int,
    *,
    max_len: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
  ) -> Generations:
    """Decodes every prompt until it ends, or has max_new_tokens more, or max_len in all.

    params: the tree under "params". prompts: of any lengths. batch_size: rows at a time, of which
    the last batch is filled up with copies of its last row; None: all. ConfigError: no prompt, an
    empty one, a token outside the vocabulary, or more positions than the model has.
    """
    prompts = self._checked(prompts)
    room = self._room(prompts, max_new_tokens, max_len)
    keys = row_keys(jax.random.key(check_seed(seed)), len(prompts))
    size, rows, total, row_passes = batch_size or len(prompts), [], 0, 0
    for start in range(0, len(prompts), size):
      count = min(size, len(prompts) - start)
      index = np.minimum(start + np.arange(size), len(prompts) - 1)
      batch = Batch([prompts[i] for i in index], room[index], keys[index], max_len)
      found, passes = self.decode_batch(params, batch)
      rows += found[:count]
      total, row_passes = total + passes, row_passes + passes * count
    return Generations(rows, total, row_passes)

  def watch(
    self, params, prompt: Prompt | Sequence[int], max_new_tokens: int, *, seed: int = 0
  ) -> Iterator[Snapshot]:
    """One row while it is decoded, its draws those of `generate`. Default: when it is finished."""
    found = self.generate(params, [prompt], max_new_tokens, seed=seed)
    yield Snapshot(found.sequences[0].tolist(), None, found.passes, final=True)

  def single(self, prompt: Prompt | Sequence[int], max_new_tokens: int, seed: int = 0) -> Batch:
    """The batch of one prompt, checked, with the key that `generate` gives to its first row."""
    prompts = self._checked([prompt])
    keys_B = row_keys(jax.random.key(check_seed(seed)), 1)
    return Batch(prompts, self._room(prompts, max_new_tokens, None), keys_B, None)

  def _checked(self, prompts) -> list[Prompt]:
    if not len(prompts):
      raise ConfigError("no prompt: give at least one")
    prompts = [p if isinstance(p, Prompt) else Prompt(p) for p in prompts]
    for b, prompt in enumerate(prompts):
      if len(prompt) == 0:
        raise ConfigError(
          f"prompt {b} is empty: give at least one token (the end-of-text token starts a document)"
        )
      tokens, V = np.asarray(prompt.tokens), self.model.vocab_size
      if (wrong := tokens[(tokens < 0) | (tokens >= V)]).size:
        raise ConfigError(f"prompt {b} holds token {wrong[0]}, outside the vocabulary of {V}")
    return prompts

  def _room(self, prompts, max_new_tokens, max_len) -> np.ndarray:
    """int32 (B,): tokens that each row may get. Overridden where a row does not hold its prompt."""
    check_number(max_new_tokens, Count, "max_new_tokens")
    length_B = np.asarray([len(p) for p in prompts], np.int32)
    room_B = np.full(len(prompts), max_new_tokens, np.int32)
    if max_len is not None:
      if (length_B > max_len).any():
        raise ConfigError(
          f"a prompt of {length_B.max()} tokens exceeds max_len = {max_len}; shorten it or raise max_len"
        )
      room_B = np.minimum(room_B, max_len - length_B)
    most, total = self.model.max_len, int((length_B + room_B).max())
    if most is not None and total > most:
      raise ConfigError(
        f"prompt and new tokens need {total} positions, this model's position table has {most}; "
        f"ask for fewer new tokens or use a model with relative positions"
      )
    return room_B


def row_keys(key, num_rows: int):
  """Typed PRNG keys (B,): one per row from one key; keys that are one per row already stay."""
  return key if key.ndim else jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num_rows))


def refuse_options(cls: type[Engine], options: Options, names: Sequence[str]) -> None:
  """ConfigError for the first of these options that is set."""
  for name in names:
    value = options._asdict()[name]
    if value is not None:
      raise ConfigError(
        f"--{name}={value}: engine {registered_name(ENGINES, cls)!r} has no such choice; leave it out"
      )


def registered_name(kinds: Kinds, cls: type) -> str:
  """The key of a class in a table; its own name where it is not registered."""
  where = f"{cls.__module__}:{cls.__qualname__}"
  return next((kind for kind, target in kinds.table.items() if target == where), cls.__name__)


def engines_of(model) -> list[str]:
  """Names of the engines that serve a model, its default first."""
  return [name for name in ENGINES.table if ENGINES.cls(name).misfit(model) is None]


#: What people name as an algorithm -> the flag of `jaxlm generate` that does it.
SAMPLING_WORDS = {
  "argmax": "--temperature=0",
  "greedy": "--temperature=0",
  "nucleus": "--top_p=0.9",
  "sample": "--temperature=1",
  "sampling": "--temperature=1",
  "top_k": "--top_k=50",
  "top_p": "--top_p=0.9",
}


def engine_class(model, algorithm: str | None = None, form: str | None = None) -> type[Engine]:
  """The class of the engine `algorithm`, or of the model's default. form: of the batches that the
  model was trained on, which decides between two engines of one model.
  """
  if algorithm is not None:
    if algorithm in SAMPLING_WORDS and algorithm not in ENGINES.all():
      raise ConfigError(
        f"algorithm = {algorithm!r} is no decoding engine but a way to draw tokens; leave it out and give "
        f"{SAMPLING_WORDS[algorithm]}"
      )
    if algorithm not in ENGINES.table:
      raise ConfigError(
        f"algorithm = {algorithm!r} is not a decoding engine; {nearest(algorithm, ENGINES.table)}"
      )
    cls = ENGINES.cls(algorithm)
    cls.check(model)
    return cls
  fits = [cls for cls in map(ENGINES.cls, engines_of(model)) if cls.is_default]
  if not fits:
    raise ConfigError(
      f"model.kind = {registered_name(MODELS, type(model))!r} scores {model.scores}: no decoding engine serves it; "
      f"what it makes is measured by its tables in experiments/"
    )
  return next((cls for cls in fits if cls.form is not None and cls.form == form), fits[0])


def engine_for(model, algorithm: str | None = None, *, data=None, **fields) -> Engine:
  """The engine that decodes a model: the one named, or the model's default.

  data: the data config that the model was trained on, which gives special ids and decides between
  two engines of one model. fields: of the engine, above those of the data.
  """
  cls = engine_class(model, algorithm, None if data is None else data.batch_form)
  fields = ({} if data is None else cls.from_data(data)) | fields
  known = {field.name for field in dataclasses.fields(cls)} - {"model"}
  for name in fields.keys() - known:
    raise ConfigError(f"engine {registered_name(ENGINES, cls)!r}: {name}? {nearest(name, known)}")
  return cls(model, **fields)
