"""The picture of docs/architecture.md: which room may import which, from the table of that page.

  python docs/figures/architecture.py

Writes docs/figures/architecture.svg. An arrow that follows from others is left out; arrows point
downwards. The picture names the digest of the table; a test compares it.
"""

import hashlib
import pathlib
import re

DOCS = pathlib.Path(__file__).parents[1]
PICTURE = DOCS / "figures" / "architecture.svg"
COLOURS = ("#cfe3f5", "#d8ecd8", "#fbe7c6", "#f3d6d6", "#e3dbf0", "#e6e6e6", "#f5f0d0")


def rooms() -> dict[str, set[str]]:
  """{room: rooms that it may import}, from the page's table."""
  rows = re.findall(
    r"^\| `(\w+)` \|.*\| ([^|]+) \|$", (DOCS / "architecture.md").read_text(), re.MULTILINE
  )
  found = {room: set(re.split(r",\s*", may)) for room, may in rows}
  known = {room for room in found if found[room] & {*found} or found[room] == {"nothing of jaxlm"}}
  return {room: found[room] & known for room in found if room in known}


def digest() -> str:
  text = repr(sorted((room, sorted(may)) for room, may in rooms().items()))
  return hashlib.sha256(text.encode()).hexdigest()


def levels(table: dict[str, set[str]]) -> dict[str, int]:
  """0 for rooms that import nothing, else one above the highest that is imported."""

  def level(room: str) -> int:
    return 1 + max(map(level, table[room]), default=-1)

  return {room: level(room) for room in table}


def needed(table: dict[str, set[str]]) -> list[tuple[str, str]]:
  """The arrows that do not follow from others."""

  def below(room: str) -> set[str]:
    return table[room].union(*map(below, table[room])) if table[room] else set()

  return [
    (room, other)
    for room, may in table.items()
    for other in sorted(may)
    if not any(other in below(between) for between in may - {other})
  ]


def draw(path: pathlib.Path = PICTURE) -> None:
  import matplotlib

  matplotlib.use("Agg")
  matplotlib.rcParams["svg.hashsalt"] = "jaxlm"
  import matplotlib.pyplot as plt

  table = rooms()
  level = levels(table)
  height = max(level.values())
  at = {}
  for number in range(height + 1):
    row = [room for room in table if level[room] == number]
    if number:  # beside what it imports, so that arrows are short
      row.sort(key=lambda room: sum(at[r][0] for r in table[room]) / len(table[room]))
    for i, room in enumerate(row):
      at[room] = (10 * (i + 1) / (len(row) + 1) + 0.5 * (number % 3 - 1), number)  # not in a line
  fig, axes = plt.subplots(figsize=(7.6, 0.72 * (height + 1)))
  for room, other in needed(table):
    (x, y), (u, v) = at[room], at[other]
    axes.annotate(
      "",
      (u, v + 0.24),
      (x, y - 0.24),
      arrowprops=dict(arrowstyle="-|>", color="#667788", lw=0.9, shrinkA=0, shrinkB=0),
    )
  for room, (x, y) in at.items():
    colour = COLOURS[level[room] % len(COLOURS)]
    box = dict(boxstyle="round,pad=0.35", facecolor=colour, edgecolor="#556677", lw=0.8)
    axes.text(x, y, room, ha="center", va="center", fontsize=9, bbox=box)
  axes.set_xlim(0, 10)
  axes.set_ylim(-0.5, height + 0.5)
  axes.axis("off")
  fig.tight_layout(pad=0.2)
  fig.savefig(path, metadata={"Date": None, "Description": digest()}, facecolor="white")


if __name__ == "__main__":
  draw()
