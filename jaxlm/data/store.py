"""A corpus as one flat array of tokens on disk: tokenised once, mapped into memory, read by index.

Every document is preceded by the separator: [s d0 d0 d0 s d1 d1 ...]. The folder's name is the hash of content and
tokenizer, so a store is never stale; it is made once (`made_once`), so it is never half there.
"""

import functools
import hashlib
import os
import pathlib
import sys
from collections.abc import Iterator

import numpy as np

from jaxlm.data.errors import DataError
from jaxlm.data.made_once import made_once
from jaxlm.data.sources import Corpus
from jaxlm.data.tokenizers import Tokenizer

BATCH_BYTES = 16_000_000    # of text per call of the tokenizer: enough to keep all cores busy


class TokenStore:
  """tokens: (N,) unsigned. starts: int64 (documents + 1,): document i, its separator first, is
  tokens[starts[i]:starts[i+1]].

  num_bytes: int32 (vocab_size,), bytes of each token. Pickles as its path: workers map the same pages.
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
  def num_bytes(self) -> np.ndarray:
    return np.load(self.folder / "num_bytes.npy")

  @property
  def fingerprint(self) -> str:
    return self.folder.name

  def __len__(self) -> int:
    return len(self.tokens)


def token_store(corpus: Corpus, split: str, tokenizer: Tokenizer, cache: pathlib.Path) -> TokenStore:
  """The store of one split, from the cache or made now. Memory: one batch of documents."""
  key = hashlib.sha256(f"1 {corpus.fingerprint} {split} {tokenizer.fingerprint} {tokenizer.vocab_size}".encode())
  folder = cache / key.hexdigest()[:32]
  return TokenStore(made_once(folder, lambda part: _write(part, corpus, split, tokenizer)))


def _write(folder: pathlib.Path, corpus: Corpus, split: str, tokenizer: Tokenizer) -> None:
  dtype = np.min_scalar_type(tokenizer.vocab_size - 1)
  starts, total = [0], 0
  raw = folder / "raw"
  with raw.open("wb") as out:
    for texts in _batches(corpus.documents(split)):
      for ids in tokenizer.encode_batch(texts):
        out.write(np.array([tokenizer.separator], dtype).tobytes() + ids.astype(dtype).tobytes())
        total += 1 + len(ids)
        starts.append(total)
      if sys.stderr.isatty():
        print(f"\rtokenising {corpus.name}, {split}, once: {total:,} tokens", end="", file=sys.stderr, flush=True)
  if sys.stderr.isatty():
    print("\r\033[K", end="", file=sys.stderr)
  if not total:
    raise DataError(f"{corpus.name}: split {split!r} is empty; use a larger corpus or another split")
  tokens = np.lib.format.open_memmap(folder / "tokens.npy", "w+", dtype, (total,))
  source = np.memmap(raw, dtype, "r")
  for start in range(0, total, 1 << 24):
    tokens[start:start + (1 << 24)] = source[start:start + (1 << 24)]
  tokens.flush()
  raw.unlink()
  np.save(folder / "starts.npy", np.array(starts, np.int64))
  np.save(folder / "num_bytes.npy", tokenizer.num_bytes())


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
