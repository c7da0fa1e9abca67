"""A run's configuration: file and command line -> ConfigDict -> RunConfig, checked before anything
is allocated.

`--config=configs/x.py:arg` calls get_config("arg"); `--config.train.steps=100` overrides one value.
Every key that the dataclasses know can be given, also one that the file leaves to its default; a
number picks an entry of a list (`--config.model.stages.0.d_ff=256`). Changing a `kind`, in full
(`--config.optimizer.kind=lion`) or in short (`--config.optimizer=lion`), drops the fields of the
old kind that the new one does not have.
"""

import ast
import dataclasses
import importlib.util
import pathlib
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

import ml_collections
from etils import epath

from jaxlm.checkpoint.former_fields import with_present_fields
from jaxlm.checkpoint.json_files import read_json
from jaxlm.config import ConfigError, Kinds, build, checked, unknown_key
from jaxlm.data import DATA
from jaxlm.data.base import FramedDataConfig
from jaxlm.models import MODELS
from jaxlm.objectives import OBJECTIVES
from jaxlm.parallel.mesh import MeshConfig
from jaxlm.paths import expand
from jaxlm.ranges import Cadence, Count, Fraction, Inside, Natural, Range, Seed, Steps
from jaxlm.training.optimizers import OPTIMIZERS
from jaxlm.training.schedules import SCHEDULES
from jaxlm.training.watchdog import HangConfig


@dataclasses.dataclass(frozen=True)
@checked
class LocalConfig:
  """Checkpoints on the hosts' own disks, every so many steps, besides those in the run folder
  (`checkpoint.local_steps`). folder: on a disk of each host, such as a RAM disk; None: none.
  """

  folder: str | None = None
  every: Count = 100


@dataclasses.dataclass(frozen=True)
@checked
class TrainConfig:
  """steps: optimiser steps of the whole run. Cadences are in steps; 0 is never.

  accumulation: micro-batches per step. max_skipped: steps in a row that are skipped (loss, gradient
  or update not finite, or a spike), at which the run fails; max_skipped_fraction: of all steps,
  above which it has failed at its end.
  spike_factor: a step whose loss is more than so many times the median loss of the last
  spike_window updates is skipped;
  None: never. gather_dtype: large parameters are cast before they are gathered and their gradients
  reduced in it ("bfloat16" halves the traffic of fsdp); None: float32.
  init: "own", as each parameter declares, or "torch", PyTorch's defaults (models.torch_init), with
  all layers alike on request. hang: when a run that does not go on prints its stacks. local: checkpoints on the hosts. profile: first and last step of an XProf trace. init_from: run
  folder, or weights folder of `jaxlm convert`, whose parameters a new run begins with (and nothing
  else of it). debug: one device, every NaN raises where it arises, nothing asynchronous.
  """

  steps: Steps
  accumulation: Count = 1
  ema_decay: Inside | None = None
  max_skipped: Count = 10
  max_skipped_fraction: Fraction = 0.5
  spike_factor: Annotated[float, Range(1, open_low=True)] | None = None
  spike_window: Count = 64
  log_every: Count = 10
  save_every: Cadence = 1000
  keep_last: Count = 2
  keep_every: Count | None = None
  gather_dtype: str | None = None
  init: Literal["own", "torch", "torch_identical_layers"] = "own"
  hang: HangConfig = HangConfig()
  local: LocalConfig = LocalConfig()
  profile: tuple[Natural, Natural] | None = None
  init_from: str | None = None
  debug: bool = False

  def __post_init__(self):
    if self.gather_dtype not in (None, "bfloat16", "float32"):
      raise ConfigError(
        f"train.gather_dtype = {self.gather_dtype!r}: wanted 'bfloat16', or None for float32"
      )
    if self.profile is not None and not 0 <= self.profile[0] <= self.profile[1]:
      raise ConfigError(f"train.profile = {self.profile}: wanted (first step, last step)")


@dataclasses.dataclass(frozen=True)
@checked
class EvalConfig:
  """every: steps, 0 is never (the end of the run always counts as one if not). num_tokens: how much
  of the split, None for all. lengths: perplexity at these lengths besides the objective's own loss
  at data.seq_len.
  num_tables: tables over which a lexinvariant model's probabilities are averaged there; the
  objective's own loss has one."""

  every: Cadence = 0
  num_tokens: Count | None = 65_536
  lengths: tuple[Count, ...] = ()
  split: str = "validation"
  num_tables: Count = 1


@dataclasses.dataclass(frozen=True)
@checked
class RunConfig:
  model: Annotated[object, MODELS]
  data: Annotated[object, DATA]
  optimizer: Annotated[object, OPTIMIZERS]
  train: TrainConfig
  schedule: Annotated[object, SCHEDULES]
  objective: Annotated[object, OBJECTIVES]
  mesh: MeshConfig = MeshConfig()
  eval: EvalConfig = EvalConfig()
  seed: Seed = 0


def load_config(
  spec: str | pathlib.Path | Mapping | ml_collections.ConfigDict,
  overrides: Mapping[str, Any] | None = None,
):
  """Locked ConfigDict of a file or mapping, with {'dotted.key': value} on top.

  'path.py' and 'path.py:argument' are programs, and are run: take them from people whom you trust.
  'path.json', such as a run folder's config.json, is only data.
  """
  is_mapping = isinstance(spec, (Mapping, ml_collections.ConfigDict))
  config = plain(spec if is_mapping else _call_get_config(str(spec)))
  for key, value in (overrides or {}).items():
    _override(config, key, value)
  try:
    return ml_collections.ConfigDict(config).lock()
  except (ValueError, TypeError) as error:  # a name with a dot in it, of which no field has one
    raise ConfigError(f"the configuration cannot be read: {error}") from None


def run_config(config: Mapping) -> RunConfig:
  """The frozen dataclasses.

  Unknown, missing and ill-typed keys and sections that do not fit raise ConfigError.
  """
  cfg = build(RunConfig, plain(config))
  check_fit(cfg)
  return cfg


def resolved(cfg) -> dict:
  """The mapping that `run_config` reads back: every field, defaults too, every union with its kind."""
  return _resolved(cfg, type(cfg))


def _resolved(value, hint):
  if dataclasses.is_dataclass(value):
    hints, kinds = typing.get_type_hints(type(value), include_extras=True), _kinds_of(hint)
    out = {"kind": kinds.kind_of(value)} if kinds else {}
    return out | {
      f.name: _resolved(getattr(value, f.name), hints[f.name])
      for f in dataclasses.fields(value)
      if f.init
    }
  if isinstance(value, (tuple, list)):
    inner = [a for a in typing.get_args(hint) if a is not Ellipsis] or [object]
    return tuple(_resolved(v, inner[min(i, len(inner) - 1)]) for i, v in enumerate(value))
  return value


def differences(old: Mapping, new: Mapping, at: str = "") -> list[tuple[str, Any, Any]]:
  """[(dotted key, old, new)] where two resolved configurations differ."""
  out = []
  for key in sorted({*old, *new}):
    a, b, where = old.get(key), new.get(key), f"{at}.{key}" if at else key
    if isinstance(a, Mapping) and isinstance(b, Mapping) and a.get("kind") == b.get("kind"):
      out += differences(a, b, where)
    elif a != b:
      out.append((where, a, b))
  return out


def parse_flags(argv: Sequence[str]) -> tuple[str | None, dict[str, Any], list[str]]:
  """(config spec, overrides, the rest) of '--config=...', '--config.a.b=value' and '--config.a.b
  value'.
  """
  spec, overrides, rest = None, {}, []
  argv = list(argv)
  while argv:
    flag, equals, value = argv.pop(0).partition("=")
    if flag != "--config" and not flag.startswith("--config."):
      rest.append(flag + equals + value)
      continue
    if not equals:
      if not argv or argv[0].startswith("--"):
        raise ConfigError(f"{flag} has no value; write {flag}=...")
      value = argv.pop(0)
    if flag == "--config":
      spec = value
    else:
      overrides[flag.removeprefix("--config.")] = _literal(value)
  return spec, overrides, rest


def _literal(text: str):
  """A Python literal where it is one ('1e-3', '(2, 4)', 'None', 'true'), else the text itself."""
  if text in ("true", "false"):
    return text == "true"
  try:
    return ast.literal_eval(text)
  except (
    ValueError,
    SyntaxError,
    TypeError,
    MemoryError,
    RecursionError,
  ):  # also of what nests too deep, or cannot be a key
    return text


def _call_get_config(spec: str):
  path, _, argument = spec.partition(":")
  file = pathlib.Path(expand(path))
  if file.is_dir():
    raise ConfigError(
      f"config file {path or repr(path)} is a folder" + _files_like(file / "any.py")
    )
  if not file.is_file():
    raise ConfigError(f"config file {path} does not exist" + _files_like(file))
  if file.suffix == ".json":
    return _mapping_in(file, argument)
  if file.suffix != ".py":
    raise ConfigError(
      f"config file {path} is neither a Python file (.py) that defines get_config(), as configs/carope/tiny.py does, nor a JSON file (.json)"
    )
  module_spec = importlib.util.spec_from_file_location("jaxlm_config_file", file)
  module = importlib.util.module_from_spec(module_spec)
  try:
    module_spec.loader.exec_module(module)
  except Exception as error:
    raise ConfigError(
      f"config file {path} does not run: {type(error).__name__}: {error}"
    ) from error
  if not hasattr(module, "get_config"):
    raise ConfigError(f"config file {path} defines no get_config()")
  call = f"get_config({argument!r})" if argument else "get_config()"
  try:
    config = module.get_config(argument) if argument else module.get_config()
  except Exception as error:
    raise ConfigError(f"{path}: {call} raises {type(error).__name__}: {error}") from error
  if not isinstance(config, (Mapping, ml_collections.ConfigDict)):
    raise ConfigError(
      f"{path}: {call} returns a {type(config).__name__}, wanted a ConfigDict or a dict"
    )
  return config


def _mapping_in(file: pathlib.Path, argument: str) -> dict:
  """A configuration that is only data, such as a run's config.json: nothing of it is executed."""
  if argument:
    raise ConfigError(f"{file}:{argument}: a JSON file takes no argument")
  return with_present_fields(read_json(epath.Path(file)))


def _files_like(file: pathlib.Path) -> str:
  near = (
    sorted(file.parent.glob("*.py"))
    if file.parent.is_dir()
    else sorted(pathlib.Path("configs").glob("*/*.py"))
  )
  return f"; there are {', '.join(map(str, near[:12]))}{', ..' * (len(near) > 12)}" if near else ""


def plain(value):
  """Mappings as dicts and sequences as tuples, so that a file, JSON and a command line compare
  equal.
  """
  if isinstance(value, ml_collections.ConfigDict):
    value = dict(value.items())
  if isinstance(value, Mapping):
    return {str(key): plain(item) for key, item in value.items()}
  return tuple(map(plain, value)) if isinstance(value, (list, tuple)) else value


def _override(config: dict, key: str, value, cls=RunConfig, prefix: str = "") -> None:
  """Sets one dotted key in place; the classes along the path say which names exist. A number picks
  an entry of a list.

  cls, prefix: of `config`, when it is such an entry."""
  here, names, kinds = config, key.split("."), None
  for depth, name in enumerate(names):
    at = prefix + ".".join(names[: depth + 1])
    hints = typing.get_type_hints(cls, include_extras=True) if cls else {}
    is_kind = kinds is not None and name == "kind"
    if cls and name not in hints and not is_kind:
      raise unknown_key(name, f"--config.{at}", cls, list(hints) + ["kind"] * (kinds is not None))
    if is_kind:
      _switch_kind(here, kinds, value, at)
      return
    inner_kinds = _kinds_of(hints.get(name))
    if depth == len(names) - 1:
      if inner_kinds is not None and isinstance(value, str):
        if not isinstance(here.get(name), Mapping):
          here[name] = (
            {"kind": value} if not isinstance(here.get(name), str) else {"kind": here[name]}
          )
        _switch_kind(here[name], inner_kinds, value, at)
      else:
        here[name] = plain(value)
      return
    if isinstance(here.get(name), str) and inner_kinds is not None:
      here[name] = {"kind": here[name]}
    if isinstance(here.get(name), tuple):
      here[name] = _override_entry(here[name], names[depth + 1 :], value, hints.get(name), at)
      return
    if not isinstance(here.get(name, {}), Mapping) and here.get(name) is not None:
      raise ConfigError(f"--config.{prefix}{key}: {at} = {here[name]!r} has no fields")
    if here.get(name) is None:
      here[name] = {}
    here, kinds = here[name], inner_kinds
    if kinds is not None:
      kind = here.get("kind", kinds.default)
      cls = kinds.cls(kind, at) if kind is not None else None
    else:
      cls = next((t for t in _alternatives(hints.get(name)) if dataclasses.is_dataclass(t)), None)


def _override_entry(items: tuple, names: list[str], value, hint, at: str) -> tuple:
  """The list with one entry, or something inside it, replaced. names: what follows the list's name
  in the key.
  """
  number, *rest = names
  if not number.isdecimal() or int(number) >= len(items):
    raise ConfigError(
      f"--config.{at}.{'.'.join(names)}: {at} is a list of {len(items)}; wanted {at}.0 .. {at}.{len(items) - 1}"
      if items
      else f"--config.{at}.{'.'.join(names)}: {at} is an empty list; give the whole of it"
    )
  item, element = items[int(number)], next(iter(typing.get_args(hint)), None)
  if not rest:
    item = plain(value)
  elif isinstance(item, Mapping):
    item, kinds = dict(item), _kinds_of(element)
    cls = kinds.cls(item["kind"], f"{at}.{number}") if kinds and "kind" in item else element
    _override(
      item, ".".join(rest), value, cls if dataclasses.is_dataclass(cls) else None, f"{at}.{number}."
    )
  else:
    raise ConfigError(f"--config.{at}.{'.'.join(names)}: {at}.{number} = {item!r} has no fields")
  return (*items[: int(number)], item, *items[int(number) + 1 :])


def _switch_kind(section: dict, kinds: Kinds, kind: str, at: str) -> None:
  fields = {field.name for field in dataclasses.fields(kinds.cls(kind, at.removesuffix(".kind")))}
  for name in [name for name in section if name not in fields]:
    del section[name]
  section["kind"] = kind


def _kinds_of(hint) -> Kinds | None:
  if typing.get_origin(hint) is Annotated:
    return next((arg for arg in typing.get_args(hint)[1:] if isinstance(arg, Kinds)), None)
  return None


def _alternatives(hint) -> tuple:
  return typing.get_args(hint) or (hint,)


def _data_vocab_size(data) -> int | None:
  """None where the tokenizer's file is not here: building the data says so, and preflight needs no
  data.
  """
  try:
    return getattr(data, "vocab_size", None)
  except ConfigError:
    return None


def _forms_of(cls: type) -> tuple[str, ...]:
  """The values that the field `form` of a data config may have."""
  if not issubclass(cls, FramedDataConfig):
    return ()
  return get_args(typing.get_type_hints(cls)["form"])


def check_fit(cfg: RunConfig) -> None:
  """Refuses an objective whose model scores something else, or whose data have another form."""
  objective, model, data = (
    table.kind_of(part)
    for table, part in ((OBJECTIVES, cfg.objective), (MODELS, cfg.model), (DATA, cfg.data))
  )

  def fits(kinds, field, value):
    return ", ".join(kind for kind in kinds.table if getattr(kinds.cls(kind), field) == value)

  if cfg.objective.scores != cfg.model.scores:
    raise ConfigError(
      f"objective.kind = {objective!r} needs a model that scores {cfg.objective.scores}, and model.kind = {model!r} scores "
      f"{cfg.model.scores}; objectives of this model: {fits(OBJECTIVES, 'scores', cfg.model.scores)}; models of this "
      f"objective: {fits(MODELS, 'scores', cfg.objective.scores)}"
    )
  wanted, made = cfg.objective.batch_form, cfg.data.batch_form
  if wanted != made:
    framed = [kind for kind in DATA.table if wanted in _forms_of(DATA.cls(kind))]
    others = f"{', '.join(framed)} with data.form = {wanted!r}" if framed else ""
    remedy = (
      f"set data.form = {wanted!r}"
      if data in framed
      else "choose data.kind from: "
      + ", ".join(filter(None, [fits(DATA, "batch_form", wanted), others]))
    )
    raise ConfigError(
      f"objective.kind = {objective!r} reads batches of form {wanted!r}, and data.kind = {data!r} makes form "
      f"{made!r}; {remedy}"
    )
  if cfg.objective.rows_per_group != cfg.data.rows_per_group:
    raise ConfigError(
      f"objective.kind = {objective!r} reads groups of {cfg.objective.rows_per_group} rows, and data.kind = {data!r} "
      f"makes groups of {cfg.data.rows_per_group}; choose another of the two"
    )
  try:
    tokens = cfg.data.special_tokens
  except ConfigError:  # the tokenizer's file is not here; building the data says so
    return
  tokens.require(cfg.objective.special_tokens, f"objective.kind = {objective!r}")


def check(cfg: RunConfig, num_devices: int) -> None:
  """Refuses combinations of sections that cannot run, naming the numbers that clash."""
  data, fsdp, _, _ = cfg.mesh.shape(num_devices)
  group = cfg.data.rows_per_group
  batch, ways = cfg.data.batch_size, data * fsdp * cfg.train.accumulation * group
  if batch % ways:
    down, up = batch // ways * ways, -(-batch // ways) * ways
    raise ConfigError(
      f"data.batch_size = {batch} is not divisible by mesh.data ({data}) x mesh.fsdp ({fsdp}) x train.accumulation "
      f"({cfg.train.accumulation}){f' x {group} rows that belong together' if group > 1 else ''} = {ways}; "
      f"set it to {f'{down} or ' if down else ''}{up}"
    )
  vocab, tokens = getattr(cfg.model, "vocab_size", None), _data_vocab_size(cfg.data)
  if vocab is not None and tokens is not None and tokens > vocab:
    raise ConfigError(
      f"the tokenizer has {tokens} tokens, but model.vocab_size = {vocab}; "
      f"set model.vocab_size to at least {tokens}"
    )
  max_len = cfg.model.max_len
  if max_len is not None and cfg.data.seq_len > max_len:
    raise ConfigError(
      f"data.seq_len = {cfg.data.seq_len} is longer than the model's position table of {max_len}; "
      f"lengthen the table or set data.seq_len to at most {max_len}"
    )
  for part in (
    cfg.objective,
    cfg.model,
    cfg.data,
  ):  # sentences that only the parts themselves can say
    part.check(cfg)
