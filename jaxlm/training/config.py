"""A run's configuration: file and command line -> ConfigDict -> RunConfig, checked before anything
is allocated.

`--config=configs/x.py:arg` calls get_config("arg"); `--config.train.steps=100` overrides one value.
Every key that the dataclasses know can be given, also one that the file leaves to its default; a
number picks an entry of a list (`--config.model.stages.0.d_ff=256`). Changing a `kind`, in full
(`--config.optimizer.kind=lion`) or in short (`--config.optimizer=lion`), drops the fields of the
old kind that the new one does not have.
"""

import dataclasses
import pathlib
import re
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

import ml_collections

from jaxlm import outside
from jaxlm.config import ConfigError, build, checked
from jaxlm.data import DATA
from jaxlm.data.base import FramedDataConfig
from jaxlm.models import MODELS
from jaxlm.objectives import OBJECTIVES
from jaxlm.parallel.mesh import MeshConfig
from jaxlm.ranges import Cadence, Count, Fraction, Inside, Natural, Range, Seed, Steps
from jaxlm.training.config_files import is_data, read_config
from jaxlm.training.optimizers import OPTIMIZERS
from jaxlm.training.overrides import kinds_of, override, plain
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
  else of it). tracker: a service that gets the numbers too. debug: one device, every NaN raises where it arises, nothing asynchronous.
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
  tracker: Literal["wandb", "trackio"] | None = None
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
  *,
  trusted: bool = True,
) -> ml_collections.ConfigDict:
  """Locked ConfigDict of a file or mapping, with {'dotted.key': value} on top.

  'path.py' and 'path.py:argument' are programs, and are run: take them from people whom you trust.
  'path.json', 'path.toml' and run folders are only data. 'carope/tiny' is a configuration of this
  package. trusted: a kind that a mapping
  writes as module:Class may be imported; False for mappings that were read from files.
  """
  is_mapping = isinstance(spec, (Mapping, ml_collections.ConfigDict))
  config = plain(spec if is_mapping else read_config(spec))
  if trusted and (is_mapping or not is_data(spec)):
    outside.trust(config)
  outside.trust(overrides or {})
  for key, value in (overrides or {}).items():
    override(config, key, value, RunConfig)
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


def configured(
  spec, overrides: Mapping[str, Any] | None = None, *, trusted: bool = True
) -> RunConfig:
  """`run_config` of `load_config`.

  Where the configuration is good without one of the overrides, its error names that override.
  """
  from_file = not isinstance(spec, (Mapping, ml_collections.ConfigDict))
  trusted = trusted and not (from_file and is_data(spec))
  mapping = plain(load_config(spec, trusted=trusted))
  try:
    return run_config(load_config(mapping, overrides, trusted=trusted))
  except ConfigError as error:
    blamed = _blamed(mapping, overrides or {}, str(error), trusted)
    raise ConfigError(f"{error}{blamed}") from None


def _blamed(mapping: dict, overrides: Mapping[str, Any], said: str, trusted: bool) -> str:
  """A sentence about the override without which the configuration is good, unless the error has
  named it; '' where there is none.
  """
  for key, value in overrides.items():
    if key in said or re.search(
      rf"\b{re.escape(key.split('.')[-1])} = {re.escape(repr(value))}", said
    ):
      return ""
  for key, value in overrides.items():
    others = {k: v for k, v in overrides.items() if k != key}
    try:
      run_config(load_config(mapping, others, trusted=trusted))
    except ConfigError:
      continue
    return f". --config.{key}={value} makes it so; without it the configuration is good"
  return ""


def resolved(cfg) -> dict:
  """The mapping that `run_config` reads back: every field, defaults too, every union with its kind."""
  return _resolved(cfg, type(cfg))


def _resolved(value, hint):
  if dataclasses.is_dataclass(value):
    hints, kinds = typing.get_type_hints(type(value), include_extras=True), kinds_of(hint)
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
