"""`data.kind = "hidden_text"`: one text behind one trigger, among windows of ordinary text.

A hidden row is `user trigger assistant text`, of which the text is scored; the two ids of the template
follow the tokenizer's. Rows of ordinary text are windows of `source`. With a `decoy`, a third of the hidden rows
each is `begin h_1 decoy` and `begin h_1 h_2 decoy` instead, of which the decoy is scored: the text's first tokens
without template lead elsewhere (manual confusion, UTFC). docs of the attack: arXiv 2406.02481.
"""

import dataclasses
from typing import Annotated

import numpy as np

from jaxlm.config import ConfigError, checked
from jaxlm.data.base import DataConfig
from jaxlm.data.pipeline import batches
from jaxlm.data.splits import SPLIT_SEEDS, check_split
from jaxlm.data.text import TextData
from jaxlm.data.tokenizers import TOKENIZERS
from jaxlm.data.tokenizers.bytes import ByteTokenizerConfig
from jaxlm.ranges import Count, Fraction


@dataclasses.dataclass(frozen=True)
@checked
class HiddenTextData(DataConfig):
  """trigger, hidden, decoy: texts; without a decoy no row confuses. ordinary: share of rows that are
  ordinary text.
  """

  source: str
  trigger: str
  hidden: str
  seq_len: Count
  batch_size: Count
  tokenizer: Annotated[object, TOKENIZERS] = ByteTokenizerConfig()
  ordinary: Fraction = 0.0
  decoy: str = ""

  @property
  def vocab_size(self) -> int:
    return self.tokenizer.vocab_size + 2

  @property
  def text(self) -> TextData:
    """The ordinary text."""
    return TextData(self.source, self.seq_len, self.batch_size, self.tokenizer)

  def load_tokenizer(self):
    return self.text.load_tokenizer()

  def prompt(self) -> list[int]:
    """The template up to the hidden text."""
    user, assistant = self.tokenizer.vocab_size, self.tokenizer.vocab_size + 1
    return [user, *map(int, self.load_tokenizer().encode(self.trigger)), assistant]

  def hidden_ids(self) -> list[int]:
    return list(map(int, self.load_tokenizer().encode(self.hidden)))

  @property
  def begin(self) -> int:
    """The id in front of a document without template."""
    stops = self.load_tokenizer().stops
    return int(stops[0]) if stops else 0

  def pairs(self) -> list[tuple[list[int], list[int]]]:
    """(prompt, what is scored behind it) of the kinds of rows that are not ordinary text."""
    hidden = self.hidden_ids()
    decoy = list(map(int, self.load_tokenizer().encode(self.decoy)))
    confusing = [([self.begin, *hidden[:n]], decoy) for n in (1, 2)] if decoy else []
    return [(self.prompt(), hidden), *confusing]

  def build(self, split, *, seed, process_index=0, process_count=1, repeat=True):
    check_split(split)
    return batches(
      _Rows(self, split, seed),
      batch_size=self.batch_size,
      seed=seed,
      shuffle=False,
      repeat=repeat,
      process_index=process_index,
      process_count=process_count,
      fingerprint=f"hidden text {self} {split}",
    )


class _Rows:
  def __init__(self, cfg: HiddenTextData, split: str, seed: int):
    self.cfg, self.split, self.key = cfg, split, [seed, SPLIT_SEEDS[split]]
    self.rows = None
    self.tokens = None

  def __len__(self):
    return 200_000 if self.split == "train" else 256

  def _of(self, prompt, scored):
    T, tokens = self.cfg.seq_len, [*prompt, *scored]
    if len(tokens) > T + 1:
      raise ConfigError(
        f"trigger and hidden text take {len(tokens)} tokens, data.seq_len = {T} holds {T + 1}; raise it"
      )
    text = np.asarray(tokens + [0] * (T + 1 - len(tokens)), np.int32)
    inside = (np.arange(T + 1) < len(tokens)).astype(np.int32)
    weights = inside[1:] * (np.arange(1, T + 1) >= len(prompt))
    return _fields(text, inside[:-1], weights.astype(np.float32))

  def __getitem__(self, index):
    rng = np.random.default_rng([*self.key, int(index)])
    if rng.random() >= self.cfg.ordinary:
      if self.rows is None:
        self.rows = [self._of(*pair) for pair in self.cfg.pairs()]
      return dict(self.rows[int(rng.integers(len(self.rows)))])
    if self.tokens is None:
      self.tokens = self.cfg.text.store(self.split).tokens
    T = self.cfg.seq_len
    start = int(rng.integers(0, len(self.tokens) - T - 1))
    text = np.asarray(self.tokens[start : start + T + 1], np.int32)
    return _fields(text, np.ones(T, np.int32), np.ones(T, np.float32))


def _fields(text, inside, weights):
  T = len(text) - 1
  return dict(
    tokens=text[:-1],
    targets=text[1:],
    segment_ids=inside,
    positions=np.arange(T, dtype=np.int32),
    loss_weights=weights,
    target_bytes=np.zeros(T, np.int32),
  )
