"""Zebra puzzles: houses in a row, attributes whose values are one to a house, clues, and exactly
one way to satisfy them.

Houses, attributes and values are numbers. A cell is a pair (attribute, value); its place is its
house. `solve` is exact: it narrows each cell's set of houses (a bit mask) by every clue and by
exclusion, and branches where that is not enough.

  =  !=  nbr  left-of  immediate-left   relate the places of two cells, or of a cell and a house
  ends                                  a cell in the first or last house
  inbetween                             a cell somewhere between two others
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

HOUSE = -1  # the attribute of a pair that is a house's number
KINDS = ("nbr", "left-of", "inbetween", "immediate-left", "ends", "!=", "=")
NUM_OPERANDS = {"ends": 1, "inbetween": 3}  # the others relate two
# How often each kind is drawn, ours: exclusions and orderings say little each and fill the page.
WEIGHTS = {"nbr": 3, "left-of": 2, "inbetween": 1, "immediate-left": 2, "ends": 1, "!=": 1, "=": 4}


class Clue(NamedTuple):
  """operands: (attribute, value) pairs, or (HOUSE, house); of `inbetween` the middle one first."""

  kind: str
  operands: tuple[tuple[int, int], ...]


class Puzzle(NamedTuple):
  """clues in shown order; values_AH: int (attributes, houses), the value of each attribute in each
  house.
  """

  clues: tuple[Clue, ...]
  values_AH: np.ndarray


def holds(clue: Clue, places: dict[tuple[int, int], int], num_houses: int) -> bool:
  """Whether a clue is true when every cell is where `places` says."""
  at = [b if a == HOUSE else places[a, b] for a, b in clue.operands]
  if clue.kind == "=":
    return at[0] == at[1]
  if clue.kind == "!=":
    return at[0] != at[1]
  if clue.kind == "nbr":
    return abs(at[0] - at[1]) == 1
  if clue.kind == "left-of":
    return at[0] < at[1]
  if clue.kind == "immediate-left":
    return at[0] + 1 == at[1]
  if clue.kind == "ends":
    return at[0] in (0, num_houses - 1)
  return min(at[1:]) < at[0] < max(at[1:])


def places_of(values_AH: np.ndarray) -> dict[tuple[int, int], int]:
  """House of every cell."""
  return {(a, int(v)): h for a, row in enumerate(values_AH) for h, v in enumerate(row)}


def solutions(
  clues, num_houses: int, num_attributes: int
) -> Iterator[list[tuple[tuple[int, int], int]]]:
  """Every way to satisfy the clues, as [(cell, house)] in the order in which the cells were
  settled.
  """
  full = (1 << num_houses) - 1
  cells = [(a, v) for a in range(num_attributes) for v in range(num_houses)]
  yield from _search(dict.fromkeys(cells, full), [], list(clues), full, num_houses, num_attributes)


def solve(clues, num_houses: int, num_attributes: int) -> list[tuple[tuple[int, int], int]] | None:
  """The only solution, cells in the order in which they were settled; None if there is none or
  another one.
  """
  found = solutions(clues, num_houses, num_attributes)
  first = next(found, None)
  return first if first is not None and next(found, None) is None else None


def generate(rng: np.random.Generator, num_houses: int, num_attributes: int) -> Puzzle:
  """A random puzzle with one solution, none of whose clues can be left out."""
  values_AH = np.stack([rng.permutation(num_houses) for _ in range(num_attributes)])
  places, clues = places_of(values_AH), []
  cells = [*places] + [(HOUSE, h) for h in range(num_houses)]
  kinds = [k for k in KINDS if k != "inbetween" or num_houses > 2]
  p = np.asarray([WEIGHTS[k] for k in kinds]) / sum(WEIGHTS[k] for k in kinds)
  while True:
    for _ in range(num_attributes):
      clues.append(_draw(rng, kinds, p, cells, places, num_houses))
    if solve(clues, num_houses, num_attributes) is not None:
      break
  for clue in [clues[i] for i in rng.permutation(len(clues))]:
    fewer = [c for c in clues if c is not clue]
    if solve(fewer, num_houses, num_attributes) is not None:
      clues = fewer
  return Puzzle(tuple(clues[i] for i in rng.permutation(len(clues))), values_AH)


def _draw(rng, kinds, p, cells, places, num_houses) -> Clue:
  """A true clue about different cells, of which the first is no house."""
  while True:
    kind = kinds[rng.choice(len(kinds), p=p)]
    chosen = rng.choice(len(cells), NUM_OPERANDS.get(kind, 2), replace=False)
    clue = Clue(kind, tuple(cells[i] for i in chosen))
    if clue.operands[0][0] != HOUSE and holds(clue, places, num_houses) and not _trivial(clue):
      return clue


def _trivial(clue: Clue) -> bool:
  """Two values of one attribute are never in one house: nobody needs to say so."""
  return clue.kind == "!=" and clue.operands[0][0] == clue.operands[1][0]


def _search(mask, settled, clues, full, num_houses, num_attributes):
  mask, settled = dict(mask), list(settled)
  if not _narrow(mask, settled, clues, full, num_houses, num_attributes):
    return
  open_ = [cell for cell in mask if mask[cell] & (mask[cell] - 1)]
  if not open_:
    yield settled
    return
  cell = min(open_, key=lambda c: mask[c].bit_count())
  for house in range(num_houses):
    if mask[cell] >> house & 1:
      yield from _search(
        mask | {cell: 1 << house}, settled, clues, full, num_houses, num_attributes
      )


def _narrow(mask, settled, clues, full, num_houses, num_attributes) -> bool:
  """Takes away houses until nothing changes; False if a cell has none left.

  Exact where every cell has one.
  """
  known = {cell for cell, _ in settled}
  while True:
    before = sum(mask.values())  # masks only lose bits
    for a in range(num_attributes):
      row = [(a, v) for v in range(num_houses)]
      for cell in row:
        m = mask[cell]
        if not m & (m - 1):
          if not m:
            return False
          if cell not in known:
            known.add(cell)
            settled.append((cell, m.bit_length() - 1))
          for other in row:
            if other != cell:
              mask[other] &= ~m
      for house in range(num_houses):
        able = [cell for cell in row if mask[cell] >> house & 1]
        if not able:
          return False
        if len(able) == 1:
          mask[able[0]] = 1 << house
    for clue in clues:
      old = [1 << b if a == HOUSE else mask[a, b] for a, b in clue.operands]
      for (a, b), was, now in zip(clue.operands, old, _narrowed(clue.kind, old, full, num_houses)):
        if not now & was:
          return False
        if a != HOUSE:
          mask[a, b] &= now
    if sum(mask.values()) == before:
      return all(mask.values())


def _narrowed(kind: str, m: list[int], full: int, num_houses: int) -> list[int]:
  """The houses that one clue leaves to each of its operands; may leave too many, but not where all
  have one.
  """
  if kind == "ends":
    return [m[0] & (1 | 1 << num_houses - 1)]
  if kind == "inbetween":
    out, houses = [0, 0, 0], [[h for h in range(num_houses) if x >> h & 1] for x in m]
    for i in houses[1]:
      for j in houses[2]:
        between = [h for h in houses[0] if min(i, j) < h < max(i, j)]
        if between:
          out = [out[0] | sum(1 << h for h in between), out[1] | 1 << i, out[2] | 1 << j]
    return out
  x, y = m
  if kind == "=":
    return [x & y, x & y]
  if kind == "!=":

    def single(z):
      return not z & (z - 1)

    return [x & ~y if single(y) else x, y & ~x if single(x) else y]
  if kind == "nbr":

    def beside(z):
      return (z << 1 | z >> 1) & full

    return [x & beside(y), y & beside(x)]
  if kind == "immediate-left":
    return [x & y >> 1, y & x << 1]
  # left-of: left of the other's last house, right of the other's first
  return [x & (1 << y.bit_length() - 1) - 1 if y else 0, y & ~((x & -x) * 2 - 1)]
