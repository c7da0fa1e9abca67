"""`data.kind = "zebra"`: zebra puzzles, generated here or read from the original data, as prefix
and answer.

Axes: T position. docs/specs/ilm.md, section 7.2: the vocabulary and the answer's triples (house,
attribute, value) are the release's. How the tokens of a clue follow each other is ours, because
only the words are known:

  KIND LHS operand [RHS operand [operand]] CLUE_END,   operand: `c` attribute value, or `n` house
"""

import dataclasses
from typing import Literal

import numpy as np

from jaxlm.config import ConfigError, check_seed, checked
from jaxlm.data.digests import file_digest
from jaxlm.data.errors import DataError
from jaxlm.data.forms import TaskForm, check_constraint
from jaxlm.data.records import read_columns
from jaxlm.data.special_tokens import SpecialTokens
from jaxlm.data.splits import SPLIT_SEEDS, check_split
from jaxlm.data.tasks.base import Problem, TaskData
from jaxlm.data.tasks.zebra_puzzles import HOUSE, Clue, Puzzle, generate, solve
from jaxlm.paths import expand
from jaxlm.ranges import Count

WORDS = (
  "PAD",
  "CLS",
  "MASK",
  "EOS",
  "BOS",
  "SEP",
  "UNK",
  "0",
  "1",
  "2",
  "3",
  "4",
  "5",
  "nbr",
  "left-of",
  "inbetween",
  "immediate-left",
  "ends",
  "!=",
  "=",
  "c",
  "n",
  "CLUE_END",
  "RHS",
  "LHS",
)
IDS = {word: i for i, word in enumerate(WORDS)}
MOST = 6  # digits


#: The first seven words, in the release's order.
SPECIAL_TOKENS = SpecialTokens.after(0, ("pad", "cls", "mask", "eos", "bos", "separator", "unk"))


def encode_clue(clue: Clue) -> list[str]:
  def operand(a, b):
    return ["n", str(b)] if a == HOUSE else ["c", str(a), str(b)]

  first, *others = (operand(*o) for o in clue.operands)
  return [clue.kind, "LHS", *first, *(["RHS", *sum(others, [])] if others else []), "CLUE_END"]


def decode_clues(words) -> list[Clue]:
  """The inverse of `encode_clue` on a run of clues."""
  clues, kind, operands, words = [], None, [], iter(words)
  for word in words:
    if word == "c":
      operands.append((int(next(words)), int(next(words))))
    elif word == "n":
      operands.append((HOUSE, int(next(words))))
    elif word == "CLUE_END":
      clues.append(Clue(kind, tuple(operands)))
      operands = []
    elif word not in ("LHS", "RHS"):
      kind = word
  return clues


def encode(puzzle: Puzzle, order: str = "sorted") -> tuple[list[int], list[int]]:
  """(question, answer) as ids. order: of the answer's triples, by house and attribute, or as the
  solver settles them.
  """
  question = [IDS[w] for clue in puzzle.clues for w in encode_clue(clue)]
  num_attributes, num_houses = puzzle.values_AH.shape
  if order == "sorted":
    triples = [
      (h, a, int(puzzle.values_AH[a, h])) for h in range(num_houses) for a in range(num_attributes)
    ]
  else:
    triples = [(h, a, v) for (a, v), h in solve(puzzle.clues, num_houses, num_attributes)]
  return question, [IDS[str(x)] for triple in triples for x in triple]


@dataclasses.dataclass(frozen=True)
@checked
class ZebraData(TaskData):
  """houses, attributes: of generated puzzles, at most 6. rows, eval_rows: puzzles of the training
  and of each other split.
  order: of the answer's triples; "solver" is the first of the two original data sets, "sorted" the
  second.

  path: the original data instead, a file per split ({split}: train, validation, test) with two
  columns of words between blanks, clues and answer, named by `columns`. constraint: as in
  `forms.corrupted`.
  """

  batch_size: Count
  form: TaskForm = "insertion"
  houses: Count = 3
  attributes: Count = 3
  rows: Count = 50_000
  eval_rows: Count = 1_000
  order: Literal["sorted", "solver"] = "sorted"
  seq_len: Count = 460
  path: str | None = None
  columns: tuple[str, str] = ("clues", "answer")
  constraint: bool = dataclasses.field(
    default=False, repr=False
  )  # not in the repr: it moves no position

  def __post_init__(self):
    check_constraint(self.constraint, self.form)
    for name, least in (("houses", 2), ("attributes", 1)):
      if not least <= getattr(self, name) <= MOST:
        raise ConfigError(
          f"data.{name} = {getattr(self, name)}: the vocabulary has the digits 0 to 5; wanted {least} to {MOST}"
        )
    if self.path is not None and "{split}" not in self.path:
      raise ConfigError(
        f"data.path = {self.path!r} names one file for all splits; put {{split}} where they differ"
      )

  @property
  def special_tokens(self) -> SpecialTokens:
    return SPECIAL_TOKENS

  @property
  def vocab_size(self) -> int:
    return len(WORDS)

  def num_rows(self, split: str) -> int:
    return self.rows if split == "train" else self.eval_rows

  def random_access(self, split: str, seed: int) -> "Puzzles":
    check_split(split)
    check_seed(seed)
    return Puzzles(self, split, seed)

  @property
  def longest_answer(self) -> int:
    return 3 * MOST**2

  def fingerprint(self, split: str) -> str:
    """Of a file, its content too."""
    return f"zebra {self}" + (
      "" if self.path is None else f" {file_digest(expand(self.path.format(split=split)))}"
    )


class Puzzles:
  """Encoded puzzles by index, a function of (seed, split, index); made when first read and kept."""

  def __init__(self, cfg: ZebraData, split: str, seed: int):
    self.cfg, self.split, self.seed, self._kept = cfg, split, seed, {}
    self._read = (
      None if cfg.path is None else read_original(cfg.path.format(split=split), cfg.columns)
    )

  def __len__(self) -> int:
    return self.cfg.num_rows(self.split) if self._read is None else len(self._read)

  def __getitem__(self, index: int) -> Problem:
    if self._read is not None:
      return Problem(*self._read[int(index)])
    if index not in self._kept:
      cfg = self.cfg
      for attempt in range(100):  # a page of clues may be too long for the row
        rng = np.random.default_rng([self.seed, SPLIT_SEEDS[self.split], int(index), attempt])
        found = encode(generate(rng, cfg.houses, cfg.attributes), cfg.order)
        if cfg.layout.length(*map(len, found)) <= cfg.seq_len:
          break
      else:
        raise DataError(
          f"data.seq_len = {cfg.seq_len} holds none of 100 puzzles of {cfg.houses} houses and "
          f"{cfg.attributes} attributes; raise it, or make the puzzles smaller"
        )
      self._kept[index] = Problem(*found)
    return self._kept[index]


def read_original(path: str, columns: tuple[str, str]) -> list[tuple[list[int], list[int]]]:
  """(question, answer) ids of the published files; a word that the vocabulary lacks is refused."""

  def ids(text, at):
    unknown = [w for w in text.split() if w not in IDS]
    if unknown:
      raise DataError(
        f"{path}, row {at}: {unknown[0]!r} is no word of the vocabulary ({' '.join(WORDS[7:])})"
      )
    return [IDS[w] for w in text.split()]

  return [
    tuple(ids(text, at) for text in texts) for at, texts in enumerate(read_columns(path, columns))
  ]
