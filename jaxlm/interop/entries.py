"""Name tables for arrays that are fused unevenly: each official array is a concatenation of parts
of ours.

Axis letters: d width, n heads, h head_dim, f d_ff, k groups, e state size, j taps, v vocabulary.
`huggingface.table` serves where a fused array splits into equal parts.
"""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from jaxlm.checkpoint.errors import WeightsError
from jaxlm.checkpoint.trees import flatten, set_path
from jaxlm.interop.huggingface.dtypes import cast, check_floats
from jaxlm.interop.huggingface.table import Rule, shape_of
from jaxlm.interop.huggingface.ties import unequal


@dataclasses.dataclass(frozen=True)
class Entry:
  """One official array: the concatenation along its first axis of what the rules say. layer: in our
  stack, or None.

  squeezed: it has an axis of size 1 at index 1 (a depthwise convolution).
  """

  theirs: str
  rules: tuple[Rule, ...]
  sizes: Mapping[str, int]
  layer: int | None = None
  squeezed: bool = False

  @property
  def shape(self) -> tuple[int, ...]:
    shapes = [rule.their_shape(self.sizes) for rule in self.rules]
    tail = ((1,) if self.squeezed else ()) + shapes[0][1:]
    return (sum(s[0] for s in shapes), *tail)

  def to_ours(self, array) -> Iterator[tuple[str, np.ndarray]]:
    array, start = np.asarray(array), 0
    for rule in self.rules:
      shape = rule.their_shape(self.sizes)
      part = array[start : start + shape[0]].reshape(shape)
      yield from zip(rule.paths, rule.to_ours(part, self.sizes))
      start += shape[0]

  def to_theirs(self, flat: Mapping) -> np.ndarray:
    def read(path):
      return np.asarray(flat[path] if self.layer is None else flat[path][self.layer])

    parts = [rule.to_theirs([read(path) for path in rule.paths], self.sizes) for rule in self.rules]
    return np.concatenate(parts).reshape(self.shape)


def import_params(
  table: list[Entry], state: Mapping[str, np.ndarray], dtype=np.float32, ignore=(), tied=None
) -> dict:
  """Official arrays -> our tree under `params`. Raises WeightsError that lists every misfit. dtype
  None: the file's.

  ignore: names that are not read. tied: {name: the one that it must repeat}.
  """
  wanted, tied = {entry.theirs: entry for entry in table}, tied or {}
  check_floats(state, wanted)
  lines = [f"  missing {name}" for name in wanted if name not in state]
  lines += [
    f"  left over {name}"
    for name in state
    if name not in wanted and name not in ignore and name not in tied
  ]
  lines += [
    f"  {name} has shape {shape_of(state, name)}, wanted {entry.shape}"
    for name, entry in wanted.items()
    if name in state and shape_of(state, name) != entry.shape
  ]
  lines += [f"  {line}" for line in unequal(state, tied)]
  if lines:
    raise WeightsError("the checkpoint does not fit this model:\n" + "\n".join(lines))
  tree, layers = {}, {}
  for entry in table:
    for path, array in entry.to_ours(state[entry.theirs]):
      array = cast(entry.theirs, array, dtype)
      if entry.layer is None:
        set_path(tree, path, np.ascontiguousarray(array))
      else:
        layers.setdefault(path, []).append(array)
  for path, arrays in layers.items():
    set_path(tree, path, np.stack(arrays))
  return tree


def export_params(table: list[Entry], params: Mapping) -> dict[str, np.ndarray]:
  """Our tree (parameters or gradients) -> official arrays."""
  flat = flatten(params)
  ours = {path for entry in table for rule in entry.rules for path in rule.paths}
  lines = [f"  missing {p}" for p in sorted(ours - set(flat))] + [
    f"  left over {p}" for p in sorted(set(flat) - ours)
  ]
  if lines:
    raise WeightsError("these parameters are not those of this model:\n" + "\n".join(lines))
  return {entry.theirs: entry.to_theirs(flat) for entry in table}


def mamba_entries(m, d_model: int, theirs: str, ours: str, layer: int | None = None) -> list[Entry]:
  """Of one Mamba-2 mixer, whose official in_proj and conv1d hold several of our parameters. m:
  Mamba2Config.
  """
  sizes = {
    "d": d_model,
    "n": m.num_heads(d_model),
    "h": m.head_dim,
    "k": m.num_groups,
    "e": m.d_state,
    "j": m.d_conv,
  }

  def one(name, *parts, squeezed=False):
    rules = tuple(Rule("", ours + path, axes) for path, axes in parts)
    return Entry(theirs + name, rules, sizes, layer, squeezed)

  out = [
    one(
      "in_proj.weight",
      ("w_z", "(n h) d -> d n h"),
      ("w_x", "(n h) d -> d n h"),
      ("w_bc", "(2 k e) d -> d 2 k e"),
      ("w_dt", "n d -> d n"),
    ),
    one(
      "conv1d.weight",
      ("conv_x", "(n h) j -> j n h"),
      ("conv_bc", "(2 k e) j -> j 2 k e"),
      squeezed=True,
    ),
    one("conv1d.bias", ("b_conv_x", "(n h) -> n h"), ("b_conv_bc", "(2 k e) -> 2 k e")),
    one("dt_bias", ("dt_bias", "n -> n")),
    one("A_log", ("a_log", "n -> n")),
    one("D", ("d_skip", "n -> n")),
    one("norm.weight", ("norm_scale", "(n h) -> n h")),
    one("out_proj.weight", ("w_out", "d (n h) -> n h d")),
  ]
  if m.use_bias:
    out += [
      one(
        "in_proj.bias",
        ("b_z", "(n h) -> n h"),
        ("b_x", "(n h) -> n h"),
        ("b_bc", "(2 k e) -> 2 k e"),
        ("b_dt", "n -> n"),
      ),
      one("out_proj.bias", ("b_out", "d -> d")),
    ]
  return out


@dataclasses.dataclass(frozen=True)
class EntryTable:
  """Entries behind the interface of `huggingface.table.Table`. tied: {official name: the one that
  it must repeat}.
  """

  entries: tuple[Entry, ...]
  tied: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def canonical(self, state) -> dict[str, str]:
    """{name the entries use: name in the file}."""
    return {name: name for name in state}

  def import_params(self, state, dtype=None) -> dict:
    return import_params(list(self.entries), state, dtype, tied=self.tied)

  def export_params(self, params, dtype=None) -> dict[str, np.ndarray]:
    state = export_params(list(self.entries), params)
    return {name: cast(name, array, dtype) for name, array in state.items()}

  def lines(self) -> list[tuple[str, str, str]]:
    """(their name, their shape, ours) per array, for printing."""
    return [
      (e.theirs, str(e.shape), ", ".join(path for rule in e.rules for path in rule.paths))
      for e in self.entries
    ]
