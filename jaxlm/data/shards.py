"""A corpus as shards of tokens in a folder or a bucket: made once by many, read in slices.

  store.json                     what it is made of: corpus, tokenizer, number of shards
  tokenizer/..                   the files of a tokenizer that was trained on the corpus
  num_bytes.npy                  bytes that each id spells
  train/00003-of-00016.tokens    the tokens of the documents whose hash names shard 3, in corpus order
  train/00003-of-00016.starts    int64: where each of them begins, and the end
  train/00003-of-00016.bytes     bytes of the text that each token stands for, where ids do not say it
  train/00003-of-00016.json      their sizes and checksums; written last, so that the shard is whole
  index.json                     all of those together; written when the last shard is whole

A split is its shards in a row. A token is found by its number alone, and only the bytes that are
asked for are read, from the disk's pages or by a range request. `jaxlm data tokenize` makes a store
(`jaxlm.data.tokenize`); 'store:FOLDER' reads it.
"""

import functools
import hashlib
import io
import json
from collections.abc import Iterator

import numpy as np

from jaxlm import json_text
from jaxlm.data.errors import DataError
from jaxlm.data.files import absolute, exists, is_url, join, read_bytes, read_range, size
from jaxlm.data.folders import data_dir
from jaxlm.data.splits import SPLITS

FORMAT = 1
HEADER, INDEX, TABLE, TOKENIZER = "store.json", "index.json", "num_bytes.npy", "tokenizer"
PARTIAL = "#partial"  # behind the folder: read what is there although shards are missing
SCHEME = "store:"


def shard_of(document: bytes, count: int) -> int:
  """The shard of a document: bytes 8 to 11 of its SHA-256, modulo the number of shards.

  Its side is named by bytes 0 to 3 (`jaxlm.data.splits`).
  """
  return int.from_bytes(hashlib.sha256(document).digest()[8:12], "big") % count


def name_of(shard: int, count: int) -> str:
  return f"{shard:05d}-of-{count:05d}"


class Numbers:
  """One array that lies in several files of plain numbers; slices are read when asked for.

  files: [(path, how many numbers, dtype)].
  """

  def __init__(self, files: list[tuple[str, int, np.dtype]]):
    self.files = files
    self.begins = np.cumsum([0, *(count for _, count, _ in files)])

  def __len__(self) -> int:
    return int(self.begins[-1])

  def __getitem__(self, where: slice) -> np.ndarray:
    start, stop, _ = where.indices(len(self))
    parts, i = [], int(np.searchsorted(self.begins, start, "right")) - 1
    while start < stop:
      begin, end = int(self.begins[i]), min(stop, int(self.begins[i + 1]))
      if end > start:
        parts.append(self._read(i, start - begin, end - begin))
      start, i = max(start, end), i + 1
    return parts[0] if len(parts) == 1 else np.concatenate(parts or [np.zeros(0, np.uint8)])

  def _read(self, i: int, start: int, stop: int) -> np.ndarray:
    path, count, dtype = self.files[i]
    raw = read_range(path, start * dtype.itemsize, stop * dtype.itemsize)
    if len(raw) != (stop - start) * dtype.itemsize:
      raise DataError(
        f"{path} is a partial shard: it ends before number {stop:,} of {count:,}; make it again with the same "
        f"`jaxlm data tokenize` command"
      )
    return np.frombuffer(raw, dtype)


class ShardedStore:
  """A split of a store, with the interface of `jaxlm.data.store.TokenStore`.

  Opening it reads two small files, whatever its size. Pickles as its name. DataError where it is no
  store, where shards are missing (unless `#partial` is behind the folder), where the split is empty.
  """

  def __init__(self, folder: str, split: str):
    self.partial = folder.endswith(PARTIAL)
    self.folder, self.split = absolute(folder.removesuffix(PARTIAL)), split

  def __getstate__(self):
    return {"partial": self.partial, "folder": self.folder, "split": self.split}

  @functools.cached_property
  def header(self) -> dict:
    return read_header(self.folder)

  @functools.cached_property
  def shards(self) -> list[dict]:
    """The entries of the split's shards, in order."""
    index = join(self.folder, INDEX)
    if exists(index):
      entries = _json(index)["splits"][self.split]
    else:
      entries, missing = found_shards(self.folder, self.header, self.split)
      if missing and not self.partial:
        count = self.header["splits"][self.split]
        raise DataError(
          f"{self.folder} is not finished: of split {self.split!r} {len(missing)} of {count} shards are missing "
          f"({', '.join(map(str, missing[:5]))}{', ..' * (len(missing) > 5)}); run the same `jaxlm data tokenize` "
          f"command again, or read what is there with 'store:{self.folder}{PARTIAL}'"
        )
    self._check_sizes(entries)
    if not sum(entry["tokens"] for entry in entries):
      raise DataError(f"{self.folder}: split {self.split!r} is empty; use another split")
    return entries

  def _check_sizes(self, entries: list[dict]) -> None:
    """On a disk, where it costs nothing. What is read from an address is measured when it is read."""
    if is_url(self.folder):
      return
    for entry in entries:
      for name, what in entry["files"].items():
        path = join(self.folder, self.split, name)
        if not exists(path) or size(path) != what["bytes"]:
          raise DataError(
            f"{path} is a partial shard: {size(path) if exists(path) else 0:,} of {what['bytes']:,} bytes; make it "
            f"again with the same `jaxlm data tokenize` command"
          )

  def _numbers(self, ending: str, key: str, dtype: str | None = None, more: int = 0) -> Numbers:
    return Numbers(
      [
        (
          join(self.folder, self.split, f"{entry['name']}.{ending}"),
          entry[key] + more,
          np.dtype(dtype or entry[f"{ending}_dtype"]),
        )
        for entry in self.shards
      ]
    )

  @functools.cached_property
  def tokens(self) -> Numbers:
    return self._numbers("tokens", "tokens", self.header["dtype"])

  @functools.cached_property
  def _counts(self) -> Numbers | None:
    return None if self.header["exact_bytes"] else self._numbers("bytes", "tokens")

  @functools.cached_property
  def _table(self) -> np.ndarray:
    return np.load(io.BytesIO(read_bytes(join(self.folder, TABLE))))

  @functools.cached_property
  def starts(self) -> np.ndarray:
    """int64 (documents + 1,). All of them are read: packing needs them, windows do not."""
    parts, before = [np.zeros(1, np.int64)], 0
    each = self._numbers("starts", "documents", "<i8", 1)
    for i, entry in enumerate(self.shards):
      begin = int(each.begins[i])
      parts.append(each[begin + 1 : begin + entry["documents"] + 1] + before)
      before += entry["tokens"]
    return np.concatenate(parts)

  def bytes_between(self, start: int, stop: int) -> np.ndarray:
    """int32: bytes of the text that each of tokens[start:stop] stands for."""
    if self._counts is None:
      return self._table[self.tokens[start:stop]]
    return self._counts[start:stop].astype(np.int32)

  def piece(self, start: int, stop: int) -> "Piece":
    """tokens[start:stop] in memory, under the numbers that they have here."""
    return Piece(self, start, stop)

  @property
  def front(self) -> tuple[int, ...]:
    return tuple(self.header["front"])

  @property
  def behind(self) -> tuple[int, ...]:
    return tuple(self.header["behind"])

  @property
  def given(self) -> tuple[int, ...]:
    return () if self.header["separator"] in self.front else self.front

  @functools.cached_property
  def fingerprint(self) -> str:
    said = [self.header, self.split, self.shards]
    return hashlib.sha256(json_text.dumps(said, sort_keys=True).encode()).hexdigest()[:32]

  def __len__(self) -> int:
    return len(self.tokens)


class Piece:
  """Tokens start .. stop - 1 of a store, in memory, with the interface that rows are cut from."""

  def __init__(self, store, start: int, stop: int):
    self.start, self.given = start, store.given
    self._tokens = store.tokens[start:stop]
    self._bytes = store.bytes_between(start, stop)

  @property
  def tokens(self):
    return self

  def __getitem__(self, where: slice) -> np.ndarray:
    return self._tokens[where.start - self.start : where.stop - self.start]

  def bytes_between(self, start: int, stop: int) -> np.ndarray:
    return self._bytes[start - self.start : stop - self.start]


def is_store(source: str) -> bool:
  return source.startswith(SCHEME)


def folder_of(source: str) -> str:
  folder = source.removeprefix(SCHEME)
  if not folder.removesuffix(PARTIAL):
    raise DataError(f"data.source = {source!r} names nothing after the colon")
  return folder


def read_header(folder: str) -> dict:
  path = join(folder, HEADER)
  if not exists(path):
    raise DataError(
      f"{folder} is no store of tokens: it has no {HEADER}; make one with `jaxlm data tokenize --config=.. "
      f"--out={folder}`"
    )
  header = _json(path)
  if header.get("format") != FORMAT:
    raise DataError(f"{folder} has format {header.get('format')!r}; this version reads {FORMAT}")
  return header


def found_shards(folder: str, header: dict, split: str) -> tuple[list[dict], list[int]]:
  """(entries of the shards that are whole, numbers of those that are not there)."""
  count, entries, missing = header["splits"][split], [], []
  for shard in range(count):
    path = join(folder, split, f"{name_of(shard, count)}.json")
    if exists(path):
      entries.append(_json(path))
    else:
      missing.append(shard)
  return entries, missing


def _json(path: str) -> dict:
  try:
    found = json.loads(read_bytes(path))
    if isinstance(found, dict):
      return found
  except (ValueError, RecursionError):
    pass
  raise DataError(f"{path} is damaged; remove it and run `jaxlm data tokenize` again")


def damaged_files(folder: str) -> Iterator[tuple[str, str]]:
  """(path, what is wrong with it) of every file of a store that is not what was written."""
  header = read_header(absolute(folder))
  for split in SPLITS:
    for entry in ShardedStore(folder, split).shards if header["splits"][split] else []:
      for name, what in entry["files"].items():
        path = join(absolute(folder), split, name)
        raw = read_bytes(path)
        if len(raw) != what["bytes"]:
          yield path, f"has {len(raw):,} of {what['bytes']:,} bytes"
        elif hashlib.sha256(raw).hexdigest() != what["sha256"]:
          yield path, "does not have the checksum that it was written with"


def store_tokenizer(folder: str, config):
  """The tokenizer of a store, as the configuration names it. DataError where it is another one."""
  folder = absolute(folder.removesuffix(PARTIAL))
  header = read_header(folder)
  kept = data_dir() / "tokenizers"
  for name in header["tokenizer_files"]:
    if not (kept / name).is_file():
      (kept / name).parent.mkdir(parents=True, exist_ok=True)
      (kept / name).write_bytes(read_bytes(join(folder, TOKENIZER, name)))

  def no_documents():
    raise DataError(
      f"{folder} was made with the tokenizer {header['tokenizer']}, not with {config}; set data.tokenizer to that one, "
      f"or make another store"
    )

  tokenizer = config.load(no_documents, header["corpus"], kept)
  if tokenizer.fingerprint != header["tokenizer_fingerprint"]:
    raise DataError(
      f"{folder} was made with another tokenizer: {header['tokenizer']} ({header['tokenizer_fingerprint'][:40]}), and "
      f"data.tokenizer is {config} ({tokenizer.fingerprint[:40]}); set data.tokenizer to the store's, or make another "
      f"store"
    )
  return tokenizer
