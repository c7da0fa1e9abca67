"""Where documents come from: 'scheme:rest' names a corpus, a corpus yields the bytes of its documents in order.

  mini:moby_dick           embedded (`jaxlm.data.mini`)
  text:books/**/*.txt      UTF-8 files, a document each; text:books is all files below that folder
  bytes:genome.bin         files of any bytes
  array_record:c4/{split}-*.array_record    records of bytes, or TFDS/our records with a feature `text`
  tfds:lm1b  tfds:wiki40b/en#text           prepared TFDS data, after # the feature
  prepared:prose-small     made by `jaxlm data prepare prose-small`

{split} in a pattern stands for train, validation or test; without it documents are split by hash (`jaxlm.data.splits`).
"""

import dataclasses
import glob
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator

from jaxlm import json_text
from jaxlm.config import nearest
from jaxlm.data.errors import DataError
from jaxlm.data.folders import data_dir
from jaxlm.data.splits import MIN_DOCUMENTS, SMALL_BYTES, SPLITS, cut_by_position, split_of
from jaxlm.paths import expand


@dataclasses.dataclass(frozen=True)
class Corpus:
  """documents: split -> iterator of bytes, the same each time. fingerprint: changes when any byte of them does."""

  name: str
  fingerprint: str
  documents: Callable[[str], Iterator[bytes]]


def open_corpus(source: str) -> Corpus:
  """The corpus that `source` names; reads no document beyond what its fingerprint needs."""
  scheme, colon, rest = source.partition(":")
  if not colon or scheme not in SCHEMES:
    raise DataError(f"data.source = {source!r}: no such scheme; {nearest(scheme, SCHEMES)} (e.g. 'mini:moby_dick', "
                    f"'text:books/*.txt', 'tfds:lm1b', 'prepared:prose-small')")
  if not rest:
    raise DataError(f"data.source = {source!r} names nothing after the colon")
  return SCHEMES[scheme](source, rest)


def _mini(source: str, name: str) -> Corpus:
  from jaxlm.data.mini import mini

  fingerprint, splits = mini(name)
  return Corpus(source, fingerprint, lambda split: iter(splits[split]))


def _files(source: str, pattern: str) -> Corpus:
  """Files, a document each. Few of them are cut by position, so that one book is enough to train and evaluate."""
  text = source.startswith("text:")
  read = lambda path: _read_file(path, text)
  if "{split}" in pattern:
    by_split = {split: _matching(source, pattern.replace("{split}", split)) for split in SPLITS}
    everything = [path for paths in by_split.values() for path in paths]
    return Corpus(source, _fingerprint(source, everything), lambda split: map(read, by_split[split]))
  paths = _matching(source, pattern)
  if not paths:
    raise DataError(f"data.source = {source!r}: no file matches; the path is relative to {os.getcwd()}")
  size = sum(os.path.getsize(p) for p in paths)
  if not size:
    raise DataError(f"data.source = {source!r}: the corpus is empty ({len(paths)} file(s) of 0 bytes)")
  root = os.path.commonpath([os.path.dirname(p) for p in paths])
  side = {p: split_of(pathlib.Path(p).relative_to(root).as_posix(), small=size < SMALL_BYTES) for p in paths}
  if len(paths) < MIN_DOCUMENTS or len(set(side.values())) < len(SPLITS):
    documents = lambda split: (cut_by_position(read(p))[split] for p in paths)
  else:
    documents = lambda split: (read(p) for p in paths if side[p] == split)
  return Corpus(source, _fingerprint(source, paths), documents)


def _array_record(source: str, pattern: str) -> Corpus:
  by_split = {split: _matching(source, pattern.replace("{split}", split), "**/*.array_record*") for split in SPLITS}
  everything = sorted({path for paths in by_split.values() for path in paths})
  if not everything:
    raise DataError(f"data.source = {source!r}: no file matches; the path is relative to {os.getcwd()}")
  fingerprint = _fingerprint(source, everything)
  if "{split}" in pattern:
    return Corpus(source, fingerprint, lambda split: read_records(by_split[split]))
  return Corpus(source, fingerprint, lambda split: _by_content(read_records(everything), split,
                                                               sum(map(os.path.getsize, everything))))


def read_records(paths: list[str]) -> Iterator[bytes]:
  """The texts in ArrayRecord files, in order: the feature `text` of a tf.train.Example, or the whole record."""
  from array_record.python import array_record_module

  for path in paths:
    try:
      reader = array_record_module.ArrayRecordReader(str(path))
      for i in range(reader.num_records()):
        yield _text_of(reader.read([i])[0])
      reader.close()
    except (RuntimeError, ValueError, IndexError) as error:
      if isinstance(error, DataError):
        raise
      raise DataError(f"{path} is not an ArrayRecord file, or is damaged ({str(error).splitlines()[0][:120]}); "
                      f"plain files are read with 'text:' or 'bytes:'") from None


def _text_of(record: bytes) -> bytes:
  """Feature `text` of a serialised tf.train.Example that has one; any other record is the text itself."""
  try:
    for features in _fields(record, 1):
      for entry in _fields(features, 1):
        if _fields(entry, 1) == [b"text"]:
          return _fields(_fields(_fields(entry, 2)[0], 1)[0], 1)[0]
  except IndexError:
    pass
  return record


def _fields(message: bytes, number: int) -> list[bytes]:
  """Values of a length-delimited protobuf field; IndexError if `message` holds anything else or ends early."""
  out, at = [], 0
  while at < len(message):
    if message[at] & 7 != 2 or message[at] >> 3 not in (1, 2):
      raise IndexError(at)
    tag, at, size, shift = message[at] >> 3, at + 1, 0, 0
    while True:
      byte, at = message[at], at + 1
      size, shift = size | (byte & 127) << shift, shift + 7
      if byte < 128:
        break
    if at + size > len(message):
      raise IndexError(at)
    if tag == number:
      out.append(message[at:at + size])
    at += size
  return out


def _tfds(source: str, rest: str) -> Corpus:
  """Prepared TFDS data through `tfds.data_source`, which needs no TensorFlow. Missing splits are carved out of train."""
  import tensorflow_datasets as tfds

  name, _, feature = rest.partition("#")
  feature = feature or "text"
  try:
    builder = tfds.builder(name)
    splits = dict(builder.info.splits)
  except Exception as error:    # not found, not downloadable, no version: a different class each time
    raise DataError(f"data.source = {source!r}: TFDS cannot open it ({str(error).splitlines()[0][:160]}); "
                    f"set TFDS_DATA_DIR to the folder of prepared data") from None
  if not splits:
    raise DataError(f"data.source = {source!r} is not prepared in {builder.data_dir}; run tfds.builder({name!r}, "
                    f"file_format='array_record').download_and_prepare(), or set TFDS_DATA_DIR")
  if feature not in (builder.info.features or {}):
    raise DataError(f"data.source = {source!r} has no feature {feature!r}; {nearest(feature, builder.info.features)}; "
                    f"name it after '#'")

  def rows(split: str) -> Iterator[bytes]:
    try:
      data = builder.as_data_source(split)
    except NotImplementedError as error:
      raise DataError(f"data.source = {source!r} was prepared as {builder.info.file_format}; prepare it again with "
                      f"file_format='array_record' ({str(error).splitlines()[0][:120]})") from None
    for i in range(len(data)):
      text = data[i][feature]
      yield text.encode() if isinstance(text, str) else bytes(text)

  held_out = [split for split in SPLITS if split in splits]
  sizes = {split: splits[split].num_bytes for split in splits}
  digest = hashlib.sha256(f"{builder.info.full_name} {feature} {sorted(sizes.items())}".encode())
  for path in sorted(pathlib.Path(builder.data_dir).glob("*.array_record*")):
    digest.update(_hash_file(path).encode())

  def documents(split: str) -> Iterator[bytes]:
    # `train` keeps out what is carved from it for the splits that the data set does not have.
    if split in held_out and (split != "train" or len(held_out) == len(SPLITS)):
      return rows(split)
    return (text for text in rows("train")
            if (side := split_of(text.decode("utf-8", "surrogateescape"), small=sizes["train"] < SMALL_BYTES)) == split
            or (split == "train" and side in held_out))

  return Corpus(source, digest.hexdigest(), documents)


def _prepared(source: str, name: str) -> Corpus:
  folder = data_dir() / "prepared" / name
  manifest = folder / "manifest.json"
  if not manifest.is_file():
    raise DataError(f"data set {name!r} is not in {data_dir()}; make it with `jaxlm data prepare {name}`, or set "
                    f"JAXLM_DATA to the folder where it is")
  described = json.loads(manifest.read_text())
  for entry in described["splits"].values():
    path = folder / entry["file"]
    if not path.is_file() or path.stat().st_size != entry["file_bytes"]:
      raise DataError(f"{path} does not match {manifest}; make it again with `jaxlm data prepare {name} --force`")
  return Corpus(source, hashlib.sha256(json_text.dumps(described["splits"], sort_keys=True).encode()).hexdigest(),
                lambda split: read_records([str(folder / described["splits"][split]["file"])]))


SCHEMES = {"mini": _mini, "text": _files, "bytes": _files, "array_record": _array_record, "tfds": _tfds,
           "prepared": _prepared}


def _matching(source: str, pattern: str, inside: str = "**/*") -> list[str]:
  """Files of a glob, bytewise sorted. A path that exists as it is written is meant as it is written, `[v2]` and `*` in its
  names included; of a folder, the files `inside` it are taken. A path without wildcards must exist."""
  pattern = expand(pattern)
  if os.path.isdir(pattern):
    os.listdir(pattern)     # a folder that may not be read says so
    found = glob.glob(os.path.join(glob.escape(pattern), inside), recursive=True)
    if not any(map(os.path.isfile, found)):
      raise DataError(f"data.source = {source!r}: no file matches; {pattern} is a folder, and it holds no {inside}")
  elif os.path.lexists(pattern) or not glob.has_magic(pattern):
    if not os.path.exists(pattern):
      raise DataError(f"data.source = {source!r}: {_absent(pattern)}; the path is relative to {os.getcwd()}")
    found = [pattern]
  else:
    found = glob.glob(_literal_start(pattern), recursive=True)
    if found and all(map(os.path.isdir, found)):
      raise DataError(f"data.source = {source!r}: no file matches, only folders ({found[0]}); for the files in them write "
                      f"{pattern}/{inside}")
  for path in found:
    if not os.path.exists(path):
      raise DataError(f"data.source = {source!r}: {_absent(path)}; remove or mend the link")
  return sorted(filter(os.path.isfile, found), key=os.fsencode)


def _absent(path: str) -> str:
  return f"{path} is a link to {os.readlink(path)}, which does not exist" if os.path.islink(path) else f"{path} does not exist"


def _literal_start(pattern: str) -> str:
  """The pattern with its longest start that is a folder as written, `data[v2]`, taken as written."""
  parts = pattern.split("/")
  for count in range(len(parts) - 1, 0, -1):
    start = "/".join(parts[:count])
    if start and os.path.isdir(start):
      return "/".join([glob.escape(start), *parts[count:]])
  return pattern


def _read_file(path: str, text: bool) -> bytes:
  raw = pathlib.Path(path).read_bytes()
  if text:
    try:
      raw.decode("utf-8")
    except UnicodeDecodeError as error:
      raise DataError(f"{path} is not UTF-8 (byte 0x{raw[error.start]:02x} at offset {error.start}); convert it, or read "
                      f"it as 'bytes:{path}'") from None
  return raw


def _by_content(texts: Iterator[bytes], split: str, size: int) -> Iterator[bytes]:
  """Records carry no name: their text is the key, so copies stay together."""
  return (t for t in texts if split_of(t.decode("utf-8", "surrogateescape"), small=size < SMALL_BYTES) == split)


def _fingerprint(source: str, paths: list[str]) -> str:
  digest = hashlib.sha256(source.partition(":")[0].encode())
  for path in paths:
    digest.update(f"{os.path.basename(path)} {_hash_file(path)}\n".encode())
  return digest.hexdigest()


def _hash_file(path) -> str:
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
