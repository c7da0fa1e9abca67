"""`data.kind = "text"`: any corpus of documents, any tokenizer, windows or packing."""

import dataclasses
import hashlib
from collections.abc import Iterator
from typing import Annotated, Literal

import grain
import numpy as np

from jaxlm.config import ConfigError, checked
from jaxlm.data.base import DataConfig
from jaxlm.data.errors import DataError
from jaxlm.data.folders import data_dir
from jaxlm.data.lanes import InOrder, Lanes
from jaxlm.data.pipeline import batches, seeded
from jaxlm.data.record_rows import RecordRows, content_of
from jaxlm.data.rows import Packed, Windows
from jaxlm.data.shards import ShardedStore, folder_of, is_store, store_tokenizer
from jaxlm.data.sources import open_corpus, record_files
from jaxlm.data.splits import check_split
from jaxlm.data.store import TokenStore, token_store
from jaxlm.data.tokenizers import TOKENIZERS, Tokenizer
from jaxlm.data.tokenizers.bytes import ByteTokenizerConfig
from jaxlm.ranges import Count, Range


@dataclasses.dataclass(frozen=True)
@checked
class TextData(DataConfig):
  """source: see `jaxlm.data.sources`. batch_size: global, in sequences of seq_len tokens.

  packing: 'windows' joins documents, a separator before each, and cuts them contiguously without a
  mask (the papers' way); 'packed' puts whole documents side by side, masked from each other by
  segment_ids; 'records' makes a row of each record of ArrayRecord files, read by number and tokenised
  when it is needed (`jaxlm.data.record_rows`): its first seq_len + 1 tokens, the rest is left out.
  shuffle: the order of training rows, anew each epoch; a single pass is always in corpus order.
  sequence_seeds: adds uint32 `sequence_seeds` (B, 2), a function of seed and place in the stream
  (lexinvariant models).
  row_start: the first token of every window is the separator, in place of the text's own, so that all
  rows begin alike (attention sinks).
  """

  source: str
  seq_len: Count
  batch_size: Count
  tokenizer: Annotated[object, TOKENIZERS] = ByteTokenizerConfig()
  packing: Literal["windows", "packed", "records"] = "windows"
  shuffle: bool = True
  num_workers: Annotated[int, Range(0, 1024)] = 0
  sequence_seeds: bool = False
  row_start: bool = False

  def __post_init__(self):
    if self.row_start and is_store(self.source):
      raise ConfigError(
        "data.row_start with a store: its rows are read in pieces as they are; set data.source to the "
        "text itself"
      )
    if self.row_start and self.packing == "packed":
      raise ConfigError(
        "data.row_start with data.packing = 'packed': documents begin inside a row there; set packing "
        "= 'windows'"
      )
    if self.packing == "packed" and self.seq_len < 2:
      raise ConfigError("data.seq_len = 1 leaves a packed segment no target; wanted 2 or more")

  @property
  def vocab_size(self) -> int:
    """From the config or the tokenizer's file; no corpus is read."""
    return self.tokenizer.vocab_size

  @property
  def batch_fields(self) -> dict:
    """{name: (shape, dtype)} of a batch; no corpus is read."""
    names = ("tokens", "targets", "segment_ids", "positions", "target_bytes")
    shape = (self.batch_size, self.seq_len)
    seeds = {"sequence_seeds": ((self.batch_size, 2), np.uint32)} if self.sequence_seeds else {}
    return (
      {name: (shape, np.int32) for name in names} | {"loss_weights": (shape, np.float32)} | seeds
    )

  def load_tokenizer(self) -> Tokenizer:
    """The tokenizer; one that is trained here reads the train split the first time."""
    if is_store(self.source):
      return store_tokenizer(folder_of(self.source), self.tokenizer)
    if self.packing == "records":  # the files are not read for a fingerprint
      content = content_of(*record_files(self.source, "train"))
      train = lambda: open_corpus(self.source).documents("train")  # noqa: E731
    else:
      corpus = open_corpus(self.source)
      content, train = corpus.fingerprint, lambda: corpus.documents("train")
    return self.tokenizer.load(train, content, data_dir() / "tokenizers")

  @property
  def start(self) -> int | None:
    """The token that every row begins with, or None."""
    return self.load_tokenizer().separator if self.row_start else None

  def store(self, split: str) -> TokenStore | ShardedStore:
    """All tokens of a split: of a store, from the cache, or tokenised now."""
    check_split(split)
    if is_store(self.source):
      self.load_tokenizer()  # another one is refused
      return ShardedStore(folder_of(self.source), split)
    return token_store(
      open_corpus(self.source), split, self.load_tokenizer(), data_dir() / "tokens"
    )

  def records(self, split: str) -> RecordRows:
    """The records of a split by number. DataError for a source that has none."""
    check_split(split)
    paths, feature = record_files(self.source, split)
    return RecordRows(paths, feature, self.load_tokenizer(), self.seq_len)

  def build(
    self,
    split: str,
    *,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    repeat: bool = True,
  ) -> grain.IterDataset:
    """Batches for ever (training), or one pass in corpus order with every target once (evaluation)."""
    if self.packing == "records":
      rows = store = self.records(split)
    else:
      store = self.store(split)
    if self.packing == "packed":
      rows = Packed(store, self.seq_len, seed=seed if repeat and self.shuffle else None)
    elif self.packing == "windows":
      rows = Windows(store, self.seq_len, whole=repeat, start=self.start)
    lanes = (
      self.shuffle and repeat and isinstance(store, ShardedStore) and self.packing == "windows"
    )
    if lanes:
      rows = Lanes(rows, self.batch_size, seed)
    elif isinstance(store, ShardedStore) and self.packing == "windows":
      rows = InOrder(rows)
    return batches(
      rows,
      batch_size=self.batch_size,
      seed=seed,
      shuffle=self.shuffle and repeat and not lanes,
      repeat=repeat,
      process_index=process_index,
      process_count=process_count,
      num_workers=self.num_workers,
      fingerprint=self._position_of(store),
      transform=seeded if self.sequence_seeds else None,
    )

  def _position_of(self, store: TokenStore) -> str:
    """What a saved position depends on besides seed and batch size."""
    said = f"{store.fingerprint} {self.seq_len} {self.packing} {self.shuffle}"
    said += " start" * self.row_start
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def evaluation_batches(
  cfg: TextData,
  split: str,
  seq_len: int,
  batch_size: int,
  *,
  num_tokens: int | None = None,
  process_index: int = 0,
  process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
  """Windows of `seq_len`, contiguous and disjoint, once, in order; the last batch filled up with
  weight 0.

  Every token of the split but the first is a target once, whatever seq_len is; num_tokens keeps the
  first whole windows of so many, at least one.
  """
  if seq_len < 1:
    raise DataError(f"seq_len = {seq_len}: wanted 1 or more")
  rows = Windows(cfg.store(split), seq_len, whole=False, start=cfg.start)
  if num_tokens is not None:
    rows.length = min(rows.length, max(num_tokens // seq_len, 1))
  return iter(
    batches(
      rows,
      batch_size=batch_size,
      shuffle=False,
      repeat=False,
      process_index=process_index,
      process_count=process_count,
      transform=seeded if cfg.sequence_seeds else None,
    )
  )


def check_vocabulary(tokenizer_size: int, table_size: int) -> None:
  """Refuses a tokenizer whose ids do not fit a model's embedding table."""
  if tokenizer_size > table_size:
    raise DataError(
      f"the tokenizer has {tokenizer_size} tokens, but the table has {table_size} rows; set "
      f"model.vocab_size to at least {tokenizer_size}"
    )
