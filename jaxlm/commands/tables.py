"""Tables in a terminal of any width: a grid where it fits, else a line for every cell.

No figure is ever cut.
"""

import os
from collections.abc import Sequence


def print_table(
  columns: Sequence[str],
  rows: Sequence[Sequence[str]],
  *,
  title: str = "",
  caption: str = "",
  words: Sequence[str] = (),
  box: bool = True,
  dim: Sequence[str] = (),
) -> None:
  """Prints rows of strings. words: columns of running text, which may be broken over lines; others
  are kept whole.

  Where the output is no terminal and COLUMNS is not set, the grid is as wide as it needs to be.
  """
  from rich.console import Console
  from rich.measure import Measurement
  from rich.table import Table

  grid = Table(**({} if box else {"box": None, "pad_edge": False}))
  for name in columns:
    text = name in words
    grid.add_column(
      plain(name),
      justify="left" if text else "right",
      no_wrap=not text,
      overflow="fold",
      style="dim" if name in dim else None,
    )
  for row in rows:
    grid.add_row(*map(plain, row))
  console = Console(highlight=False)
  need = Measurement.get(console, console.options.update(max_width=10_000), grid)
  if not console.is_terminal and not os.environ.get("COLUMNS", "").isdigit():
    console = Console(highlight=False, width=max(need.maximum, 80))

  def say(text):
    return console.print(text, markup=False, soft_wrap=True)

  if title:
    say(title)
  if need.minimum <= console.width:
    console.print(grid)
  else:
    for row in rows:
      for line in _lines(columns, row, console.width):
        say(line)
  if caption:
    say(caption)


def console_for(*parts):
  """A console that is wide enough for the figures of these rich tables, in a terminal that is not."""
  from rich.console import Console
  from rich.measure import Measurement
  from rich.table import Table

  console = Console()
  wide = console.options.update(max_width=10_000)
  return Console(
    width=max(
      [
        console.width,
        *(
          Measurement.get(console, wide, part).minimum for part in parts if isinstance(part, Table)
        ),
      ]
    )
  )


def _lines(columns: Sequence[str], row: Sequence[str], width: int):
  """'name: cell' for every cell, the first at the margin; in two lines where that is too long.

  Empty cells are left out.
  """
  for i, (name, cell) in enumerate(zip(columns, row)):
    margin, (first, *more) = "  " * (i > 0), cell.splitlines() or [""]
    if i and not cell:
      continue
    if len(margin) + len(name) + 2 + len(first) <= width:
      yield f"{margin}{name}: {first}"
    else:
      yield f"{margin}{name}:"
      yield f"{margin}  {first}"
    yield from (f"{margin}  {line}" for line in more)


def plain(text: str) -> str:
  """Without markup: a bracket is a bracket."""
  from rich.markup import escape

  return escape(text)
