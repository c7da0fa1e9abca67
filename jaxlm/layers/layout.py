"""The layout grammar of H-Net (`docs/specs/hnet.md` section 2).

A layout is `<letter><count>` repeated: m Mamba-2, M Mamba-2 with MLP, t attention, T attention with
MLP; `runs [stage] runs` for a stage around another. In the place of Mamba-2 a stage may have any
other mixer (`layers.isotropic`).
"""

import re
from typing import NamedTuple

from jaxlm.config import ConfigError

LETTERS = {"m": "Mamba-2", "M": "Mamba-2 with MLP", "t": "attention", "T": "attention with MLP"}


class Run(NamedTuple):
  """`count` equal layers of one letter."""

  letter: str
  count: int

  @property
  def is_attention(self) -> bool:
    return self.letter in "tT"

  @property
  def has_mlp(self) -> bool:
    return self.letter in "MT"


class LayoutError(ConfigError):
  """A layout that cannot be read.

  `position` is the index of the first character that does not fit.
  """

  def __init__(self, layout: str, position: int, wanted: str):
    found = repr(layout[position]) if position < len(layout) else "the end"
    super().__init__(
      f"layout {layout!r}: character {position + 1} is {found}, wanted {wanted} "
      f'("{layout[:position]}" was understood)'
    )
    self.layout, self.position = layout, position


def parse_runs(layout: str, at: int = 0, whole: str | None = None) -> tuple[Run, ...]:
  """'T1m4' -> (Run('T', 1), Run('m', 4)). at, whole: where this piece sits in a longer layout, for
  messages.
  """
  whole, runs, i = layout if whole is None else whole, [], 0
  while i < len(layout):
    if layout[i] not in LETTERS:
      raise LayoutError(
        whole,
        at + i,
        "a letter "
        + ", ".join(f"{k} ({v})" for k, v in LETTERS.items())
        + (", or the bracket of an inner stage" if runs else ""),
      )
    digits = re.match("[0-9]*", layout[i + 1 :]).group()
    if not digits:
      raise LayoutError(whole, at + i + 1, f"the number of {layout[i]} layers")
    if int(digits) < 1:
      raise LayoutError(whole, at + i + 1, f"at least one {layout[i]} layer")
    runs.append(Run(layout[i], int(digits)))
    i += 1 + len(digits)
  if not runs:
    raise LayoutError(whole, at, "a run of layers, such as m4 or T22")
  return tuple(runs)


def parse_layout(layout):
  """'m4 [T1m4 [T26] m4T1] m4' -> (((encoder, decoder) runs of every outer stage), main network's
  runs).

  Also reads the nested lists of an official config, ["m4", ["T22"], "m4"].
  """
  if not isinstance(layout, str):
    layout = write_layout(layout)
  outer, main, end = _parse_stage(layout, 0)
  if end != len(layout):
    raise LayoutError(layout, end, "the end")
  return outer, main


def _parse_stage(layout: str, at: int):
  """(outer stages, main runs, index after the stage) of `runs` or `runs [stage] runs`."""
  first, at = _parse_text(layout, at)
  if at == len(layout) or layout[at] == "]":
    return (), first, at
  outer, main, at = _parse_stage(layout, at + 1)
  if at == len(layout):
    raise LayoutError(layout, at, "']', the end of an inner stage")
  last, at = _parse_text(layout, at + 1)
  return ((first, last), *outer), main, at


def _parse_text(layout: str, at: int):
  """(runs up to the next bracket, its index)."""
  end = re.compile(r"[^\[\]]*").match(layout, at).end()
  text = layout[at:end]
  return parse_runs(text.strip(), at + len(text) - len(text.lstrip()), layout), end


def write_layout(layout) -> str:
  """["m4", ["T22"], "m4"] -> 'm4 [T22] m4'."""
  items = list(layout) if isinstance(layout, (list, tuple)) else []
  if len(items) == 1 and isinstance(items[0], str):
    return items[0]
  if len(items) == 3 and isinstance(items[0], str) and isinstance(items[2], str):
    return f"{items[0]} [{write_layout(items[1])}] {items[2]}"
  raise ConfigError(
    f"layout {layout!r}: wanted [encoder, [inner ...], decoder] or [main], strings such as 'T1m4'"
  )


def height(runs: tuple[Run, ...]) -> int:
  """Number of additions to the residual stream, which scales the initial output projections."""
  return sum(run.count * (2 if run.has_mlp else 1) for run in runs)
