"""Rows of named columns from the files that data sets are published as: JSON lines, CSV, Parquet."""

import csv
import json
import pathlib
from collections.abc import Sequence

from jaxlm.config import nearest
from jaxlm.data.errors import DataError
from jaxlm.paths import expand


def read_columns(path: str | pathlib.Path, columns: Sequence[str]) -> list[tuple]:
  """The named columns of every row, in order. The ending decides: .jsonl, .csv or .parquet."""
  path = pathlib.Path(expand(path))
  if not path.is_file():
    raise DataError(f"{path} does not exist; save the data set there as .jsonl, .csv or .parquet")
  if path.suffix == ".parquet":
    import pyarrow.parquet as parquet

    try:
      table = parquet.read_table(path)
    except ValueError as error:  # pyarrow's errors are
      raise DataError(f"{path} is not a Parquet table: {str(error).splitlines()[0]}") from None
    _check(path, columns, table.column_names)
    return list(zip(*(table.column(c).to_pylist() for c in columns)))
  if path.suffix == ".csv":
    try:
      with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
      raise DataError(
        f"{path} is not a table of comma-separated values in UTF-8: {error}"
      ) from None
  elif path.suffix == ".jsonl":
    try:
      # Only a line feed ends a line: a JSON string may hold U+2028 and its like.
      rows = [json.loads(line) for line in path.read_text("utf-8-sig").split("\n") if line.strip()]
    except (ValueError, RecursionError) as error:
      raise DataError(f"{path} is not JSON lines: {error}") from None
    if not all(isinstance(row, dict) for row in rows):
      raise DataError(f"{path} is not JSON lines: every line is to be an object")
  else:
    raise DataError(
      f"{path}: no reader for {path.suffix or 'a file without an ending'}; wanted .jsonl, .csv or .parquet"
    )
  if not rows:
    raise DataError(f"{path} holds no row")
  for row in rows:
    _check(path, columns, row)
  return [tuple(row[c] for c in columns) for row in rows]


def _check(path, columns, there) -> None:
  for column in columns:
    if column not in there:
      raise DataError(
        f"{path} has no column {column!r}; {nearest(column, list(there))} (it has {', '.join(there)})"
      )
