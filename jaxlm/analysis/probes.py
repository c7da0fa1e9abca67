"""The contract of probes: what is read of a trained model on a text, as numbers, tables and panels.

A probe is a frozen dataclass that derives from `Probe` and is registered in PROBES. It names the
sites that it reads, and a model that lacks one is refused in one sentence. A probe records and never
edits: what the model computes stays the same.

  reading = probe("sinks").read(jaxlm.open_model("runs/tiny"), tokens)
  reading.numbers["sink rate"]
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from jaxlm.analysis.activations import sites
from jaxlm.config import ConfigError, Kinds

PROBES = Kinds(
  "probe",
  {
    "sinks": "jaxlm.analysis.sinks:Sinks",
    "heads": "jaxlm.analysis.heads:Heads",
    "norms": "jaxlm.analysis.norms:Norms",
    "attribution": "jaxlm.analysis.attribution.probe:Attribution",
  },
)


class Panel(NamedTuple):
  """One picture. heat: a matrix, rows from the top; or lines: {label: 1-D array}, x = `x` or index.

  x_ticks: labels of the columns of `heat`, where they are few.
  """

  title: str
  x_label: str
  y_label: str
  heat: Any = None
  lines: Mapping[str, Any] | None = None
  x: Any = None
  x_ticks: Sequence[str] = ()


class Reading(NamedTuple):
  """numbers: name -> float. tables: name -> rows, {column: value} each. panels: what is drawn."""

  numbers: dict[str, float]
  tables: dict[str, list[dict]]
  panels: list[Panel]


class Probe:
  """Base of probes. sites: last names of the sites that it cannot do without."""

  sites: ClassVar[tuple[str, ...]] = ()

  def read(self, opened, batch, texts: Sequence[Sequence[str]] = ()) -> Reading:
    """opened: of `jaxlm.open_model`. batch: as for `observe`. texts: what the tokens of each row
    spell, for the labels of pictures."""
    raise NotImplementedError(f"{type(self).__name__} reads nothing")


def probe(kind: str, **fields) -> Probe:
  """The probe of this name. ConfigError: there is none, or it has no such field."""
  return PROBES.build({"kind": kind} | fields, "probe")


def stacks_of(cfg, site: str, who: str) -> dict[str, str]:
  """{stack: full name of the site in it}, in the order of the model; "" where there is one stack.

  ConfigError: no stack has the site. who: the subject of the sentence.
  """
  full = [name for name, layers in sites(cfg).items() if name.rsplit("/", 1)[-1] == site and layers]
  if not full:
    raise ConfigError(f"{who} reads the site {site!r}, {_why_not(cfg, site)}")
  if len(full) == 1:
    return {"": full[0]}
  return {name.rsplit("/", 1)[0]: name for name in full}


def _why_not(cfg, site: str) -> str:
  there = ", ".join(sorted({name.rsplit("/", 1)[-1] for name in sites(cfg)}))
  if site.startswith("attention"):
    kinds = dict.fromkeys(type(mixer).__name__.removesuffix("Config") for mixer in cfg.mixers)
    of = f" ({', '.join(kinds)})" if kinds else ""
    return f"but no mixer of this model{of} computes attention weights; its sites: {there}"
  return f"which this model lacks; its sites: {there}"


def stacked(layers: Sequence) -> np.ndarray:
  """One array of leading axis L from the layers of `record`; float64 on the host."""
  return np.stack([np.asarray(x, np.float64) for x in layers])


def named(stack: str, name: str) -> str:
  """The name of a number of one stack."""
  return f"{stack}: {name}" if stack else name


@dataclasses.dataclass(frozen=True)
class Visible:
  """How many queries see each key, where T queries meet S keys of a row of one document.

  causal: key k (from 0) is seen by queries k .. T - 1; window: of these by the first `window`.
  prefix: the first so many keys are seen by all queries.
  """

  causal: bool = True
  window: int | None = None
  prefix: int = 0

  def counts(self, T: int, S: int) -> np.ndarray:
    """float64 (S,), at least 1."""
    if not self.causal:
      return np.full(S, float(T))
    seen = np.maximum(T - np.arange(S), 1.0)
    seen[: self.prefix] = T
    return seen if self.window is None else np.minimum(seen, self.window)


def num_queries(squares_LBNT, slot_LBNT) -> np.ndarray:
  """int (B,): queries of each row, up to the last one that gives any weight. H-Net has a slot for every
  token, and those behind a row's last chunk are empty. From `attention_squares` and `attention_slot`.
  """
  seen_BT = np.any((np.asarray(squares_LBNT) > 0) | (np.asarray(slot_LBNT) > 0), axis=(0, 2))
  return np.max(np.where(seen_BT, np.arange(1, seen_BT.shape[1] + 1), 0), axis=1)


def stack_name(full: str) -> str:
  """The first part of a site's full name; "" where the model has one stack of that site."""
  return full.split("/")[0] if "/" in full else ""


def without_empty(x, num_B) -> np.ndarray:
  """(B, T, ...) with zeros behind the first num_B positions of each row; num_B None: as it is."""
  x = np.asarray(x)
  if num_B is None:
    return x
  there_BT = np.arange(x.shape[1]) < np.asarray(num_B)[:, None]
  return x * there_BT.reshape(*there_BT.shape, *[1] * (x.ndim - 2))


def visible(cfg, full: str, num_layers: int) -> list[Visible]:
  """Of each layer of a site: an encoder's and cross attention's keys are seen by every query."""
  parts = full.split("/")
  if "encoder" in parts or "cross" in parts:
    return [Visible(causal=False)] * num_layers
  mixers = cfg.mixers if len(cfg.mixers) == num_layers else [None] * num_layers
  return [
    Visible(getattr(m, "causal", True), getattr(m, "window", None), getattr(m, "prefix", 0))
    for m in mixers
  ]
