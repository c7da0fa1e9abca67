"""Where a configuration comes from: what `--config=` may name.

configs/carope/tiny.py, FILE.py:ARG   a program with get_config(ARG), which is run
FILE.json, FILE.toml                  data
runs/tiny, gs://bucket/tiny           the configuration of a run, data too
carope/tiny, carope/tiny:ARG          a configuration of this package
"""

import importlib.util
import inspect
import pathlib
import tomllib
from collections.abc import Mapping
from typing import Any

import ml_collections
from etils import epath

from jaxlm.checkpoint.former_fields import with_present_fields
from jaxlm.checkpoint.json_files import read_json
from jaxlm.checkpoint.opening import run_mapping
from jaxlm.config import ConfigError, nearest
from jaxlm.paths import expand

#: The configurations of this package; in a checkout a link to its folder `configs`.
PACKAGED = pathlib.Path(__file__).parents[1] / "configs"


def packaged() -> dict[str, pathlib.Path]:
  """{'carope/tiny': its file} of all configurations of this package."""
  files = sorted(PACKAGED.glob("*/*.py"))
  return {str(file.relative_to(PACKAGED).with_suffix("")): file for file in files}


def is_data(spec) -> bool:
  """Whether what --config names is not a program."""
  path = str(spec).partition(":")[0]
  return "://" in str(spec) or path.endswith((".json", ".toml")) or _is_run(path)


def read_config(spec) -> Mapping[str, Any]:
  """The mapping that a file, a run folder or a name stands for. ConfigError: there is none."""
  spec = str(spec)
  if "://" in spec:
    return _json(spec) if spec.endswith(".json") else run_mapping(spec)
  path, _, argument = spec.partition(":")
  file = pathlib.Path(expand(path))
  if not file.exists() and (own := _own(path)) is not None:
    file = own
  if file.is_dir():
    if argument or not _is_run(path):
      raise ConfigError(
        f"config file {path or repr(path)} is a folder, and no run's" + _files_like(file / "any.py")
      )
    return run_mapping(file)
  if not file.is_file():
    raise ConfigError(f"config file {path} does not exist" + _files_like(file))
  if file.suffix in (".json", ".toml"):
    if argument:
      raise ConfigError(f"{spec}: a {file.suffix[1:].upper()} file takes no argument")
    return _json(str(file)) if file.suffix == ".json" else _toml(file)
  if file.suffix in (".yaml", ".yml"):
    raise ConfigError(f"config file {path} is YAML, which is not read; write it as TOML or JSON")
  if file.suffix != ".py":
    raise ConfigError(
      f"config file {path} is neither a Python file (.py) that defines get_config(), as configs/carope/tiny.py does, "
      "nor a JSON or TOML file (.json, .toml)"
    )
  return _run_get_config(path, file, argument)


def _own(path: str) -> pathlib.Path | None:
  """The file of this package that 'carope/tiny' or 'configs/carope/tiny.py' names."""
  name = path.removeprefix("configs/").removesuffix(".py")
  return packaged().get(name)


def _is_run(path: str) -> bool:
  folder = pathlib.Path(expand(path))
  return (folder / "config.json").is_file() or (folder / "checkpoints").is_dir()


def _run_get_config(path: str, file: pathlib.Path, argument: str) -> Mapping[str, Any]:
  module_spec = importlib.util.spec_from_file_location("jaxlm_config_file", file)
  assert module_spec is not None and module_spec.loader is not None  # of a .py file
  module = importlib.util.module_from_spec(module_spec)
  try:
    module_spec.loader.exec_module(module)
  except Exception as error:
    raise ConfigError(
      f"config file {path} does not run: {type(error).__name__}: {error}"
    ) from error
  if not hasattr(module, "get_config"):
    raise ConfigError(f"config file {path} defines no get_config()")
  if argument and not inspect.signature(module.get_config).parameters:
    raise ConfigError(f"{path} takes no argument; leave out ':{argument}'")
  call = f"get_config({argument!r})" if argument else "get_config()"
  try:
    config = module.get_config(argument) if argument else module.get_config()
  except Exception as error:
    if isinstance(error, KeyError) and error.args == (argument,):
      raise ConfigError(
        f"{path} has no variant {argument!r}; {_variants(module, argument)}"
      ) from error
    raise ConfigError(f"{path}: {call} raises {type(error).__name__}: {error}") from error
  if not isinstance(config, (Mapping, ml_collections.ConfigDict)):
    raise ConfigError(
      f"{path}: {call} returns a {type(config).__name__}, wanted a ConfigDict or a dict"
    )
  return config


def _variants(module, argument: str) -> str:
  """Which arguments a configuration takes, as far as its tables say."""
  default = next(iter(inspect.signature(module.get_config).parameters.values())).default
  tables = [
    value for value in vars(module).values() if isinstance(value, dict) and default in value
  ]
  names = [name for name in tables[0] if isinstance(name, str)] if tables else []
  return nearest(argument, names) if names else "its first lines say which there are"


def _json(path: str) -> dict:
  """A configuration that is only data, such as a run's config.json: nothing of it is executed."""
  return with_present_fields(read_json(epath.Path(path)))


def _toml(file: pathlib.Path) -> dict:
  try:
    return with_present_fields(tomllib.loads(file.read_text()))
  except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
    raise ConfigError(f"{file} is no TOML: {error}") from None


def _files_like(file: pathlib.Path) -> str:
  """What the user may have meant: the files beside it, or the names of this package."""
  near = sorted(file.parent.glob("*.py")) if file.parent.is_dir() and file.suffix == ".py" else []
  if near:
    return f"; there are {', '.join(map(str, near[:12]))}{', ..' * (len(near) > 12)}"
  name = str(file).removeprefix("configs/").removesuffix(".py")
  said = nearest(name, packaged())
  if not said.startswith("did"):
    return "; `jaxlm list configs` prints the names that this package has"
  return f"; among the names of `jaxlm list configs`: {said}"
