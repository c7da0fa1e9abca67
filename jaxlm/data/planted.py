"""Tasks of word-like tokens whose relevant tokens are known: a style switched by cue words, and the
recall of a value by its key.

Axes: T time, P tokens of the prompt.
"""

import dataclasses
from typing import ClassVar

import numpy as np

from jaxlm.config import ConfigError, checked
from jaxlm.data.errors import DataError
from jaxlm.data.made_rows import MadeRows, row_rng, text_row
from jaxlm.ranges import Count, Fraction

MASK, START, ASK = (
  0,
  1,
  2,
)  # the first ids of both tasks: stands for a removed token; <s>; ends a prompt


class Planted(MadeRows):
  """Base: rows of `draw`, with the loss on the answer. `draw(rng)` gives {"prompt", "answer", ...}."""

  name: ClassVar[str] = "planted"

  rows = 256

  def draw(self, rng: np.random.Generator) -> dict:
    raise NotImplementedError

  def row_maker(self):
    def make(rng):
      drawn = self.draw(rng)
      row = text_row(np.concatenate([drawn["prompt"], drawn["answer"]]))
      row["loss_weights"][: len(drawn["prompt"]) - 1] = 0.0
      return row

    return make

  def examples(self, split: str, seed: int, count: int) -> dict[str, np.ndarray]:
    """The first rows of a split as whole arrays, with what was planted."""
    drawn = [self.draw(row_rng(seed, split, i)) for i in range(count)]
    return {name: np.stack([row[name] for row in drawn]) for name in drawn[0]}


@dataclasses.dataclass(frozen=True)
@checked
class StylesData(Planted):
  """<s>, fillers with one noun and perhaps a cue word at random places, ?; then an answer of three words:
  an opener, the noun, a closer, both of the style that the cue asks for.

  Styles are formal (0) and blunt (1), each with `num_cues` cues and `num_words` openers and closers.
  cued: share of prompts that have a cue; without one the style is drawn. Ids: 3 special tokens, then
  nouns, fillers, and of each style its cues, openers and closers.
  """

  batch_size: Count
  prompt_len: Count = 10
  num_nouns: Count = 12
  num_fillers: Count = 12
  num_cues: Count = 3
  num_words: Count = 4
  cued: Fraction = 0.8
  rows: Count = 256

  def __post_init__(self):
    if self.prompt_len < 4:
      raise ConfigError(
        f"data.prompt_len = {self.prompt_len}: <s>, a noun, a cue and ? are four tokens"
      )

  @property
  def seq_len(self) -> int:
    return self.prompt_len + 2

  @property
  def vocab_size(self) -> int:
    return 3 + self.num_nouns + self.num_fillers + 2 * (self.num_cues + 2 * self.num_words)

  @property
  def nouns(self) -> np.ndarray:
    return 3 + np.arange(self.num_nouns)

  @property
  def fillers(self) -> np.ndarray:
    return self.nouns[-1] + 1 + np.arange(self.num_fillers)

  def words(self, style: int) -> dict[str, np.ndarray]:
    """{"cues", "openers", "closers"}: ids of a style."""
    first = self.fillers[-1] + 1 + style * (self.num_cues + 2 * self.num_words)
    cues = first + np.arange(self.num_cues)
    openers = cues[-1] + 1 + np.arange(self.num_words)
    return {
      "cues": cues,
      "openers": openers,
      "closers": openers[-1] + 1 + np.arange(self.num_words),
    }

  def draw(
    self, rng: np.random.Generator, style: int | None = None, cued: bool | None = None
  ) -> dict:
    """prompt (P,), answer (3,), style, cue: bool (P,), where the cue stands."""
    style = int(rng.integers(2)) if style is None else style
    cued = bool(rng.random() < self.cued) if cued is None else cued
    words = self.words(style)
    prompt = rng.choice(self.fillers, self.prompt_len)
    prompt[0], prompt[-1] = START, ASK
    at_noun, at_cue = rng.choice(np.arange(1, self.prompt_len - 1), 2, replace=False)
    prompt[at_noun] = rng.choice(self.nouns)
    cue = np.zeros(self.prompt_len, bool)
    if cued:
      prompt[at_cue], cue[at_cue] = rng.choice(words["cues"]), True
    answer = [rng.choice(words["openers"]), prompt[at_noun], rng.choice(words["closers"])]
    return dict(
      prompt=prompt.astype(np.int32), answer=np.array(answer, np.int32), style=style, cue=cue
    )

  def parse(self, prompt, answer) -> int | None:
    """The style of an answer of the grammar, None of any other."""
    nouns = [t for t in prompt if t in self.nouns]
    for style in (0, 1):
      words = self.words(style)
      opened, closed = answer[0] in words["openers"], answer[2] in words["closers"]
      if opened and closed and len(nouns) == 1 and answer[1] == nouns[0]:
        return style
    return None


@dataclasses.dataclass(frozen=True)
@checked
class RecallData(Planted):
  """<s> k1 v1 k2 v2 .. ? ki -> vi: `num_pairs` pairs of different keys, of which one is asked for.

  The relevant tokens are ki and vi among the pairs, and the ki that is asked for. A row of training
  or validation goes on: ? kj vj, `num_asked` questions in all, of pairs drawn anew each time; the loss is
  on every answer. One answer a row teaches little: a small model stays at "one of the values shown".
  """

  batch_size: Count
  num_pairs: Count = 4
  num_asked: Count = 1
  num_keys: Count = 12
  num_values: Count = 12
  rows: Count = 256

  def __post_init__(self):
    if self.num_pairs > self.num_keys:
      raise ConfigError(
        f"data.num_pairs = {self.num_pairs} of num_keys = {self.num_keys}: keys of a row differ; take "
        "more keys"
      )

  @property
  def seq_len(self) -> int:
    return 2 * self.num_pairs + 3 * self.num_asked

  @property
  def vocab_size(self) -> int:
    return 3 + self.num_keys + self.num_values

  def draw(self, rng: np.random.Generator) -> dict:
    """prompt (T,), answer (1,), relevant: bool (T,)."""
    keys = 3 + rng.choice(self.num_keys, self.num_pairs, replace=False)
    values = 3 + self.num_keys + rng.integers(0, self.num_values, self.num_pairs)
    asked = int(rng.integers(self.num_pairs))
    pairs = np.stack([keys, values], axis=1).reshape(-1)
    prompt = np.concatenate([[START], pairs, [ASK, keys[asked]]]).astype(np.int32)
    relevant = np.zeros(len(prompt), bool)
    relevant[[1 + 2 * asked, 2 + 2 * asked, len(prompt) - 1]] = True
    return dict(prompt=prompt, answer=values[asked : asked + 1].astype(np.int32), relevant=relevant)

  def row_maker(self):
    def make(rng):
      drawn, text = self.draw(rng), []
      pairs = drawn["prompt"][1 : 1 + 2 * self.num_pairs].reshape(-1, 2)
      for key, value in pairs[rng.integers(self.num_pairs, size=self.num_asked - 1)]:
        text += [ASK, key, value]
      first = len(drawn["prompt"]) - 1  # the input whose target is the first answer
      row = text_row(np.concatenate([drawn["prompt"], drawn["answer"], text]).astype(np.int32))
      row["loss_weights"] = np.float32(np.arange(self.seq_len) % 3 == first % 3)
      row["loss_weights"][:first] = 0.0
      return row

    return make


def require_planted(mask_BT, what: str) -> None:
  """DataError unless every row has a planted token. what: the noun for the sentence."""
  without = np.flatnonzero(~np.asarray(mask_BT, bool).any(axis=1))
  if len(without):
    raise DataError(
      f"row {without[0]} holds no planted {what}, so precision has nothing to find; draw rows with one"
    )
