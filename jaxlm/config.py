"""Configuration: a ConfigDict file becomes frozen dataclasses once, strictly, before anything is
allocated.

Every room owns the dataclasses of its own fields. `build` turns a plain mapping into one of them; a
wrong key is answered with the nearest right one, a wrong type with the type that was wanted. A
field whose annotation is a `Kinds` table (`typing.Annotated[object, KINDS]`) is a tagged union: the
mapping's `kind` picks the class. Numbers stay in the range that the field's type declares
(`jaxlm.ranges`), NaN and infinity are refused. Impossible combinations are refused by the
dataclass's own `__post_init__`. A class under `@checked` has its ranges checked in Python too,
whoever makes it.
"""

import dataclasses
import difflib
import functools
import importlib
import numbers
import re
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from jaxlm import outside
from jaxlm.ranges import Range, Seed, storable

T = TypeVar("T")


class ConfigError(ValueError):
  """A configuration that cannot be meant. The message names the key, the value and the remedy."""


def nearest(key, known) -> str:
  """'did you mean ...?' for a wrong name, or the list of right ones."""
  known = sorted(map(str, known))
  close = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
  return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known) or 'none'}"


def _a(noun: str) -> str:
  if noun == "data":
    return "a kind of data"
  return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


class RangeError(ConfigError):
  """A number outside its range."""


#: How people write a yes and a no on a command line.
BOOLEANS = {
  "true": True,
  "yes": True,
  "on": True,
  "1": True,
  "false": False,
  "no": False,
  "off": False,
  "0": False,
}


class Kinds:
  """A tagged union: kind -> 'module:Class', imported only when chosen.

  what: the noun for messages ('mixer'). The class is a frozen dataclass without a `kind` field; its
  kind is the table's key. default: kind of a mapping that names none; None: it must name one.
  """

  def __init__(self, what: str, table: Mapping[str, str], default: str | None = None):
    self.what, self.table, self.default = what, dict(table), default

  def with_default(self, kind: str) -> "Kinds":
    """The same kinds, also those registered later, where a mapping without a kind means `kind`."""
    out = Kinds(self.what, {}, kind)
    out.table = self.table
    return out

  def all(self) -> dict[str, str]:
    """{kind: 'module:Class'}, those of installed packages too."""
    return outside.entry_points(self.what) | self.table

  def cls(self, kind: str, path: str = "") -> type:
    """The class of a kind, of this table or from outside the package (`jaxlm.outside`)."""
    if isinstance(kind, str) and kind in self.table:
      module, name = self.table[kind].split(":")
      return getattr(importlib.import_module(module), name)
    where = f"{path}.kind" if path else f"{self.what} kind"
    try:
      if outside.is_target(kind):
        found = outside.load(kind)
      elif isinstance(kind, str) and kind in self.all():
        found = outside.load(self.all()[kind], checked=False)
      else:
        raise ConfigError(
          f"{where} = {kind!r} is not {_a(self.what)}; {nearest(str(kind), self.all())}"
        )
    except outside.OutsideError as error:
      raise ConfigError(f"{where} = {kind!r}: {error}") from None
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
      raise ConfigError(
        f"{where} = {kind!r}: wanted a frozen dataclass, as docs/extending.md shows"
      )
    return found

  def kind_of(self, config) -> str:
    """The key under which this config's class is registered; module:Class where it has none."""
    name = f"{type(config).__module__}:{type(config).__qualname__}"
    return next((kind for kind, target in self.table.items() if target == name), None) or next(
      (kind for kind, target in self.all().items() if target == name), name
    )

  def build(self, mapping: Mapping, path: str = ""):
    mapping = dict(mapping)
    if "kind" not in mapping and self.default is None:
      raise ConfigError(f"{path or self.what}: no 'kind'; known: {', '.join(sorted(self.all()))}")
    kind = mapping.pop("kind", self.default)
    return build(self.cls(kind, path), mapping, path)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
  return typing.get_type_hints(cls, include_extras=True)


def checked(cls: type[T]) -> type[T]:
  """Class decorator, below `dataclasses.dataclass`: before `__post_init__` every instance has its
  parts built, where they are given as in a configuration file ("rope", {"kind": "rope"}), and its
  numbers in range.
  """
  after = cls.__dict__.get("__post_init__")

  def __post_init__(self):
    for field in dataclasses.fields(type(self)):
      value, hint = getattr(self, field.name), _hints(type(self))[field.name]
      if _is_written(value) and _holds_parts(hint):
        value = _convert(value, hint, field.name)
        object.__setattr__(self, field.name, value)
      _check_ranges(value, hint, field.name)
    if after is not None:
      after(self)
    elif inherited := getattr(super(cls, self), "__post_init__", None):
      inherited()

  cls.__post_init__ = __post_init__
  return cls


def _is_written(value) -> bool:
  """Whether a value is given as a configuration file gives parts: a kind, a mapping, a list of them."""
  return isinstance(value, (str, Mapping, list)) or (
    isinstance(value, tuple) and any(isinstance(item, (str, Mapping)) for item in value)
  )


def _holds_parts(hint) -> bool:
  """Whether a type is a part of a configuration, or has some inside."""
  args = typing.get_args(hint)
  return (
    (isinstance(hint, type) and dataclasses.is_dataclass(hint))
    or any(isinstance(arg, Kinds) for arg in args)
    or any(map(_holds_parts, args))
  )


#: What other libraries call a key -> what it is called here.
ALIASES = {
  "batch": "batch_size",
  "beta1": "b1",
  "beta2": "b2",
  "betas": "b1",
  "block_size": "seq_len",
  "bs": "batch_size",
  "context_length": "seq_len",
  "d_head": "head_dim",
  "depth": "num_layers",
  "dim": "d_model",
  "epsilon": "eps",
  "ffn_dim": "d_ff",
  "grad_clip": "clip_norm",
  "gradient_accumulation_steps": "accumulation",
  "grad_accum": "accumulation",
  "heads": "num_heads",
  "hidden_dim": "d_ff",
  "hidden_size": "d_model",
  "init_checkpoint": "init_from",
  "intermediate_size": "d_ff",
  "iterations": "steps",
  "kv_heads": "num_kv_heads",
  "layers": "num_layers",
  "lr": "learning_rate",
  "max_grad_norm": "clip_norm",
  "max_iters": "steps",
  "max_length": "seq_len",
  "max_seq_len": "seq_len",
  "max_steps": "steps",
  "n_embd": "d_model",
  "n_head": "num_heads",
  "n_heads": "num_heads",
  "n_layer": "num_layers",
  "n_layers": "num_layers",
  "num_attention_heads": "num_heads",
  "num_hidden_layers": "num_layers",
  "num_key_value_heads": "num_kv_heads",
  "num_steps": "steps",
  "pos": "position",
  "precision": "dtype",
  "rope_theta": "theta",
  "save_steps": "save_every",
  "sequence_length": "seq_len",
  "train_steps": "steps",
  "warmup": "warmup_steps",
  "wd": "weight_decay",
  "width": "d_model",
}


def unknown_key(key: str, at: str, cls: type, names, elsewhere: str | None = None) -> ConfigError:
  """The error for a key that `cls` has not. Of a field that there was, the class says in
  `former_fields`, {name: sentence}, what to write instead. elsewhere: the dotted key of another
  section that was meant.
  """
  former = getattr(cls, "former_fields", {})  # a class of any room may have it
  if key in former:
    return ConfigError(f"there is no {at} any more: {former[key]}")
  other = ALIASES.get(key)
  if other in names:
    return ConfigError(f"unknown key {at}; did you mean {other!r}?")
  if elsewhere is not None:
    return ConfigError(f"unknown key {at}; did you mean {elsewhere!r}?")
  return ConfigError(f"unknown key {at}; {nearest(key, names)}")


def check_number(value, range_, name: str):
  """The value, if it lies in the range. RangeError names it otherwise. range_: a Range, or a type
  of jaxlm.ranges.
  """
  if not isinstance(range_, Range):
    range_ = next(a for a in typing.get_args(range_)[1:] if isinstance(a, Range))
  if (
    isinstance(value, int)
    and not storable(value)
    and (range_.low <= value <= range_.high or value.bit_length() > 128)
  ):
    raise RangeError(f"{name} is a whole number of {value.bit_length()} bits: wanted one of 64")
  if value not in range_:
    raise RangeError(f"{name} = {value!r}: wanted {range_}")
  return value


def check_seed(seed: int, name: str = "seed") -> int:
  """The seed, if JAX's keys and NumPy's generators tell it from all others: a whole number in [0,
  2^32).
  """
  if isinstance(seed, bool) or not isinstance(seed, numbers.Integral):
    raise RangeError(f"{name} = {seed!r}: wanted int, got {type(seed).__name__}")
  return check_number(seed, Seed, name)


def _check_ranges(value, hint, path: str) -> None:
  """Checks the numbers in a value that is of its type already; other values are not looked at."""
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if isinstance(value, numbers.Real) and not isinstance(value, bool):
    if origin is typing.Annotated:
      if (range_ := next((a for a in args[1:] if isinstance(a, Range)), None)) is not None:
        if args[0] is int and not isinstance(value, numbers.Integral):
          raise RangeError(f"{path} = {value!r}: wanted int, got {type(value).__name__}")
        check_number(value, range_, path)
    elif origin in (typing.Union, types.UnionType):
      for option in args:
        _check_ranges(value, option, path)
    elif hint is float:
      check_number(value, Range(), path)
  elif isinstance(value, tuple):
    if origin in (typing.Union, types.UnionType):
      for option in args:
        _check_ranges(value, option, path)
    elif origin is tuple:
      inner = args[:1] * len(value) if len(args) == 2 and args[1] is Ellipsis else args
      for i, (item, part) in enumerate(zip(value, inner)):
        _check_ranges(item, part, f"{path}[{i}]")


def build(cls: type, mapping: Mapping, path: str = ""):
  """cls(**mapping), strictly: unknown, missing and ill-typed keys raise ConfigError.

  path: where this mapping sits in the whole configuration ('model.mixer'), for messages.
  """
  if not isinstance(mapping, Mapping):
    raise ConfigError(
      f"{path or 'the configuration'} is a {type(mapping).__name__}, wanted a mapping"
    )
  fields = {f.name: f for f in dataclasses.fields(cls) if f.init}

  def at(key):
    return f"{path}.{key}" if path else key

  for key in mapping:
    if key not in fields:
      raise unknown_key(key, repr(at(key)), cls, fields)
  values = {}
  for name, field in fields.items():
    if name in mapping:
      values[name] = _convert(mapping[name], _hints(cls)[name], at(name))
    elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
      raise ConfigError(f"missing key {at(name)!r} ({_type_name(_hints(cls)[name])})")
  try:
    return cls(**values)
  except ConfigError as error:
    said = re.search(
      rf"(?<![\w.]){re.escape(path)}\b", str(error)
    )  # 'model' is not said by 'd_model'
    raise ConfigError(str(error) if said else f"{path}: {error}") from None


def _convert(value, hint, path: str):
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if origin is typing.Annotated:
    kinds = next((a for a in args[1:] if isinstance(a, Kinds)), None)
    if kinds is None:
      range_ = next((a for a in args[1:] if isinstance(a, Range)), None)
      if range_ is not None and args[0] is float and _is_number(value):
        return check_number(_float(value), range_, path)
      value = _convert(value, args[0], path)
      return value if range_ is None else check_number(value, range_, path)
    if value is None and type(None) in typing.get_args(args[0]):
      return None
    if isinstance(value, Mapping):
      return kinds.build(value, path)
    if isinstance(value, str):  # 'rope' is short for {'kind': 'rope'}
      return kinds.build({"kind": value}, path)
    if dataclasses.is_dataclass(value):
      return value
    raise ConfigError(f"{path} = {value!r}: wanted {_a(kinds.what)} (a mapping with 'kind')")
  if origin in (typing.Union, types.UnionType):
    if value is None and type(None) in args:
      return None
    if type(None) in args and isinstance(value, str) and value.lower() in ("none", "null"):
      return None
    errors = []
    for option in args:
      if option is not type(None):
        try:
          return _convert(value, option, path)
        except ConfigError as error:
          errors.append(error)
    if len(errors) == 1:
      own = (
        isinstance(errors[0], RangeError)
        and str(errors[0]).startswith(f"{path} = ")
        and type(None) in args
      )
      raise RangeError(f"{errors[0]}, or None") if own else errors[0]
    raise ConfigError(f"{path} = {value!r}: wanted {_type_name(hint)}")
  if origin is typing.Literal:
    if value in args:
      return value
    raise ConfigError(f"{path} = {value!r}; {nearest(str(value), args)}")
  if hint is Any or hint is object:
    return value
  if origin is tuple:
    if not isinstance(value, (tuple, list)):
      if (
        len(args) == 2
        and args[1] is Ellipsis
        and (value is None or (isinstance(value, str) and value.lower() in ("", "none", "null")))
      ):
        return ()
      if (
        len(args) == 2 and args[1] is Ellipsis and not isinstance(value, Mapping)
      ):  # one value for a list of one
        return (_convert(value, args[0], path),)
      raise ConfigError(
        f"{path} = {value!r}: wanted a tuple like (64, 128), got {type(value).__name__}"
      )
    if len(args) == 2 and args[1] is Ellipsis:
      return tuple(_convert(v, args[0], f"{path}[{i}]") for i, v in enumerate(value))
    if args and len(args) != len(value):
      raise ConfigError(f"{path} = {value!r}: wanted {len(args)} values, got {len(value)}")
    return tuple(_convert(v, a, f"{path}[{i}]") for i, (v, a) in enumerate(zip(value, args)))
  if origin in (dict, Mapping) or hint in (dict, Mapping):
    if not isinstance(value, Mapping):
      raise ConfigError(f"{path} = {value!r}: wanted a mapping, got {type(value).__name__}")
    if not args:
      return dict(value)
    return {k: _convert(v, args[1], f"{path}.{k}") for k, v in value.items()}
  if dataclasses.is_dataclass(hint):
    if isinstance(value, hint):
      return value
    if not isinstance(value, Mapping):
      raise ConfigError(f"{path} = {value!r}: wanted a mapping, got {type(value).__name__}")
    return build(hint, value, path)
  if hint is float and _is_number(value):
    return check_number(_float(value), Range(), path)
  if hint is int and isinstance(value, float) and value.is_integer():  # 1e3
    return int(value)
  if hint is bool and isinstance(value, (str, int)) and str(value).lower() in BOOLEANS:
    return BOOLEANS[str(value).lower()]
  if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
    return value
  spelling = {
    bool: " (True or False)",
    int: " (a whole number, like 1000 or 1e3)",
    float: " (a number, like 3e-4)",
    str: f" (a text: write \"'{value}'\", quotation marks included)",
  }.get(hint, "")
  raise ConfigError(
    f"{path} = {value!r}: wanted {_type_name(hint)}, got {type(value).__name__}{spelling}"
  )


def _is_number(value) -> bool:
  return isinstance(value, (int, float)) and not isinstance(value, bool)


def _float(value):
  """As a float; a whole number that none can hold stays what it is, for its range to refuse."""
  return float(value) if isinstance(value, float) or storable(value) else value


def _type_name(hint) -> str:
  if typing.get_origin(hint) is typing.Annotated:
    kinds = next((a for a in typing.get_args(hint)[1:] if isinstance(a, Kinds)), None)
    return kinds.what if kinds else _type_name(typing.get_args(hint)[0])
  if typing.get_origin(hint) in (typing.Union, types.UnionType):
    return " or ".join(_type_name(a) for a in typing.get_args(hint))
  return "None" if hint is type(None) else getattr(hint, "__name__", str(hint))


def to_dict(config) -> dict:
  """The plain mapping that `build` would read back, without the `kind` tags of unions."""
  return dataclasses.asdict(config)
