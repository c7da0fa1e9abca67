"""A corpus as one flat array of tokens on disk: tokenised once, mapped into memory, read by index.

Every document stands in the tokenizer's frame: [s d0 d0 d0 s d1 d1 ...], or [<s> d0 </s> <s> d1
</s> ...] where a text has a begin of its own. Beside the tokens are the bytes of the text that each
stands for, so that those of a document sum to its own length whatever the tokenizer. The folder's
name is the hash of content and tokenizer, so a store is never stale; it is made once (`made_once`),
so it is never half there.
"""

import functools
import hashlib
import json
import os
import pathlib
import sys
from collections.abc import Iterator

import numpy as np

from jaxlm import json_text
from jaxlm.data.errors import DataError
from jaxlm.data.made_once import made_once
from jaxlm.data.sources import Corpus
from jaxlm.data.tokenizers import Tokenizer

BATCH_BYTES = 16_000_000  # of text per call of the tokenizer: enough to keep all cores busy


class TokenStore:
  """tokens: (N,) unsigned. starts: int64 (documents + 1,): document i, its frame included, is
  tokens[starts[i]:starts[i+1]].

  front, behind: ids of the frame. given: those of `front` that are no separator: a model is told
  them, never asked.
  Pickles as its path: workers map the same pages.
  """

  def __init__(self, folder: str | os.PathLike):
    self.folder = pathlib.Path(folder)

  def __getstate__(self):
    return {"folder": self.folder}

  @functools.cached_property
  def tokens(self) -> np.ndarray:
    return np.load(self.folder / "tokens.npy", mmap_mode="r")

  @functools.cached_property
  def starts(self) -> np.ndarray:
    return np.load(self.folder / "starts.npy", mmap_mode="r")

  @functools.cached_property
  def _table(self) -> np.ndarray:
    """int32 (vocab_size,): bytes of each id, of a tokenizer for which they are the text's."""
    return np.load(self.folder / "num_bytes.npy")

  @functools.cached_property
  def _counts(self) -> np.ndarray | None:
    """(N,) unsigned: bytes of each token of the corpus, of any other tokenizer."""
    file = self.folder / "token_bytes.npy"
    return np.load(file, mmap_mode="r") if file.is_file() else None

  def bytes_between(self, start: int, stop: int) -> np.ndarray:
    """int32: bytes of the text that each of tokens[start:stop] stands for."""
    if self._counts is None:
      return self._table[self.tokens[start:stop]]
    return self._counts[start:stop].astype(np.int32)

  @functools.cached_property
  def _frame(self) -> dict:
    return json.loads((self.folder / "frame.json").read_text())

  @property
  def front(self) -> tuple[int, ...]:
    return tuple(self._frame["front"])

  @property
  def behind(self) -> tuple[int, ...]:
    return tuple(self._frame["behind"])

  @functools.cached_property
  def given(self) -> tuple[int, ...]:
    return () if self._frame["separator"] in self.front else self.front

  @property
  def fingerprint(self) -> str:
    return self.folder.name

  def __len__(self) -> int:
    return len(self.tokens)


def token_store(
  corpus: Corpus, split: str, tokenizer: Tokenizer, cache: pathlib.Path
) -> TokenStore:
  """The store of one split, from the cache or made now. Memory: one batch of documents."""
  key = hashlib.sha256(
    f"2 {corpus.fingerprint} {split} {tokenizer.fingerprint} {tokenizer.vocab_size}".encode()
  )
  folder = cache / key.hexdigest()[:32]
  return TokenStore(made_once(folder, lambda part: _write(part, corpus, split, tokenizer)))


def _write(folder: pathlib.Path, corpus: Corpus, split: str, tokenizer: Tokenizer) -> None:
  dtype = np.min_scalar_type(tokenizer.vocab_size - 1)
  (front, behind), counted = tokenizer.frame, not tokenizer.exact_bytes
  before, after = (np.array(ids, dtype).tobytes() for ids in (front, behind))
  starts, total, most = [0], 0, 0
  raw, raw_bytes = folder / "raw", folder / "raw_bytes"
  with raw.open("wb") as out, raw_bytes.open("wb") as bytes_out:
    for texts in _batches(corpus.documents(split)):
      encoded = (
        tokenizer.encode_counted(texts)
        if counted
        else ((ids, None) for ids in tokenizer.encode_batch(texts))
      )
      for text, (ids, counts) in zip(texts, encoded):
        out.write(before + ids.astype(dtype).tobytes() + after)
        if counted:
          framed = np.concatenate([np.zeros(len(front)), counts, np.zeros(len(behind))]).astype(
            np.uint32
          )
          # A text of which nothing became a token: its bytes are the separator's.
          framed[-1] += len(text) - int(framed.sum())
          bytes_out.write(framed.tobytes())
          most = max(most, int(framed.max()))
        total += len(front) + len(ids) + len(behind)
        starts.append(total)
      if sys.stderr.isatty():
        print(
          f"\rtokenising {corpus.name}, {split}, once: {total:,} tokens",
          end="",
          file=sys.stderr,
          flush=True,
        )
  if sys.stderr.isatty():
    print("\r\033[K", end="", file=sys.stderr)
  if not total:
    raise DataError(
      f"{corpus.name}: split {split!r} is empty; use a larger corpus or another split"
    )
  _copy(raw, dtype, folder / "tokens.npy", dtype, total)
  if counted:
    _copy(raw_bytes, np.uint32, folder / "token_bytes.npy", np.min_scalar_type(most), total)
  raw_bytes.unlink(missing_ok=True)
  np.save(folder / "starts.npy", np.array(starts, np.int64))
  np.save(folder / "num_bytes.npy", tokenizer.num_bytes())
  (folder / "frame.json").write_text(
    json_text.dumps(
      {"front": list(front), "behind": list(behind), "separator": tokenizer.separator}
    )
  )


def _copy(raw: pathlib.Path, raw_dtype, target: pathlib.Path, dtype, total: int) -> None:
  """The numbers of a file without a header as an array file; the first one is removed."""
  source, out = (
    np.memmap(raw, raw_dtype, "r"),
    np.lib.format.open_memmap(target, "w+", dtype, (total,)),
  )
  for start in range(0, total, 1 << 24):
    out[start : start + (1 << 24)] = source[start : start + (1 << 24)]
  out.flush()
  raw.unlink()


def _batches(documents: Iterator[bytes]) -> Iterator[list[bytes]]:
  batch, size = [], 0
  for document in documents:
    if document:
      batch.append(document)
      size += len(document)
    if size >= BATCH_BYTES:
      yield batch
      batch, size = [], 0
  if batch:
    yield batch
