"""All tables of parts, by their noun, and how a program adds to one."""

import importlib
from typing import Any

from jaxlm.config import ConfigError, Kinds, nearest

#: noun -> where its table of kinds is.
TABLES = {
  "model": "jaxlm.models:MODELS",
  "objective": "jaxlm.objectives:OBJECTIVES",
  "data": "jaxlm.data:DATA",
  "mixer": "jaxlm.layers.mixer:MIXERS",
  "position": "jaxlm.layers.positions:POSITIONS",
  "embedding": "jaxlm.layers.embedding:EMBEDDINGS",
  "norm": "jaxlm.layers.norms:NORMS",
  "router": "jaxlm.layers.routers:ROUTERS",
  "reduction": "jaxlm.models.encoder_decoder:REDUCTIONS",
  "RoPE scaling": "jaxlm.layers.positions.rope:SCALINGS",
  "tokenizer": "jaxlm.data.tokenizers:TOKENIZERS",
  "optimizer": "jaxlm.training.optimizers:OPTIMIZERS",
  "schedule": "jaxlm.training.schedules:SCHEDULES",
  "decoding engine": "jaxlm.generation.base:ENGINES",
  "logit processor": "jaxlm.generation.processors:PROCESSORS",
  "way of drafting": "jaxlm.generation.engine.trees:DRAFTINGS",
  "probe": "jaxlm.analysis.probes:PROBES",
  "attribution method": "jaxlm.analysis.attribution.base:METHODS",
}


def table(noun: str) -> Kinds:
  """The table of a noun: `table("mixer")` is `jaxlm.layers.mixer.MIXERS`."""
  if noun not in TABLES:
    raise ConfigError(f"there is no table of parts {noun!r}; {nearest(noun, TABLES)}")
  module, name = TABLES[noun].split(":")
  return getattr(importlib.import_module(module), name)


def register(noun: str, kind: str, target: str | type | None = None) -> Any:
  """Makes a part known under a kind, in this process.

  noun: "mixer", "position", "objective", ... (`TABLES`). target: 'my_package.my_module:MyConfig', or
  the class itself; without it, a decorator of the class. ConfigError: no such table, or the kind is
  another part's already. A package that declares the entry point `kind = "my_module:MyConfig"` in the
  group `jaxlm.<noun>` is known without a call.
  """
  if target is None:

    def decorate(cls: type) -> type:
      register(noun, kind, cls)
      return cls

    return decorate
  kinds = table(noun)
  where = target if isinstance(target, str) else f"{target.__module__}:{target.__qualname__}"
  if kinds.table.get(kind, where) != where:
    raise ConfigError(f"{noun} {kind!r} is {kinds.table[kind]} already; choose another name")
  if ":" not in where or "<locals>" in where:
    raise ConfigError(
      f"{where!r}: wanted 'module:Class', of a class at the top of its module, so that it is found again"
    )
  kinds.table[kind] = where
  return target
