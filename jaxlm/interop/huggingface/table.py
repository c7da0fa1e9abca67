"""Name tables: one rule per foreign array says which of our parameters it is, in both directions.

A table is a list of `Rule`s. A rule is a bijection (a permutation of the elements), so the same
table imports a checkpoint, exports it again bit for bit, and carries gradients from our names to
theirs.

Axis letters as in the rest of the library (D d_model, N num_heads, K num_kv_heads, H head_dim, F
d_ff, V vocab_size, T positions), lower case here; L is the stacked axis of the layers.
"""

import dataclasses
import difflib
import functools
import re
from collections.abc import Iterable, Mapping

import numpy as np

from jaxlm.checkpoint.errors import WeightsError
from jaxlm.checkpoint.trees import flatten, set_path
from jaxlm.interop.huggingface.dtypes import cast, check_floats
from jaxlm.interop.huggingface.ties import unequal

__all__ = ["Rule", "Table", "shape_of"]


@dataclasses.dataclass(frozen=True)
class Rule:
  """One foreign array and the parameters that it holds.

  theirs: the foreign name; `{layer}` is the number of the layer, whose arrays we stack on a leading
  axis.
  ours:   the path in our tree ('blocks/mixer/w_q'), or several when the foreign array is fused.
  axes:   how their axes become ours: "(n h) d -> d n h" splits the first axis and moves d to the
  front. With
          several paths the first axis on the right counts them ("d (3 n h) -> 3 d n h").
  """

  theirs: str
  ours: str | tuple[str, ...]
  axes: str

  @property
  def paths(self) -> tuple[str, ...]:
    return (self.ours,) if isinstance(self.ours, str) else self.ours

  @property
  def stacked(self) -> bool:
    return "{layer}" in self.theirs

  def names(self, num_layers: int) -> list[str]:
    return (
      [self.theirs.format(layer=i) for i in range(num_layers)] if self.stacked else [self.theirs]
    )

  def their_shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(_product(group, sizes) for group in _parse(self.axes)[0])

  def our_shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Of one layer of one path."""
    right = _parse(self.axes)[1]
    return tuple(_size(a, sizes) for a in right[len(self.paths) > 1 :])

  def to_ours(self, array: np.ndarray, sizes) -> list[np.ndarray]:
    """Their array -> ours, one per path."""
    left, right = _parse(self.axes)
    flat = [axis for group in left for axis in group]
    array = array.reshape([_size(a, sizes) for a in flat]).transpose([flat.index(a) for a in right])
    return list(array) if len(self.paths) > 1 else [array]

  def to_theirs(self, arrays: list[np.ndarray], sizes) -> np.ndarray:
    """The inverse of `to_ours`."""
    left, right = _parse(self.axes)
    flat = [axis for group in left for axis in group]
    array = np.stack(arrays) if len(self.paths) > 1 else arrays[0]
    return np.ascontiguousarray(
      array.transpose([right.index(a) for a in flat]).reshape(self.their_shape(sizes))
    )

  def explain(self, sizes) -> str:
    """'(n 4 x h 8, d 32)': what their axes are."""

    def part(a):
      return a if a.isdigit() else f"{a} {sizes[a]}"

    return "(" + ", ".join(" x ".join(map(part, group)) for group in _parse(self.axes)[0]) + ")"


@functools.cache
def _parse(axes: str) -> tuple[tuple[tuple[str, ...], ...], tuple[str, ...]]:
  left, right = axes.split("->")
  groups = tuple(
    tuple((m.group(1) or m.group(2)).split()) for m in re.finditer(r"\(([^)]*)\)|(\w+)", left)
  )
  right = tuple(right.split())
  if sorted(a for g in groups for a in g) != sorted(right):
    raise ValueError(f"axes {axes!r}: both sides must name the same axes")
  return groups, right


def _size(axis: str, sizes) -> int:
  return int(axis) if axis.isdigit() else sizes[axis]


def _product(group, sizes) -> int:
  return int(np.prod([_size(a, sizes) for a in group], dtype=np.int64))


@dataclasses.dataclass(frozen=True)
class Table:
  """The rules of one model, with its sizes: everything that converting its weights needs.

  sizes: axis letter -> size. ignore: patterns of foreign names that carry no weights (mask buffers
  and the like).
  aliases: (pattern, replacement) for names that older files spell differently.
  tied: {foreign name: foreign name it must equal}, for files that store a tied array twice.
  """

  rules: tuple[Rule, ...]
  sizes: Mapping[str, int]
  num_layers: int
  ignore: tuple[str, ...] = ()
  aliases: tuple[tuple[str, str], ...] = ()
  tied: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def import_params(self, state: Mapping[str, np.ndarray], dtype=None) -> dict:
    """Foreign arrays -> our nested tree. dtype None keeps the file's.

    Raises WeightsError on any misfit.
    """
    names = self.canonical(state)
    wanted = {name: rule for rule in self.rules for name in rule.names(self.num_layers)}
    check_floats(state, [names[name] for name in wanted if name in names])
    missing = [n for n in wanted if n not in names]
    left = [n for n in names if n not in wanted and n not in self.tied]
    shapes = []
    for name, rule in wanted.items():
      if name in names and shape_of(state, names[name]) != rule.their_shape(self.sizes):
        shapes.append(
          f"{name} has shape {shape_of(state, names[name])}, wanted {rule.their_shape(self.sizes)} "
          f"= {rule.explain(self.sizes)}"
        )
    _raise(
      "the checkpoint does not fit this model",
      missing,
      left,
      shapes + unequal(state, self.tied, names),
    )
    tree: dict = {}
    for rule in self.rules:
      layers = [
        rule.to_ours(np.asarray(state[names[n]]), self.sizes) for n in rule.names(self.num_layers)
      ]
      for path, arrays in zip(rule.paths, zip(*layers)):
        array = np.stack(arrays) if rule.stacked else np.ascontiguousarray(arrays[0])
        set_path(tree, path, cast(path, array, dtype))
    return tree

  def export_params(self, params: Mapping, dtype=None) -> dict[str, np.ndarray]:
    """Our nested tree (parameters or their gradients) -> foreign arrays.

    Raises WeightsError on any misfit.
    """
    flat = flatten(params)
    paths = {path: rule for rule in self.rules for path in rule.paths}
    missing, left, shapes = (
      [p for p in paths if p not in flat],
      [p for p in flat if p not in paths],
      [],
    )
    for path, rule in paths.items():
      wanted = ((self.num_layers,) if rule.stacked else ()) + rule.our_shape(self.sizes)
      if path in flat and tuple(flat[path].shape) != wanted:
        shapes.append(f"{path} has shape {tuple(flat[path].shape)}, wanted {wanted}")
    _raise("our parameters do not fit this model", missing, left, shapes)
    state = {}
    for rule in self.rules:
      arrays = [np.asarray(flat[path]) for path in rule.paths]
      for i, name in enumerate(rule.names(self.num_layers)):
        array = rule.to_theirs([a[i] for a in arrays] if rule.stacked else arrays, self.sizes)
        state[name] = cast(name, array, dtype)
    return state

  def lines(self) -> list[tuple[str, str, str]]:
    """(their name, their shape, ours) per rule, for printing."""
    return [(rule.theirs, rule.explain(self.sizes), ", ".join(rule.paths)) for rule in self.rules]

  def canonical(self, state: Iterable[str]) -> dict[str, str]:
    """{name the rules use: name in the file}, without the ignored ones."""
    names = {}
    for given in state:
      name = given
      for pattern, replacement in self.aliases:
        name = re.sub(pattern, replacement, name)
      if not any(re.fullmatch(pattern, name) for pattern in self.ignore):
        names[name] = given
    return names


def shape_of(state: Mapping, name: str) -> tuple[int, ...]:
  """Shape of an array, without reading it where the mapping knows better."""
  return tuple(state.shape(name)) if hasattr(state, "shape") else tuple(np.shape(state[name]))


def _raise(what: str, missing, left, shapes) -> None:
  if not (missing or left or shapes):
    return
  lines = [what + ":"]
  for name in missing:
    close = difflib.get_close_matches(name, left, n=1, cutoff=0.6)
    lines.append(f"  missing {name}" + (f" (is it {close[0]}?)" if close else ""))
  lines += [f"  left over {name}" for name in left] + [f"  {line}" for line in shapes]
  raise WeightsError("\n".join(lines))
