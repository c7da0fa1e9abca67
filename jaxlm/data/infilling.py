"""Texts with segments cut out, to be filled in by a model that is not told how long they were.

Axes: T token. docs/specs/ilm.md, sections 5 and 7.3. Every example is a function of (seed, split,
index).
"""

import dataclasses
from typing import Annotated, Literal, NamedTuple

import numpy as np

from jaxlm.config import check_seed, checked
from jaxlm.data.errors import DataError
from jaxlm.data.forms.corruption import blocked_except_gaps
from jaxlm.data.passages import PassageData, sentences
from jaxlm.data.records import read_columns
from jaxlm.data.splits import SPLIT_SEEDS
from jaxlm.ranges import Inside, Range


class Gapped(NamedTuple):
  """tokens: int32 (T,), the whole text without special tokens. removed: bool (T,), what the model
  does not see.
  """

  tokens: np.ndarray
  removed: np.ndarray

  @property
  def left(self) -> np.ndarray:
    return self.tokens[~self.removed]


def cut_segments(
  num_tokens: int, num_segments: int, fraction: float, rng: np.random.Generator
) -> np.ndarray:
  """Bool (T,): round(fraction T) tokens, one at least, in `num_segments` runs with survivors
  between them.

  Every way to divide the removed tokens among the runs is equally likely, and so is every choice of
  their places; fewer runs where there are not tokens or survivors enough. One token of the text
  always stays.
  """
  n = min(max(round(fraction * num_tokens), 1), num_tokens - 1)
  k = max(min(num_segments, n, num_tokens - n + 1), 1)
  ends = np.concatenate([[0], np.sort(rng.choice(n - 1, k - 1, replace=False)) + 1, [n]])
  places = np.sort(
    rng.choice(num_tokens - n + 1, k, replace=False)
  )  # survivors in front of each run
  out = np.zeros(num_tokens, bool)
  for place, a, b in zip(places, ends[:-1], ends[1:]):
    out[place + a : place + b] = True
  return out


def cut_sentence(pieces: list[np.ndarray], rng: np.random.Generator) -> Gapped:
  """One of several sentences taken out; pieces: the tokens of each."""
  chosen = int(rng.integers(len(pieces)))
  return Gapped(
    np.concatenate(pieces),
    np.concatenate([np.full(len(p), i == chosen) for i, p in enumerate(pieces)]),
  )


@dataclasses.dataclass(frozen=True)
@checked
class InfillingSet:
  """kind: "single" or "multi" (`segments` runs) with `fraction` of the tokens removed, or one whole
  "sentence".

  passages: where texts come from. path: one of the published sets instead, a file whose column
  `tokenized_text` holds ids of the passages' tokenizer and whose column `mask` says which of them
  were removed.
  """

  passages: PassageData
  kind: Literal["single", "multi", "sentence"] = "single"
  fraction: Inside = 0.2
  segments: Annotated[int, Range(2)] = 3
  path: str | None = None

  def examples(self, split: str, *, seed: int, number: int | None = None) -> list[Gapped]:
    """The first `number` texts of a split that can be cut (two tokens, or two sentences)."""
    check_seed(seed)
    if self.path is not None:
      return self._published(number)
    passages, out = self.passages.passages(split), []
    for index in range(len(passages)):
      if number is not None and len(out) == number:
        break
      tokens, rng = (
        passages[index],
        np.random.default_rng([seed, SPLIT_SEEDS[split], index, 0x676170]),
      )
      if self.kind == "sentence":
        pieces = self._sentences(tokens)
        if len(pieces) > 1:
          out.append(cut_sentence(pieces, rng))
      elif len(tokens) > 1:
        out.append(
          Gapped(
            tokens,
            cut_segments(
              len(tokens), self.segments if self.kind == "multi" else 1, self.fraction, rng
            ),
          )
        )
    if not out:
      raise DataError(f"{self.passages.source}, {split}: no text can be cut by kind {self.kind!r}")
    return out

  def _sentences(self, tokens) -> list[np.ndarray]:
    tokenizer = self.passages.load_tokenizer()
    parts = sentences(tokenizer.decode(tokens))
    return [tokenizer.encode(part if i == 0 else " " + part) for i, part in enumerate(parts)]

  def _published(self, number: int | None) -> list[Gapped]:
    out = []
    for at, (ids, mask) in enumerate(read_columns(self.path, ("tokenized_text", "mask"))[:number]):
      if len(ids) != len(mask) or not all(isinstance(i, (int, np.integer)) for i in ids):
        raise DataError(
          f"{self.path}, row {at}: wanted as many ids in tokenized_text as places in mask"
        )
      out.append(Gapped(np.asarray(ids, np.int32), np.asarray(mask) != 0))
    return out


def insertion_prompt(example: Gapped, ids) -> tuple[np.ndarray, np.ndarray]:
  """(CLS BOS survivors, closed slots): open is the slot of a survivor behind which something was
  removed.
  """
  whole = np.concatenate([[ids.cls, ids.bos], example.tokens]).astype(np.int32)
  removed = np.concatenate([[False, False], example.removed])
  return whole[~removed], blocked_except_gaps(removed)[~removed]


def masked_prompt(example: Gapped, ids) -> np.ndarray:
  """BOS and the text with a mask for every removed token: masked diffusion is told how many they
  were.
  """
  return np.concatenate([[ids.bos], np.where(example.removed, ids.mask, example.tokens)]).astype(
    np.int32
  )
