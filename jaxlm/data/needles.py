"""Synthetic recall over any length: needles in a haystack (RULER's S-NIAH and kin), repeated words,
key-value pairs.

Every row is a function of (seed, split, index): nothing is stored. Tokens are bytes; the haystack
is public-domain prose (the books that come with jaxlm) or one repeated sentence. `loss_weights` are
1 on the answers only, or everywhere.
"""

import dataclasses
import functools
import string
from typing import Annotated, Literal

import grain
import numpy as np

from jaxlm.config import ConfigError, checked
from jaxlm.data.base import DataConfig
from jaxlm.data.mini import mini
from jaxlm.data.pipeline import batches
from jaxlm.data.splits import SPLIT_SEEDS, check_split
from jaxlm.ranges import Count, Fraction, Range

NOISE = (
  b"The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
)
#: RULER's tasks: fields of NeedleData.
RULER = {
  "niah_1": dict(haystack="noise"),
  "niah_2": dict(haystack="prose"),
  "niah_3": dict(haystack="prose", value="hex", value_chars=8),
  "multikey": dict(haystack="prose", num_keys=4),
  "multiquery": dict(haystack="prose", num_keys=4, num_queries=4),
  "multivalue": dict(haystack="prose", values_per_key=4),
}


@dataclasses.dataclass(frozen=True)
@checked
class NeedleData(DataConfig):
  """Rows '... <key> is <value>. ... Now, <key> is <value>.' of exactly seq_len bytes; the last
  values are asked for.

  num_keys: different keys hidden. values_per_key: statements of each. num_queries: keys asked for
  at the end, each with all its values in order of appearance. haystack: 'noise' repeats one
  sentence, 'prose' quotes books.
  key_chars, value_chars: letters of a key, digits (or, value='hex', hexadecimal digits) of a value.
  rows: of one pass. loss_on: 'answer' or 'all' (then the haystack is a language-modelling task as
  well).
  depth: fraction of the haystack before the asked needle, None = anywhere (and then every order of
  the needles).

  RULER's tasks as settings: RULER below.
  """

  seq_len: Count
  batch_size: Count
  num_keys: Count = 1
  values_per_key: Count = 1
  num_queries: Count = 1
  haystack: Literal["noise", "prose"] = "noise"
  key_chars: Count = 4
  value_chars: Count = 4
  value: Literal["digits", "hex"] = "digits"
  loss_on: Literal["answer", "all"] = "answer"
  depth: Fraction | None = None
  rows: Count = 512

  def __post_init__(self):
    if self.num_queries > self.num_keys:
      raise ConfigError(
        f"data.num_queries = {self.num_queries} asks for more keys than num_keys = {self.num_keys}"
      )
    if self.spoken > self.seq_len + 1:
      raise ConfigError(
        f"data.seq_len = {self.seq_len} has no room for its {self.spoken - 1} bytes of needles and questions"
      )

  @property
  def vocab_size(self) -> int:
    return 256

  @property
  def spoken(self) -> int:
    """Bytes of all needles and questions."""
    needle = len(_needle(b"k" * self.key_chars, b"v" * self.value_chars))
    return needle * self.values_per_key * (self.num_keys + self.num_queries)

  def build(
    self, split, *, seed, process_index=0, process_count=1, repeat=True
  ) -> grain.IterDataset:
    check_split(split)
    return batches(
      _Needles(self, split, seed),
      batch_size=self.batch_size,
      seed=seed,
      shuffle=False,
      repeat=repeat,
      process_index=process_index,
      process_count=process_count,
      fingerprint=f"needles {self}",
    )


@dataclasses.dataclass(frozen=True)
@checked
class RepeatedWordsData(DataConfig):
  """Rows of random words, `num_words` different ones of `word_chars` letters in each row: what was
  said once is the only help with saying it again, so the loss at a position tells how far a model
  remembers.

  A word not seen before costs word_chars ln 26 nats, a known one ln num_words in all, so that a
  perfect memory's loss per byte falls with position to about ln(num_words) / (word_chars + 1).
  """

  seq_len: Count
  batch_size: Count
  num_words: Count = 64
  word_chars: Count = 4
  rows: Count = 512

  @property
  def vocab_size(self) -> int:
    return 256

  def build(
    self, split, *, seed, process_index=0, process_count=1, repeat=True
  ) -> grain.IterDataset:
    check_split(split)
    return batches(
      _Words(self, split, seed),
      batch_size=self.batch_size,
      seed=seed,
      shuffle=False,
      repeat=repeat,
      process_index=process_index,
      process_count=process_count,
      fingerprint=f"words {self}",
    )


@dataclasses.dataclass(frozen=True)
@checked
class PairsData(DataConfig):
  """Rows of questions and answers about a table of the row's own: byte num_keys num_values + k asks
  for key k, the byte after it, num_values k + value, answers. Keys come in random order, again and
  again; the loss is on the answers.

  With V = num_values, a key that was not asked before costs ln V nats, a remembered one nothing.
  Whoever remembers p answers stays at (1 - 1/num_keys)^p ln V however long the row is, so that the
  loss by position shows the length of a memory. An answer names its key: one layer can learn to
  recall, where repeated words need two (the head that finds the letter before, and the one that
  finds the same letters), which small models find only after thousands of steps.
  """

  seq_len: Count
  batch_size: Count
  num_keys: Count = 15
  num_values: Annotated[int, Range(2)] = 16
  rows: Count = 512

  def __post_init__(self):
    if self.num_keys * (self.num_values + 1) > 256:
      raise ConfigError(
        f"data.num_keys = {self.num_keys} of {self.num_values} values need {self.num_keys * (self.num_values + 1)} bytes for "
        f"questions and answers, there are 256; take at most {256 // (self.num_values + 1)} keys or fewer num_values"
      )

  @property
  def vocab_size(self) -> int:
    return 256

  def build(
    self, split, *, seed, process_index=0, process_count=1, repeat=True
  ) -> grain.IterDataset:
    check_split(split)
    return batches(
      _Pairs(self, split, seed),
      batch_size=self.batch_size,
      seed=seed,
      shuffle=False,
      repeat=repeat,
      process_index=process_index,
      process_count=process_count,
      fingerprint=f"pairs {self}",
    )


class _Generated:
  """Random access to rows that are made when read.

  A pass over training data is a million rows, then they repeat.
  """

  def __init__(self, cfg, split: str, seed: int):
    self.cfg, self.split, self.seed = cfg, split, seed

  def __len__(self) -> int:
    return 1_000_000 if self.split == "train" else self.cfg.rows

  def rng(self, index: int) -> np.random.Generator:
    return np.random.default_rng([self.seed, SPLIT_SEEDS[self.split], int(index)])


class _Needles(_Generated):
  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    cfg, rng = self.cfg, self.rng(index)
    keys = _distinct(rng, string.ascii_lowercase, cfg.key_chars, cfg.num_keys)
    letters = string.digits if cfg.value == "digits" else string.digits + "abcdef"
    values = [_distinct(rng, letters, cfg.value_chars, cfg.values_per_key) for _ in keys]
    asked = rng.permutation(cfg.num_keys)[: cfg.num_queries]
    pairs = [(k, v) for k in range(cfg.num_keys) for v in range(cfg.values_per_key)]
    room = cfg.seq_len + 1 - cfg.spoken
    hay = _haystack(cfg.haystack, self.split, rng, room)
    order = rng.permutation(len(pairs))
    places = np.sort(rng.integers(0, room + 1, len(pairs)))
    if (
      cfg.depth is not None
    ):  # the first asked needle at the depth, the others stay where they fell
      first = order.tolist().index(pairs.index((asked[0], 0)))
      places[first] = round(cfg.depth * room)
      by_place = np.argsort(places, kind="stable")
      places, order = places[by_place], order[by_place]
    text, at, seen = b"", 0, {int(k): [] for k in asked}
    for place, which in zip(places, order):
      k, v = pairs[which]
      text += hay[at:place] + _needle(keys[k], values[k][v])
      at = int(place)
      if k in seen:
        seen[k].append(values[k][v])
    text += hay[at:]
    answer = np.zeros(cfg.seq_len + 1, bool)
    for k in asked:
      for value in seen[int(k)]:
        sentence = _needle(keys[k], value)
        begin = len(text) + sentence.index(value, len(keys[k]))
        answer[begin : begin + len(value)] = True
        text += sentence
    return _as_row(
      np.frombuffer(text, np.uint8),
      answer if cfg.loss_on == "answer" else np.ones_like(answer),
      answer=answer[1:],
    )


class _Words(_Generated):
  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    cfg, rng = self.cfg, self.rng(index)
    letters = np.frombuffer(string.ascii_lowercase.encode(), np.uint8)
    words = np.concatenate(
      [
        letters[rng.integers(0, 26, (cfg.num_words, cfg.word_chars))],
        np.full((cfg.num_words, 1), ord(" "), np.uint8),
      ],
      1,
    )
    said = rng.integers(0, cfg.num_words, -(-(cfg.seq_len + 1) // (cfg.word_chars + 1)))
    return _as_row(words[said].reshape(-1)[: cfg.seq_len + 1], np.ones(cfg.seq_len + 1, bool))


class _Pairs(_Generated):
  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    cfg, rng = self.cfg, self.rng(index)
    values = rng.integers(0, cfg.num_values, cfg.num_keys)
    asked = rng.integers(0, cfg.num_keys, cfg.seq_len // 2 + 1)
    text = (
      np.stack([cfg.num_keys * cfg.num_values + asked, cfg.num_values * asked + values[asked]], 1)
      .reshape(-1)[: cfg.seq_len + 1]
      .astype(np.uint8)
    )
    return _as_row(text, np.arange(cfg.seq_len + 1) % 2 == 1)


def _needle(key: bytes, value: bytes) -> bytes:
  return b" " + key + b" is " + value + b"."


def _distinct(rng, letters: str, length: int, count: int) -> list[bytes]:
  """`count` different random strings."""
  if len(letters) ** length < count:
    raise ConfigError(
      f"{count} different strings of {length} of {len(letters)} letters do not exist; use longer ones"
    )
  found: dict[bytes, None] = {}
  while len(found) < count:
    found["".join(letters[i] for i in rng.integers(0, len(letters), length)).encode()] = None
  return list(found)


def _haystack(kind: str, split: str, rng, length: int) -> bytes:
  if kind == "noise":
    return (NOISE * (length // len(NOISE) + 1))[:length]
  text = _prose(split)
  start = int(rng.integers(0, len(text)))
  return (text[start:] + text * (length // len(text) + 1))[:length]


@functools.cache
def _prose(split: str) -> bytes:
  """The split's chapters in one line of text."""
  return b" ".join(b" ".join(chapter.split()) for chapter in mini("en")[1][split])


def _as_row(text: np.ndarray, weigh: np.ndarray, **more) -> dict[str, np.ndarray]:
  T = len(text) - 1
  return dict(
    tokens=text[:-1].astype(np.int32),
    targets=text[1:].astype(np.int32),
    segment_ids=np.ones(T, np.int32),
    positions=np.arange(T, dtype=np.int32),
    loss_weights=weigh[1:].astype(np.float32),
    target_bytes=np.ones(T, np.int32),
  ) | {k: v.astype(np.int32) for k, v in more.items()}
