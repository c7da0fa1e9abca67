"""Plain files as documents: what their bytes are, and on which side each document is.

Sides. A file of LONG_FILE bytes or more is cut by position, by itself; so is a line of JSON of
LONG_LINE or more. Any other document is whole, on the side that the hash of its own text names
(`jaxlm.data.splits`), be it a file, a line or a record. Either way other files, names, folders and
the way in which a pattern is written do not move it, and copies stay together.

One exception: where no document is that long, and they are fewer than MIN_DOCUMENTS or leave one
side empty, each is cut by position as well. A corpus that grows out of this is another corpus: what
was held out may be trained on then. To decide for good, write {split} into the pattern.
"""

import contextlib
import difflib
import glob
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

from jaxlm.data.digests import file_digest
from jaxlm.data.errors import DataError
from jaxlm.data.files import is_url, open_file, read_bytes, read_range, size
from jaxlm.data.splits import MIN_DOCUMENTS, SPLITS, cut_by_position, split_of, split_of_digest
from jaxlm.paths import expand

# A tenth of such a file is some sentences, enough to hold out. Lines are many, and better whole
# unless they hold books.
LONG_FILE, LONG_LINE = 1 << 12, 1 << 16
JSON_LINES = tuple(
  f"{name}{packed}" for packed in ("", ".gz", ".zst") for name in (".jsonl", ".ndjson")
)
#: First bytes of files that are no text -> what they are and what to do.
MAGIC = {
  b"\x1f\x8b": (
    "compressed by gzip",
    "unpack it (gunzip), or name it .jsonl.gz if its lines are JSON",
  ),
  b"\x28\xb5\x2f\xfd": (
    "compressed by zstd",
    "unpack it (unzstd), or name it .jsonl.zst if its lines are JSON",
  ),
  b"BZh": ("compressed by bzip2", "unpack it (bunzip2)"),
  b"\xfd7zXZ\x00": ("compressed by xz", "unpack it (unxz)"),
  b"PK\x03\x04": ("a zip archive", "unpack it"),
  b"PAR1": ("a Parquet table", "read it with 'parquet:'"),
  b"ARROW1": ("an Arrow table", "read the folder that holds it with 'hf:'"),
  b"%PDF-": ("a PDF document", "extract its text"),
  b"\x04\x22\x4d\x18": ("compressed by lz4", "unpack it (unlz4)"),
  b"7z\xbc\xaf\x27\x1c": ("a 7z archive", "unpack it"),
  b"SQLite format 3\x00": ("an SQLite database", "write its text column as .jsonl"),
  b"\xff\xfe\x00\x00": ("UTF-32", "convert it to UTF-8 (iconv -f UTF-32 -t UTF-8)"),
  b"\xff\xfe": ("UTF-16", "convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)"),
  b"\xfe\xff": ("UTF-16", "convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)"),
}
BOM = b"\xef\xbb\xbf"


def documents_of(paths: list[str], *, text: bool, column: str | None) -> Iterator[bytes]:
  """The documents of files in order: a file each, or a line each of JSON lines."""
  for source in _sources(paths, text, column):
    yield _read(source, text)


def by_side(
  paths: list[str], *, text: bool, column: str | None
) -> Callable[[str], Iterator[bytes]]:
  """split -> its documents."""

  def sides():
    return ((source, _side(source, text)) for source in _sources(paths, text, column))

  whole = enough(side for _, side in sides())

  def documents(split: str) -> Iterator[bytes]:
    for source, side in sides():
      if side is None or not whole:
        yield cut_by_position(_read(source, text), text=text)[split]
      elif side == split:
        yield _read(source, text)

  return documents


def json_ending(path: str) -> str:
  """The ending by which a file is known as JSON lines, however it is written; '' of any other file."""
  return next((end for end in JSON_LINES if path.lower().endswith(end)), "")


def side_of(document: bytes) -> str:
  return split_of(document.decode("utf-8", "surrogateescape"), small=True)


def _sources(paths: list[str], text: bool, column: str | None) -> Iterator[str | bytes]:
  """Of each document that is not empty: the path of its file, which is not read yet, or its text,
  of a line.
  """
  for path in paths:
    if text and (column is not None or json_ending(path)):
      yield from filter(None, json_lines(path, column or "text"))
    elif size(path):
      yield path


def _read(source: str | bytes, text: bool) -> bytes:
  if isinstance(source, bytes):
    return source
  return read_text(source) if text else read_bytes(source)


def _side(source: str | bytes, text: bool) -> str | None:
  """None: it is cut. The content's hash of a file is known, so no file of another side is read."""
  if isinstance(source, bytes):
    return side_of(source) if len(source) < LONG_LINE else None
  if text and _has_mark(source):
    document = read_text(source)
    return side_of(document) if len(document) < LONG_FILE else None
  if is_url(source):  # what a store says of a file need not be its SHA-256
    return side_of(_read(source, text)) if size(source) < LONG_FILE else None
  return split_of_digest(file_digest(source), small=True) if size(source) < LONG_FILE else None


def _has_mark(path: str) -> bool:
  return read_range(path, 0, len(BOM)) == BOM


def enough(sides: Iterator[str | None]) -> bool:
  """Whether documents can be whole, each on its side: there are many, and some on every side; one
  that is cut (None) is on every side. Looks no further than it must."""
  seen = set()
  for count, side in enumerate(sides, 1):
    if side is None:
      return True
    seen.add(side)
    if count >= MIN_DOCUMENTS and len(seen) == len(SPLITS):
      return True
  return False


def read_text(path: str) -> bytes:
  """UTF-8 without a byte-order mark. Anything else is refused with what it is."""
  raw = read_bytes(path)
  check_magic(path, raw[:300])
  raw = raw.removeprefix(BOM)
  try:
    raw.decode("utf-8")
  except UnicodeDecodeError as error:
    raise DataError(
      f"{path} is not UTF-8 (byte 0x{raw[error.start]:02x} at offset {error.start}); convert it, or read "
      f"it as 'bytes:{path}'"
    ) from None
  if what := _json_of(raw):
    raise DataError(
      f"{path} holds {what}, and would be trained on with its braces; name the column of its text, "
      f"'text:{path}#text', or read it as it is with 'bytes:{path}'"
    )
  return raw


def check_magic(path: str, start: bytes) -> None:
  """Refuses a file whose first bytes are those of another format."""
  if found := described(start):
    what, remedy = found
    raise DataError(
      f"{path} is not text, it is {what}; {remedy}, or read its bytes as they are with 'bytes:{path}'"
    )


def described(start: bytes) -> tuple[str, str] | None:
  """(what a file with these first bytes is, what to do with it); None where it may be text."""
  found = [magic for magic in MAGIC if start.startswith(magic)]
  if found:
    return MAGIC[max(found, key=len)]
  if start[257:262] == b"ustar":
    return "a tar archive", "unpack it (tar -xf)"
  if start.count(0) * 4 > len(start):
    return (
      "binary, or UTF-16 without a mark, for it holds zero bytes",
      "convert it (iconv -f UTF-16LE -t UTF-8)",
    )
  return None


def _json_of(raw: bytes) -> str:
  """What a file of JSON holds whose texts are in a column: objects in lines, or one list of them.

  '' of any other file.
  """
  start = raw[: 1 << 20].lstrip()
  if re.match(rb'\[\s*\{\s*"', start):
    return "a list of JSON objects"
  if not start.startswith(b"{"):
    return ""
  first, _, rest = start.partition(b"\n")
  found, second = _parsed(first), _parsed(rest.lstrip().partition(b"\n")[0])
  if isinstance(found, dict) and (
    isinstance(second, dict) or (not rest.strip() and isinstance(found.get("text"), str))
  ):
    return "a JSON object in each line"
  return ""


def _parsed(line: bytes):
  try:
    return json.loads(line)
  except (ValueError, RecursionError):
    return None


def json_lines(path: str, column: str) -> Iterator[bytes]:
  """The string under `column` of each line's object, or of each object of a list.

  Empty lines are passed over.
  """
  try:
    with _unpacked(path) as lines:
      for number, line in enumerate(lines, 1):
        line = line.removeprefix(BOM) if number == 1 else line
        if number == 1 and line.lstrip().startswith(b"["):
          yield from _of_list(path, line + lines.read(), column)
        elif line.strip():
          yield _text_of(f"{path}, line {number}", path, _parsed(line), line, column)
  except (gzip.BadGzipFile, zlib.error, EOFError, OSError) as error:
    if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
      raise
    raise DataError(f"{path} is not a whole gzip file ({error}); fetch it again") from None


@contextlib.contextmanager
def _unpacked(path: str) -> Iterator[BinaryIO]:
  """The lines of a file, through gzip or zstd where its content says so, whatever its name."""
  start = read_range(path, 0, 300)
  packed = start.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd"))
  if not packed:
    check_magic(path, start)
  with contextlib.ExitStack() as stack:
    file = stack.enter_context(open_file(path))
    if start.startswith(b"\x1f\x8b"):
      file = stack.enter_context(gzip.open(file, "rb"))
    elif packed:
      file = io.BufferedReader(Unzstd(path, file), 1 << 20)
    yield file


class Unzstd(io.RawIOBase):
  """The bytes of a zstd file. DataError where it is damaged or ends early."""

  def __init__(self, path: str, file: BinaryIO):
    try:
      import zstandard
    except ImportError:
      raise DataError(
        f"{path} is compressed by zstd, which needs a package (pip install 'jaxlm[zstd]'); or unpack it (unzstd)"
      ) from None
    self.path, self.file, self.zstd = path, file, zstandard
    self.frame, self.ready = None, b""

  def readable(self):
    return True

  def readinto(self, buffer):
    while not self.ready:
      if self.frame is not None and self.frame.eof:
        rest, self.frame = self.frame.unused_data, None
      else:
        rest = b""
      packed = rest or self.file.read(1 << 18)
      if not packed:
        if self.frame is not None:
          raise DataError(f"{self.path} is not a whole zstd file (it ends early); fetch it again")
        return 0
      self.frame = self.frame or self.zstd.ZstdDecompressor().decompressobj()
      try:
        self.ready = self.frame.decompress(packed)
      except self.zstd.ZstdError as error:
        raise DataError(f"{self.path} is not a whole zstd file ({error}); fetch it again") from None
    count = min(len(buffer), len(self.ready))
    buffer[:count], self.ready = self.ready[:count], self.ready[count:]
    return count


def _of_list(path: str, raw: bytes, column: str) -> Iterator[bytes]:
  """Of a file that is one list of objects, written in whatever lines."""
  found = _parsed(raw)
  if not isinstance(found, list):
    raise DataError(
      f"{path} begins as a JSON list and is none; mend it, or write one object per line"
    )
  for number, entry in enumerate(found):
    yield _text_of(f"{path}, entry {number}", path, entry, b"", column)


def _text_of(where: str, path: str, found, line: bytes, column: str) -> bytes:
  """found: the parsed line or entry."""
  if not isinstance(found, dict):
    try:
      line.decode()
    except UnicodeDecodeError as error:
      raise DataError(
        f"{where} is not UTF-8 (byte 0x{line[error.start]:02x} at {error.start}); convert the file"
      ) from None
    raise DataError(f"{where} is not a JSON object; every line of JSON lines is one")
  if column not in found:
    texts = {name: value for name, value in found.items() if isinstance(value, str)} or found
    likely = max(
      texts, key=lambda name: (_alike(name, column), len(str(texts[name]))), default="text"
    )
    raise DataError(
      f"{where} has no column {column!r} (it has {', '.join(map(repr, found)) or 'none'}); name the column of the text "
      f"behind '#': 'text:{path}#{likely}'"
    )
  if not isinstance(found[column], str):
    raise DataError(
      f"{where}: column {column!r} holds {type(found[column]).__name__}, wanted a string"
    )
  return found[column].encode("utf-8", "surrogatepass").decode("utf-8", "replace").encode()


def _alike(name: str, wanted: str) -> float:
  """How near two names are where one is a misspelling of the other, else 0."""
  share = difflib.SequenceMatcher(None, name, wanted).ratio()
  return share if share > 0.6 else 0.0


def with_column(pattern: str) -> tuple[str, str | None]:
  """('books/*.jsonl', 'body') of 'books/*.jsonl#body'.

  Where files match with the '#', it is part of their names.
  """
  start, _, column = pattern.rpartition("#")
  if not start or "/" in column:
    return pattern, None
  for split in SPLITS:
    path = expand(pattern.replace("{split}", split))
    if is_url(path):
      return start, column or None
    if os.path.lexists(path) or next(glob.iglob(path, recursive=True), None):
      return pattern, None
  return start, column or None
