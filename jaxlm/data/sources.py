"""Where documents come from: 'scheme:rest' names a corpus, a corpus yields the bytes of its
documents in order.

  mini:moby_dick           embedded (`jaxlm.data.mini`)
  text:books/**/*.txt      UTF-8 files, a document each; text:books is all files below that folder
  text:dump/*.jsonl#body   JSON lines, also .jsonl.gz and .jsonl.zst: a document each, the string in column `body` (default `text`)
  text:data.json#output    with a column also a file that is one list of objects
  bytes:genome.bin         files of any bytes
  array_record:c4/{split}-*.array_record    records of bytes, or tf.train.Examples with a feature `text`; another one behind #
  parquet:fineweb/*.parquet#text            Parquet files, a document each row (extra `parquet`)
  hf:folder#text           what `Dataset.save_to_disk` of Hugging Face's `datasets` has written
  store:gs://bucket/tokens                  tokens, made by `jaxlm data tokenize` (`jaxlm.data.shards`)
  tfds:lm1b  tfds:wiki40b/en#text           prepared TFDS data, after # the feature
  prepared:prose-small     made by `jaxlm data prepare prose-small`

Files may be behind an address, `text:gs://bucket/dump/*.jsonl.gz`, of any scheme that fsspec knows.

{split} in a pattern stands for train, validation or test. Without it a document is on the side that
the hash of its text names, 5 % each for validation and test; of text: and bytes:, long files, and
few, are cut by position (`jaxlm.data.plain_files`).
"""

import dataclasses
import functools
import glob
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator

from jaxlm import json_text
from jaxlm.config import nearest
from jaxlm.data import files, plain_files, tables
from jaxlm.data.array_records import read_records
from jaxlm.data.digests import file_digest
from jaxlm.data.errors import DataError
from jaxlm.data.folders import data_dir
from jaxlm.data.splits import SPLITS
from jaxlm.paths import expand

ROWS_AT_ONCE = 1024
RULE = 3  # of the sides of documents (`plain_files`): another rule is another corpus


#: What people write for a scheme -> the scheme.
MEANT = {
  "csv": "text",
  "dataset": "hf",
  "datasets": "hf",
  "file": "text",
  "huggingface": "hf",
  "json": "text",
  "jsonl": "text",
  "tensorflow_datasets": "tfds",
  "txt": "text",
}


@dataclasses.dataclass(frozen=True)
class Corpus:
  """documents: split -> iterator of bytes, the same each time. fingerprint: changes when any byte
  of them does.
  """

  name: str
  fingerprint: str
  documents: Callable[[str], Iterator[bytes]]


def open_corpus(source: str) -> Corpus:
  """The corpus that `source` names; reads no document beyond what its fingerprint needs."""
  scheme, colon, rest = source.partition(":")
  if not colon or scheme not in SCHEMES:
    if os.path.exists(expand(source)):
      kind = "parquet" if source.endswith(".parquet") else "text"
      raise DataError(
        f"data.source = {source!r} is a path and says not how to read it; write '{kind}:{source}' (other schemes: "
        f"{', '.join(sorted(SCHEMES))})"
      )
    if scheme in ("http", "https"):
      raise DataError(
        f"data.source = {source!r}: jaxlm downloads no pages; fetch the file, and write 'text:FILE'"
      )
    if colon and (scheme in MEANT or rest.startswith("//")):
      meant = f"text:{source}" if rest.startswith("//") else f"{MEANT[scheme]}:{rest}"
      raise DataError(f"data.source = {source!r}: no scheme {scheme!r}; write {meant!r}")
    raise DataError(
      f"data.source = {source!r}: no such scheme; {nearest(scheme, SCHEMES)} (e.g. 'mini:moby_dick', "
      f"'text:books/*.txt', 'tfds:lm1b', 'prepared:prose-small')"
    )
  if not rest:
    raise DataError(f"data.source = {source!r} names nothing after the colon")
  return SCHEMES[scheme](source, rest)


def _mini(source: str, name: str) -> Corpus:
  from jaxlm.data.mini import mini

  fingerprint, splits = mini(name)
  return Corpus(source, fingerprint, lambda split: iter(splits[split]))


def _files(source: str, pattern: str) -> Corpus:
  """Files, a document each, or a line each of JSON lines.

  Few documents are cut by position, so that one book is enough.
  """
  text = source.startswith("text:")
  pattern, column = plain_files.with_column(pattern) if text else (pattern, None)
  if "{split}" in pattern:
    by_split = _by_split(source, pattern)
    return Corpus(
      source,
      _fingerprint(source, by_split, column),
      lambda split: plain_files.documents_of(by_split[split], text=text, column=column),
    )
  paths = _matching(source, pattern)
  if not paths:
    raise DataError(
      f"data.source = {source!r}: no file matches; the path is relative to {os.getcwd()}"
    )
  if not any(map(files.size, paths)):
    raise DataError(
      f"data.source = {source!r}: the corpus is empty ({len(paths)} file(s) of 0 bytes)"
    )
  # Decided when a document is asked for: a fingerprint needs no text.
  sides = functools.cache(lambda: plain_files.by_side(paths, text=text, column=column))
  return Corpus(source, _fingerprint(source, {"all": paths}, column), lambda split: sides()(split))


def _array_record(source: str, pattern: str) -> Corpus:
  return _records(source, pattern, "**/*.array_record*", read_records)


def record_files(source: str, split: str) -> tuple[list[str], str | None]:
  """(files, feature) of one split of an array_record source, to be read by number; nothing is read."""
  scheme, _, rest = source.partition(":")
  pattern, feature = plain_files.with_column(rest)
  if scheme != "array_record" or "{split}" not in pattern:
    raise DataError(
      f"data.source = {source!r}: data.packing = 'records' wants ArrayRecord files with their splits in the path, as in "
      f"'array_record:c4/{{split}}-*.array_record#text'; other sources: data.packing = 'packed'"
    )
  found = _by_split(source, pattern, "**/*.array_record*")[split]
  if not found:
    raise DataError(f"data.source = {source!r}: no file matches for the split {split!r}")
  return found, feature


def _parquet(source: str, pattern: str) -> Corpus:
  def rows(paths, column):
    return (text for path in paths for text in tables.parquet_column(path, column or "text"))

  return _records(source, pattern, "**/*.parquet", rows)


def _records(source: str, pattern: str, inside: str, read) -> Corpus:
  """Files of records, a document each. read: (paths, column) -> the documents in order."""
  pattern, feature = plain_files.with_column(pattern)
  whole = "{split}" not in pattern
  by_split = (
    {SPLITS[0]: _matching(source, pattern, inside)} if whole else _by_split(source, pattern, inside)
  )
  if not any(by_split.values()):
    raise DataError(
      f"data.source = {source!r}: no file matches; the path is relative to {os.getcwd()}"
    )
  fingerprint = _fingerprint(source, by_split, feature)
  if not whole:
    return Corpus(source, fingerprint, lambda split: read(by_split[split], feature))
  # Records carry no name: their text is the key, so copies stay together and files may be added.
  return Corpus(
    source,
    fingerprint,
    lambda split: (
      record
      for record in read(by_split[SPLITS[0]], feature)
      if plain_files.side_of(record) == split
    ),
  )


def _tfds(source: str, rest: str) -> Corpus:
  """Prepared TFDS data through `tfds.data_source`, which needs no TensorFlow.

  Missing splits are carved out of train.
  """
  import tensorflow_datasets as tfds

  name, _, feature = rest.partition("#")
  feature = feature or "text"
  try:
    builder = tfds.builder(name)
    splits = dict(builder.info.splits)
  except Exception as error:  # not found, not downloadable, no version: a different class each time
    raise DataError(
      f"data.source = {source!r}: TFDS cannot open it ({str(error).splitlines()[0][:160]}); "
      f"set TFDS_DATA_DIR to the folder of prepared data"
    ) from None
  if not splits:
    raise DataError(
      f"data.source = {source!r} is not prepared in {builder.data_dir}; run tfds.builder({name!r}, "
      f"file_format='array_record').download_and_prepare(), or set TFDS_DATA_DIR"
    )
  if feature not in (builder.info.features or {}):
    raise DataError(
      f"data.source = {source!r} has no feature {feature!r}; {nearest(feature, builder.info.features)}; "
      f"name it after '#'"
    )

  def rows(split: str) -> Iterator[bytes]:
    try:
      data = builder.as_data_source(split)
    except NotImplementedError as error:
      raise DataError(
        f"data.source = {source!r} was prepared as {builder.info.file_format}; prepare it again with "
        f"file_format='array_record' ({str(error).splitlines()[0][:120]})"
      ) from None
    # In ranges: a call decodes every group that it touches.
    for start in range(0, len(data), ROWS_AT_ONCE):
      for row in data.__getitems__(list(range(start, min(start + ROWS_AT_ONCE, len(data))))):
        yield row[feature].encode() if isinstance(row[feature], str) else bytes(row[feature])

  held_out = [split for split in SPLITS if split in splits]
  sizes = {split: splits[split].num_bytes for split in splits}
  digest = hashlib.sha256(
    f"{builder.info.full_name} {RULE} {feature} {sorted(sizes.items())}".encode()
  )
  for path in sorted(pathlib.Path(builder.data_dir).glob("*.array_record*")):
    digest.update(file_digest(path).encode())

  return Corpus(source, digest.hexdigest(), carved(rows, held_out))


def carved(rows, held_out: list[str]) -> Callable[[str], Iterator[bytes]]:
  """split -> documents of a data set with the splits `held_out`; the others are carved from train."""

  def documents(split: str) -> Iterator[bytes]:
    # `train` keeps out what is carved from it for the splits that the data set does not have.
    if split in held_out and (split != "train" or len(held_out) == len(SPLITS)):
      return rows(split)
    return (
      text
      for text in rows("train")
      if (side := plain_files.side_of(text)) == split or (split == "train" and side in held_out)
    )

  return documents


def _hugging_face(source: str, rest: str) -> Corpus:
  """A Dataset that was saved to disk, or a DatasetDict of a folder per split."""
  folder, _, column = rest.partition("#")
  folder, column = folder.rstrip("/"), column or "text"
  if not files.is_url(folder):
    folder = expand(folder)

  def parts(at: str) -> list[str]:
    try:
      found = json.loads(files.read_bytes(files.join(at, "state.json")))
      return [files.join(at, entry["filename"]) for entry in found["_data_files"]]
    except (OSError, DataError):
      return []
    except (ValueError, KeyError, TypeError):
      raise DataError(f"{at}/state.json is damaged; save the data set again") from None

  by_split = {split: parts(files.join(folder, split)) for split in SPLITS}
  if not by_split["train"]:
    by_split = {"train": parts(folder)}
  if not by_split["train"]:
    raise DataError(
      f"data.source = {source!r}: {folder} is no data set that was saved to disk, nor a folder of splits with `train` "
      f"(each holds state.json and .arrow files). jaxlm downloads nothing: load it with the package `datasets`, write it with "
      f"`dataset.save_to_disk(FOLDER)`, and name that folder: 'hf:FOLDER'"
    )

  def rows(split: str) -> Iterator[bytes]:
    return (text for path in by_split[split] for text in tables.arrow_column(path, column))

  held_out = [split for split, paths in by_split.items() if paths]
  return Corpus(source, _fingerprint(source, by_split, column), carved(rows, held_out))


def _store(source: str, rest: str) -> Corpus:
  raise DataError(
    f"data.source = {source!r} holds tokens and no text; only data.kind = 'text' reads it"
  )


def _prepared(source: str, name: str) -> Corpus:
  folder = data_dir() / "prepared" / name
  manifest = folder / "manifest.json"
  if not manifest.is_file():
    raise DataError(
      f"data set {name!r} is not in {data_dir()}; make it with `jaxlm data prepare {name}`, or set "
      f"JAXLM_DATA to the folder where it is"
    )
  described = json.loads(manifest.read_text())
  for entry in described["splits"].values():
    path = folder / entry["file"]
    if not path.is_file() or path.stat().st_size != entry["file_bytes"]:
      raise DataError(
        f"{path} does not match {manifest}; make it again with `jaxlm data prepare {name} --force`"
      )
  return Corpus(
    source,
    hashlib.sha256(json_text.dumps(described["splits"], sort_keys=True).encode()).hexdigest(),
    lambda split: read_records([str(folder / described["splits"][split]["file"])]),
  )


SCHEMES = {
  "mini": _mini,
  "text": _files,
  "bytes": _files,
  "array_record": _array_record,
  "parquet": _parquet,
  "hf": _hugging_face,
  "store": _store,
  "tfds": _tfds,
  "prepared": _prepared,
}


def _by_split(source: str, pattern: str, inside: str = "**/*") -> dict[str, list[str]]:
  """{split: files} of a pattern with {split}. A file may not be trained on and held out."""
  by_split, seen = (
    {split: _matching(source, pattern.replace("{split}", split), inside) for split in SPLITS},
    {},
  )
  for split, paths in by_split.items():
    for path in paths:
      real = path if files.is_url(path) else os.path.realpath(path)
      other = seen.setdefault(real, split)
      if other != split and other == "train":
        raise DataError(
          f"data.source = {source!r}: {path} is in the splits {other} and {split}; write a pattern that tells them "
          f"apart, or remove the link"
        )
  return by_split


def _matching(source: str, pattern: str, inside: str = "**/*") -> list[str]:
  """Files of a glob, bytewise sorted. A path that exists as it is written is meant as it is
  written, `[v2]` and `*` in its names included; of a folder, the files `inside` it are taken. A
  path without wildcards must exist."""
  pattern = expand(pattern)
  if files.is_url(pattern):
    found = files.matching(pattern, inside)
    if not found:
      raise DataError(f"data.source = {source!r}: no file matches {pattern}")
    return found
  if os.path.isdir(pattern):
    os.listdir(pattern)  # a folder that may not be read says so
    found = glob.glob(os.path.join(glob.escape(pattern), inside), recursive=True)
    if not any(map(os.path.isfile, found)):
      raise DataError(
        f"data.source = {source!r}: no file matches; {pattern} is a folder, and it holds no {inside}"
      )
  elif os.path.lexists(pattern) or not glob.has_magic(pattern):
    if not os.path.exists(pattern):
      raise DataError(
        f"data.source = {source!r}: {_absent(pattern)}; the path is relative to {os.getcwd()}"
      )
    found = [pattern]
  else:
    found = glob.glob(_literal_start(pattern), recursive=True)
    if found and all(map(os.path.isdir, found)):
      raise DataError(
        f"data.source = {source!r}: no file matches, only folders ({found[0]}); for the files in them write "
        f"{pattern}/{inside}"
      )
  for path in found:
    if not os.path.exists(path):
      raise DataError(f"data.source = {source!r}: {_absent(path)}; remove or mend the link")
  return sorted(filter(os.path.isfile, found), key=os.fsencode)


def _absent(path: str) -> str:
  return (
    f"{path} is a link to {os.readlink(path)}, which does not exist"
    if os.path.islink(path)
    else f"{path} does not exist"
  )


def _literal_start(pattern: str) -> str:
  """The pattern with its longest start that is a folder as written, `data[v2]`, taken as written."""
  parts = pattern.split("/")
  for count in range(len(parts) - 1, 0, -1):
    start = "/".join(parts[:count])
    if start and os.path.isdir(start):
      return "/".join([glob.escape(start), *parts[count:]])
  return pattern


def _fingerprint(source: str, by_split: dict[str, list[str]], column: str | None) -> str:
  """Of the scheme, the rule of sides, the column, and of each split's files in order.

  Names and folders do not enter: the order does.
  """
  digest = hashlib.sha256(f"{source.partition(':')[0]} {RULE} {column}".encode())
  for split, paths in by_split.items():
    digest.update(f"\n{split}".encode())
    for path in paths:  # and how a file is read, where its name decides
      digest.update(f" {file_digest(path)}{plain_files.json_ending(path)}".encode())
  return digest.hexdigest()
