"""Tokenising a corpus once, for all hosts: shards by the hash of a document, made by processes.

A process reads the corpus from start to end, keeps the documents of the shards that it makes now,
and tokenises those. A shard is there when its .json is: whoever is stopped goes on with the shards
that are missing. Any number of processes and hosts makes the same files.
"""

import concurrent.futures
import dataclasses
import hashlib
import io
import multiprocessing
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable

import numpy as np

from jaxlm import json_text
from jaxlm.data.errors import DataError
from jaxlm.data.files import absolute, exists, join, upload, write_bytes
from jaxlm.data.folders import data_dir
from jaxlm.data.shards import (
  FORMAT,
  HEADER,
  INDEX,
  TABLE,
  TOKENIZER,
  found_shards,
  name_of,
  read_header,
  shard_of,
)
from jaxlm.data.sources import Corpus, open_corpus
from jaxlm.data.splits import SPLITS
from jaxlm.data.tokenizers import Tokenizer

BATCH_BYTES = 4_000_000  # of text per call of the tokenizer
HELD_OUT_PART = 16  # the other splits are small: they have so many times fewer shards


@dataclasses.dataclass(frozen=True)
class Job:
  """data: a TextData. out: the folder or bucket. at_once: shards that a process makes in one pass
  over the corpus; fewer lose less when it is stopped, and read the corpus more often.
  """

  data: object
  out: str
  shards: int = 16
  processes: int = 1
  host: int = 0
  hosts: int = 1
  at_once: int = 8


def tokenize(job: Job, progress: Callable[[str], None] = lambda line: None) -> list[str]:
  """Makes the missing shards of this host's share, and the index where none is missing any more.

  Returns what there is to say. DataError where `out` holds another corpus or another tokenizer.
  """
  job = dataclasses.replace(job, out=absolute(job.out))
  corpus, tokenizer = open_corpus(job.data.source), job.data.load_tokenizer()
  header = _begin(job, corpus, tokenizer)
  missing = [
    (split, shard) for split in SPLITS for shard in found_shards(job.out, header, split)[1]
  ]
  ours = [(split, shard) for split, shard in missing if shard % job.hosts == job.host]
  start, text = time.perf_counter(), 0
  groups = _groups(ours, job)
  if groups:
    progress(f"{len(ours)} shards to make here, in {job.processes} processes")
  for number, size in enumerate(_made(job, groups, progress, start), 1):
    text += size
    progress(f"{number} of {len(groups)} parts, {_rate(text, start)}")
  lines = [f"{len(ours)} shards made here, {_rate(text, start)}"] if ours else []
  left = {split: found_shards(job.out, header, split) for split in SPLITS}
  count = sum(len(missing) for _, missing in left.values())
  if count:
    return [
      *lines,
      f"{count} shards of other hosts are missing yet; the last host to end writes {INDEX}",
    ]
  write_bytes(
    join(job.out, INDEX),
    json_text.dumps({"splits": {split: entries for split, (entries, _) in left.items()}}).encode(),
  )
  total = {split: sum(e["tokens"] for e in entries) for split, (entries, _) in left.items()}
  return [
    *lines,
    f"{job.out}: " + ", ".join(f"{split} {tokens:,} tokens" for split, tokens in total.items()),
    f"train on it with --config.data.source=store:{job.out}",
  ]


def _rate(text: int, start: float) -> str:
  seconds = max(time.perf_counter() - start, 1e-9)
  return f"{text / 1e6:,.1f} MB of text in {seconds:,.0f} s, {text / 1e6 / seconds:,.1f} MB/s"


def _begin(job: Job, corpus: Corpus, tokenizer: Tokenizer) -> dict:
  """The header, written where there is none; the one that is there must be the same."""
  kept = _trained_files(job.data.tokenizer, corpus.fingerprint)
  front, behind = tokenizer.frame
  held_out = max(1, job.shards // HELD_OUT_PART)
  header = {
    "format": FORMAT,
    "source": job.data.source,
    "corpus": corpus.fingerprint,
    "tokenizer": str(job.data.tokenizer),
    "tokenizer_fingerprint": tokenizer.fingerprint,
    "tokenizer_files": sorted(kept),
    "vocab_size": tokenizer.vocab_size,
    "dtype": np.min_scalar_type(tokenizer.vocab_size - 1).newbyteorder("<").str,
    "exact_bytes": bool(tokenizer.exact_bytes),
    "front": list(front),
    "behind": list(behind),
    "separator": tokenizer.separator,
    "splits": {"train": job.shards, "validation": held_out, "test": held_out},
  }
  if exists(join(job.out, HEADER)):
    there = read_header(job.out)
    for key in header.keys() - {"source", "tokenizer", "tokenizer_files"}:
      if there.get(key) != header[key]:
        what = {
          "corpus": f"the corpus {there['source']!r} as it was then",
          "splits": f"--shards={there['splits']['train']}",
          "tokenizer_fingerprint": f"the tokenizer {there['tokenizer']}",
        }.get(key, f"{key} = {there.get(key)!r}")
        raise DataError(
          f"{job.out} was begun with {what}; go on with that, or choose another --out"
        )
    return there
  table = io.BytesIO()
  np.save(table, tokenizer.num_bytes())
  write_bytes(join(job.out, TABLE), table.getvalue())
  for name, file in kept.items():
    write_bytes(join(job.out, TOKENIZER, name), file.read_bytes())
  write_bytes(join(job.out, HEADER), json_text.dumps(header, indent=1).encode())
  return header


def _trained_files(config, content: str) -> dict[str, pathlib.Path]:
  """{name: file} of what a tokenizer was trained to, and cannot be loaded without."""
  cache = data_dir() / "tokenizers"

  def loads(name: str | None) -> bool:
    def no_documents():
      raise DataError("not trained here")

    with tempfile.TemporaryDirectory() as folder:
      if name is not None:
        (pathlib.Path(folder) / name).parent.mkdir(parents=True)
        shutil.copy(cache / name, pathlib.Path(folder) / name)
      try:
        return config.load(no_documents, content, pathlib.Path(folder)) is not None
      except DataError:
        return False

  if loads(None):
    return {}
  names = [f.relative_to(cache).as_posix() for f in sorted(cache.glob(f"*-{content[:24]}/*.json"))]
  return {name: cache / name for name in names if loads(name)}


def _groups(ours: list[tuple[str, int]], job: Job) -> list[tuple[str, list[int]]]:
  """[(split, shards that one process makes in one pass)]."""
  out = []
  for split in SPLITS:
    shards = [shard for name, shard in ours if name == split]
    each = max(1, min(job.at_once, -(-len(shards) // job.processes)))
    out += [(split, shards[i : i + each]) for i in range(0, len(shards), each)]
  return out


def _made(job: Job, groups, progress, start):
  """Bytes of text of each group, as it is made."""
  if job.processes == 1 or len(groups) < 2:
    for split, shards in groups:
      yield make_shards(job, split, shards)
    return
  context = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(job.processes, mp_context=context) as pool:
    left = {pool.submit(make_shards, job, split, shards) for split, shards in groups}
    try:
      while left:
        done, left = concurrent.futures.wait(
          left, timeout=10, return_when=concurrent.futures.FIRST_COMPLETED
        )
        if not done:
          progress(f"{len(left)} parts are being made, {time.perf_counter() - start:.0f} s")
        for future in done:
          yield future.result()
    except BaseException:
      pool.shutdown(wait=False, cancel_futures=True)
      raise


def make_shards(job: Job, split: str, shards: list[int]) -> int:
  """Writes these shards of a split in one pass over it. Returns the bytes of their documents."""
  corpus, tokenizer = open_corpus(job.data.source), job.data.load_tokenizer()
  count, total = read_header(job.out)["splits"][split], 0
  with tempfile.TemporaryDirectory(prefix="jaxlm-") as folder:
    made = {shard: Shard(folder, name_of(shard, count), tokenizer) for shard in shards}
    batch, size = [], 0
    for document in corpus.documents(split):
      if not document or (shard := shard_of(document, count)) not in made:
        continue
      batch.append((shard, document))
      size += len(document)
      total += len(document)
      if size >= BATCH_BYTES:
        _add(made, batch, tokenizer)
        batch, size = [], 0
    _add(made, batch, tokenizer)
    for shard in made.values():
      shard.finish(join(job.out, split))
  return total


def _add(made: dict, batch: list[tuple[int, bytes]], tokenizer: Tokenizer) -> None:
  texts = [text for _, text in batch]
  if tokenizer.exact_bytes:
    encoded = ((ids, None) for ids in tokenizer.encode_batch(texts))
  else:
    encoded = tokenizer.encode_counted(texts)
  for (shard, text), (ids, counts) in zip(batch, encoded):
    made[shard].add(text, ids, counts)


class Shard:
  """Files of a shard that is being made, in a folder of this machine."""

  def __init__(self, folder: str, name: str, tokenizer: Tokenizer):
    self.name, self.counted = name, not tokenizer.exact_bytes
    self.dtype = np.min_scalar_type(tokenizer.vocab_size - 1).newbyteorder("<")
    self.front, self.behind = tokenizer.frame
    self.frame = [np.array(ids, self.dtype).tobytes() for ids in (self.front, self.behind)]
    self.paths = {
      ending: pathlib.Path(folder, f"{name}.{ending}")
      for ending in ("tokens", "starts", *["bytes"] * self.counted)
    }
    self.files = {ending: open(path, "wb") for ending, path in self.paths.items()}
    self.starts, self.text = [0], 0

  def add(self, text: bytes, ids: np.ndarray, counts: np.ndarray | None) -> None:
    self.files["tokens"].write(self.frame[0] + ids.astype(self.dtype).tobytes() + self.frame[1])
    if self.counted:
      framed = np.concatenate(
        [np.zeros(len(self.front)), counts, np.zeros(len(self.behind))]
      ).astype("<u4")
      framed[-1] += len(text) - int(framed.sum())  # of a text of which nothing became a token
      self.files["bytes"].write(framed.tobytes())
    self.starts.append(self.starts[-1] + len(self.front) + len(ids) + len(self.behind))
    self.text += len(text)

  def finish(self, folder: str) -> None:
    """Moves the files to the store's folder, and last of all writes what they are."""
    self.files["starts"].write(np.array(self.starts, "<i8").tobytes())
    for file in self.files.values():
      file.close()
    entry = {
      "name": self.name,
      "documents": len(self.starts) - 1,
      "tokens": self.starts[-1],
      "text_bytes": self.text,
      "bytes_dtype": "<u4",
      "files": {},
    }
    for path in self.paths.values():
      with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
      entry["files"][path.name] = {"bytes": path.stat().st_size, "sha256": digest}
      upload(path, join(folder, path.name))
    write_bytes(join(folder, f"{self.name}.json"), json_text.dumps(entry).encode())
