"""The smallest run of every registered part, so that a part is tried by being registered.

A field of a part takes the value that is given here for its kind, else for its name, else its
default. A new part whose required fields have other names needs a line here; the suite says which.
"""

import dataclasses

from jaxlm.config import Kinds
from jaxlm.data import DATA
from jaxlm.data.base import FramedDataConfig
from jaxlm.models import MODELS
from jaxlm.objectives import OBJECTIVES

ATTENTION = {"kind": "attention", "num_heads": 2}
TEXT = {"kind": "text", "source": "mini:udhr/eng", "seq_len": 16, "batch_size": 2}
#: Stands for the folder of a trained model, which a case is given before it runs.
TEACHER = "teacher"
#: Of every part that has a field of this name.
BY_NAME = {
  "d_model": 16,
  "num_layers": 2,
  "num_heads": 2,
  "d_ff": 32,
  "mixer": ATTENTION,
  "members": (ATTENTION, {"kind": "gla", "num_heads": 2}),
  "batch_size": 2,
  "seq_len": 16,
  "rows": 16,
  "source": TEXT["source"],
  "width": 4,
}
#: {(registry, kind): {field: value}}, before BY_NAME. None: the field's default.
BY_KIND = {
  ("model", "encoder_decoder"): {
    "d_kv": 8,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "reduction": {"kind": "delete_gate", "layer": 1},
  },
  ("model", "hnet"): {
    "layout": "m1 [T1] m1",
    "d_model": None,
    "stages": (
      {
        "d_model": 16,
        "d_ff": 32,
        "attention": {"num_heads": 2},
        "mamba": {"kind": "mamba2", "d_state": 4, "head_dim": 8},
        "router": {"kind": "learned"},
      },
      {
        "d_model": 16,
        "d_ff": 32,
        "attention": {"num_heads": 2},
        "mamba": {"kind": "mamba2", "d_state": 4, "head_dim": 8},
      },
    ),
  },
  ("model", "insertion"): {"mixer": ATTENTION | {"causal": False}},
  ("model", "lact_nvs"): {"head_dim": 8, "patch": 4},
  ("mixer", "mamba2"): {"d_state": 4, "head_dim": 8},
  ("mixer", "lact"): {"window": 4, "fast": {"num_heads": 2, "chunk": 4}},
  ("position", "learned"): {"max_len": 64},
  ("data", "needles"): {"seq_len": 256},
  ("data", "scenes"): {"source": "toy", "size": 8, "num_inputs": 2, "num_targets": 1},
  ("data", "star_graphs"): {"seq_len": None},
  ("data", "zebra"): {"seq_len": None},
  ("data", "backtracking"): {"seq_len": 42},
  ("data", "registers"): {"seq_len": 230},
  ("data", "hidden_text"): {"trigger": "who?", "hidden": "me"},
  ("data", "span_corruption"): {"sources": ("mini:udhr/eng",), "seq_len": 32},
  ("data", "diagnostic"): {"task": "copy"},
  ("data", "mixture"): {
    "sources": ({"data": TEXT}, {"data": TEXT, "weights": ((0, 0.0), (9, 1.0))})
  },
  ("objective", "distillation"): {"teacher": TEACHER},
  ("objective", "block_diffusion"): {"mask": 3},
  ("objective", "confusion"): {"hidden": (2, 3, 2, 3, 2), "begin": 1},
}


class NoValue(Exception):
  """A required field of a part has no value here."""


def kinds_of(kinds: Kinds) -> list[str]:
  """The library's own entries; other tests register parts of theirs."""
  return [kind for kind, where in kinds.table.items() if where.startswith("jaxlm.")]


def fields(kinds: Kinds, kind: str) -> set[str]:
  """Names of the fields of a part."""
  return {field.name for field in dataclasses.fields(kinds.cls(kind))}


def part(kinds: Kinds, registry: str, kind: str, **given) -> dict:
  """{"kind": kind, field: value}. given: fields that the case is about."""
  out = {"kind": kind}
  special = BY_KIND.get((registry, kind), {})
  for field in dataclasses.fields(kinds.cls(kind)):
    required = field.default is field.default_factory is dataclasses.MISSING
    if field.name in given or not field.init:
      continue
    if field.name in special:
      if special[field.name] is not None:
        out[field.name] = special[field.name]
    elif field.name in BY_NAME:
      out[field.name] = BY_NAME[field.name]
    elif required and (registry, field.name) not in COMPUTED:
      raise NoValue(
        f"{registry}.kind = {kind!r} has the required field {field.name!r}: give it a value in "
        "tests/conformance/tiny.py"
      )
  return out | given


#: Required fields whose value follows from the data.
COMPUTED = {("model", "vocab_size")}


def forms_of(kind: str) -> tuple[dict, ...]:
  """What to add to a data section of this kind, one entry for each form of its batches."""
  if not issubclass(DATA.cls(kind), FramedDataConfig):
    return ({},)
  hint = next(f for f in dataclasses.fields(DATA.cls(kind)) if f.name == "form")
  return tuple({"form": form} for form in hint.type.__args__)


def data_section(kind: str, **given) -> dict:
  return part(DATA, "data", kind, **given)


def run(model: dict, objective: str, data: dict) -> dict:
  """A whole configuration of two steps; the vocabulary and special tokens are the data's."""
  built = DATA.build(data)
  model = dict(model)
  if "vocab_size" in {f.name for f in dataclasses.fields(MODELS.cls(model["kind"]))}:
    model.setdefault("vocab_size", built.vocab_size)
  given = {}
  if objective == "next_byte":
    given["targets"] = (4.0,) * (len(model.get("stages", ())[1:]))
  return {
    "seed": 0,
    "model": model,
    "objective": part(OBJECTIVES, "objective", objective, **given),
    "data": data,
    "optimizer": {"kind": "adamw", "learning_rate": 1e-3},
    "schedule": {"kind": "constant"},
    "train": {"steps": 2, "save_every": 0, "log_every": 1},
    "eval": {"every": 0, "num_tokens": 64},
  }
