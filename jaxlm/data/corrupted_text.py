"""`data.kind = "span_corruption"`: text in any number of languages, its spans replaced by
sentinels. docs/specs/mrt5.md, section 7.

Axes: N tokens of a chunk, L encoder, T decoder.
"""

import dataclasses
import hashlib
from typing import Annotated, ClassVar

import grain
import numpy as np

from jaxlm.config import ConfigError, checked
from jaxlm.data import byte_t5
from jaxlm.data.base import DataConfig
from jaxlm.data.errors import DataError
from jaxlm.data.folders import data_dir
from jaxlm.data.forms import encoder_decoder
from jaxlm.data.pipeline import batches
from jaxlm.data.sources import open_corpus
from jaxlm.data.span_corruption import check_spans, corrupt, lengths, noise_mask
from jaxlm.data.splits import SPLIT_SEEDS, check_split
from jaxlm.data.store import token_store
from jaxlm.data.tokenizers.bytes import ByteTokenizer, ByteTokenizerConfig
from jaxlm.ranges import Count, Fraction, Inside, Range


class ByT5Tokenizer(ByteTokenizer):
  """byte + 3, documents ended by 1; what is not UTF-8 is refused, as its bytes may be sentinels."""

  def __init__(self):
    super().__init__(
      ByteTokenizerConfig(offset=byte_t5.OFFSET, separator=byte_t5.END, size=byte_t5.VOCAB_SIZE)
    )
    self.fingerprint += "-utf8"

  def encode_batch(self, texts):
    for text in texts:
      byte_t5.check_utf8(text.encode() if isinstance(text, str) else bytes(text))
    return super().encode_batch(texts)


@dataclasses.dataclass(frozen=True)
@checked
class SpanCorruptionData(DataConfig):
  """sources: as in `jaxlm.data.sources`, one per language, say. seq_len: of the encoder's input;
  the target's follows.

  Languages are drawn with probability proportional to size^exponent: 0 uniform (the paper), 1 as
  they are, 0.3 usual where sizes span orders of magnitude. A training row is a function of (seed,
  index): its language, its chunk, its noise. rows: of one pass, the languages in turn.
  """

  batch_form: ClassVar[str] = "encoder_decoder"

  sources: tuple[str, ...]
  seq_len: Count
  batch_size: Count
  noise_density: Inside = 0.15
  mean_span: Annotated[float, Range(1)] = 20.0
  exponent: Fraction = 0.3
  rows: Count = 1024

  def __post_init__(self):
    if not self.sources:
      raise ConfigError("data.sources = (): name at least one source, for example 'mini:en'")
    check_spans(self.seq_len, self.noise_density, self.mean_span)

  @property
  def vocab_size(self) -> int:
    return byte_t5.VOCAB_SIZE

  @property
  def target_len(self) -> int:
    return lengths(self.seq_len, self.noise_density, self.mean_span)[1]

  @property
  def batch_fields(self) -> dict:
    return encoder_decoder.batch_fields(self.batch_size, self.seq_len, self.target_len)

  def build(
    self,
    split: str,
    *,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    repeat: bool = True,
  ) -> grain.IterDataset:
    check_split(split)
    stores = [
      token_store(open_corpus(source), split, ByT5Tokenizer(), data_dir() / "tokens")
      for source in self.sources
    ]
    rows = _Rows(self, split, seed, stores, len_=10_000_000 if repeat else self.rows)
    said = f"{self} {[store.fingerprint for store in stores]}"
    return batches(
      rows,
      batch_size=self.batch_size,
      seed=seed,
      shuffle=False,
      repeat=repeat,
      process_index=process_index,
      process_count=process_count,
      fingerprint=hashlib.sha256(said.encode()).hexdigest()[:16],
    )


def shares(sizes, exponent: float) -> np.ndarray:
  """p_i = sizes_i^exponent / sum."""
  weights = np.asarray(sizes, np.float64) ** exponent
  return weights / weights.sum()


class _Rows:
  """Row i, corrupted. Training draws language and chunk; a pass takes them in turn, as many as
  there are.
  """

  def __init__(self, cfg: SpanCorruptionData, split: str, seed: int, stores, len_: int):
    self.cfg, self.split, self.seed, self.stores = cfg, split, seed, stores
    self.size = lengths(cfg.seq_len, cfg.noise_density, cfg.mean_span)[0]
    # A separator precedes each document, so the text from the first document on, with an end
    # appended, is d0 1 d1 1 ...
    self.chunks = [len(store) // self.size for store in stores]
    for source, store, count in zip(cfg.sources, stores, self.chunks):
      if count < 1:
        raise DataError(
          f"{source}: split {split!r} holds {len(store)} tokens, fewer than one chunk of {self.size}; shorten "
          "data.seq_len or use a larger corpus"
        )
    self.p = shares([len(store) for store in stores], cfg.exponent)
    self.drawn = split == "train"
    self.len = len_ if self.drawn else min(len_, len(stores) * max(self.chunks))

  def __len__(self) -> int:
    return self.len

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([self.seed, SPLIT_SEEDS[self.split], int(index)])
    if self.drawn:
      which = int(rng.choice(len(self.p), p=self.p))
      chunk = int(rng.integers(self.chunks[which]))
    else:
      which, chunk = int(index) % len(self.stores), int(index) // len(self.stores)
      chunk %= self.chunks[which]
    return self.row(which, chunk, rng)

  def row(self, which: int, chunk: int, rng) -> dict[str, np.ndarray]:
    store, start = self.stores[which], 1 + chunk * self.size
    tokens = np.asarray(store.tokens[start : start + self.size], np.int32)
    if len(tokens) < self.size:
      tokens = np.append(tokens, byte_t5.END).astype(np.int32)
    inputs, labels = corrupt(
      tokens, noise_mask(self.size, self.cfg.noise_density, self.cfg.mean_span, rng)
    )
    return encoder_decoder.row(inputs, labels, padded=False)
