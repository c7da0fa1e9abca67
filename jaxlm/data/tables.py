"""Columns of Parquet files, and of data sets that Hugging Face's `datasets` has saved to disk.

Both need pyarrow (extra `parquet`); nothing needs `datasets`. Rows are read in groups, so that
memory does not depend on the file.
"""

from collections.abc import Iterator

from jaxlm.config import nearest
from jaxlm.data.errors import DataError
from jaxlm.data.files import explained, open_file, read_range

ROWS_AT_ONCE = 1024


def parquet_column(path: str, column: str) -> Iterator[bytes]:
  """The texts of a column of a Parquet file, in order."""
  parquet = _pyarrow(path).parquet
  check_start(path, b"PAR1", "Parquet")
  with open_file(path) as file:
    with _damaged(path, "Parquet"), explained(path):
      table = parquet.ParquetFile(file)
    _check(path, column, table.schema_arrow)
    batches = table.iter_batches(batch_size=ROWS_AT_ONCE, columns=[column])
    yield from _texts(path, column, batches, "Parquet")


def arrow_column(path: str, column: str) -> Iterator[bytes]:
  """The texts of a column of an Arrow file, as `Dataset.save_to_disk` writes it (a stream)."""
  arrow = _pyarrow(path)
  with open_file(path) as file:
    with _damaged(path, "Arrow"), explained(path):
      start = read_range(path, 0, 6)
      reader = arrow.ipc.open_file(file) if start == b"ARROW1" else arrow.ipc.open_stream(file)
    _check(path, column, reader.schema)
    batches = (
      (reader.get_batch(i) for i in range(reader.num_record_batches))
      if start == b"ARROW1"
      else iter(reader)
    )
    yield from _texts(path, column, batches, "Arrow")


def check_start(path: str, magic: bytes, what: str) -> None:
  """Refuses a file that does not begin as its format does."""
  if read_range(path, 0, len(magic)) != magic:
    from jaxlm.data.plain_files import described

    found = described(read_range(path, 0, 300))
    raise DataError(
      f"{path} is not a {what} file" + (f", it is {found[0]}; {found[1]}" if found else "")
    )


def _pyarrow(path: str):
  try:
    import pyarrow
    import pyarrow.ipc
    import pyarrow.parquet
  except ImportError:
    raise DataError(f"{path}: reading it needs pyarrow (pip install 'jaxlm[parquet]')") from None
  return pyarrow


class _damaged:
  """pyarrow's errors as one sentence."""

  def __init__(self, path: str, what: str):
    self.path, self.what = path, what

  def __enter__(self):
    return self

  def __exit__(self, kind, error, _):
    if kind is not None and (issubclass(kind, (ValueError, OSError)) and kind is not DataError):
      raise DataError(
        f"{self.path} is not a whole {self.what} file: {str(error).splitlines()[0][:120]}"
      ) from None


def _check(path: str, column: str, schema) -> None:
  if column not in schema.names:
    raise DataError(
      f"{path} has no column {column!r}; {nearest(column, schema.names)} (it has {', '.join(schema.names)}); name it "
      f"behind '#', as in '{path}#{schema.names[0]}'"
    )
  kind = str(schema.field(column).type)
  if kind not in ("string", "large_string", "string_view", "binary", "large_binary"):
    raise DataError(f"{path}: column {column!r} holds {kind}, wanted text")


def _texts(path: str, column: str, batches, what: str) -> Iterator[bytes]:
  while True:
    with _damaged(path, what), explained(path):
      batch = next(batches, None)
    if batch is None:
      return
    for value in batch.column(batch.schema.get_field_index(column)).to_pylist():
      if value:
        yield value.encode() if isinstance(value, str) else value
