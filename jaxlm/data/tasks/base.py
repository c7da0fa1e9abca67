"""Data whose rows are problems with an answer, in any of the forms.

A task says what its problems are; `jaxlm.data.forms` says how a row is laid out; both meet here.
Axes: T position.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import grain
import numpy as np

from jaxlm.config import check_seed
from jaxlm.data.base import FramedDataConfig
from jaxlm.data.errors import DataError
from jaxlm.data.forms import LAYOUTS, Layout
from jaxlm.data.pipeline import batches, seeded
from jaxlm.data.splits import SPLIT_SEEDS, check_split


class Problem(NamedTuple):
  """Token ids without special tokens."""

  question: Sequence[int]
  answer: Sequence[int]


class TaskData(FramedDataConfig):
  """Base of tasks. A subclass is a frozen dataclass with `batch_size`, `seq_len`, `form` (of
  `jaxlm.data.forms.TaskForm`), `vocab_size` and `special_tokens`, and gives `random_access`,
  `longest_answer` and `fingerprint`.

  sequence_seeds: every row has a seed of its own; a task with a field of that name has the choice.
  """

  sequence_seeds = False

  def random_access(self, split: str, seed: int) -> Sequence[Problem]:
    """The problems of a split by index, each a function of (seed, split, index)."""
    raise NotImplementedError(f"{type(self).__name__} makes no problems")

  @property
  def longest_answer(self) -> int:
    """Tokens of the longest answer."""
    raise NotImplementedError(f"{type(self).__name__} does not say how long its answers are")

  def fingerprint(self, split: str) -> str:
    """What a saved position depends on."""
    raise NotImplementedError(f"{type(self).__name__} has no fingerprint")

  def score(self, problem: Problem, answer: Sequence[int]) -> float:
    """How good an answer is, 0 to 1. As it stands: whether it is the problem's."""
    return float(np.array_equal(np.asarray(answer), np.asarray(problem.answer)))

  def worse_answer(self, problem: Problem, rng: np.random.Generator) -> list[int]:
    """An answer of a lower score, for pairs. As it stands: one token of the right one is another
    of its tokens, or of the question's.
    """
    answer = [int(token) for token in problem.answer]
    known = sorted({*answer, *map(int, problem.question)})
    place = int(rng.integers(len(answer)))
    others = [token for token in known if token != answer[place]]
    if not others:
      raise DataError(f"{type(self).__name__}: a problem of one token has no worse answer")
    return [*answer[:place], int(rng.choice(others)), *answer[place + 1 :]]

  @property
  def layout(self) -> Layout:
    return LAYOUTS[self.form]

  @property
  def rows_per_group(self) -> int:
    return self.layout.rows_per_group

  def check(self, cfg) -> None:
    """Refuses a form whose frame has a token that the task's vocabulary lacks."""
    frame = {"cls": self.layout.begins_with_cls, "eos": self.layout.ends_with_eos}
    names = tuple(name for name, needed in frame.items() if needed)
    self.special_tokens.require(names, f"data.form = {self.form!r}")

  def problems(
    self, split: str, *, seed: int, number: int | None = None
  ) -> list[tuple[np.ndarray, np.ndarray]]:
    """(prompt up to BOS, answer without the end) of the first `number` problems of a split, as this
    form lays them out.
    """
    check_split(split)
    check_seed(seed)
    found = self.random_access(split, seed)
    return [
      (self.layout.prompt(question, self.special_tokens), np.asarray(answer, np.int32))
      for question, answer in map(found.__getitem__, range(min(len(found), number or len(found))))
    ]

  def build(
    self, split, *, seed, process_index=0, process_count=1, repeat=True
  ) -> grain.IterDataset:
    check_split(split)
    check_seed(seed)
    transform = self._corrupt if self.layout.corrupts else None
    return batches(
      Rows(self, split, seed),
      batch_size=self.batch_size,
      seed=seed,
      shuffle=split == "train",
      repeat=repeat,
      process_index=process_index,
      process_count=process_count,
      transform=functools.partial(_with_seeds, transform) if self.sequence_seeds else transform,
      fingerprint=self.fingerprint(split),
      rows_per_group=self.rows_per_group,
    )

  def _corrupt(self, row, rng):
    """Corruption of one row, drawn anew in every epoch."""
    return self.layout.corrupted(
      row,
      rng,
      seq_len=self.seq_len,
      longest_answer=self.longest_answer,
      ids=self.special_tokens,
      constraint=self.constraint,
    )


def _with_seeds(transform, row, rng):
  return seeded(row if transform is None else transform(row, rng), rng)


class Rows:
  """Problems as rows of one form, by index. Of pairs, row 2i is the answer of problem i and row
  2i + 1 a worse one.
  """

  def __init__(self, cfg: TaskData, split: str, seed: int):
    self.cfg, self.split, self.seed = cfg, split, seed
    self.problems = cfg.random_access(split, seed)

  def __len__(self) -> int:
    return len(self.problems) * self.cfg.rows_per_group

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    cfg, (at, worse) = self.cfg, divmod(int(index), self.cfg.rows_per_group)
    problem = self.problems[at]
    question, answer = problem
    if worse:
      rng = np.random.default_rng([self.seed, SPLIT_SEEDS[self.split], at, 0x776F7273])
      answer = cfg.worse_answer(problem, rng)
    if cfg.layout.length(len(question), len(answer)) > cfg.seq_len:
      raise DataError(
        f"problem {at} has {len(question)} + {len(answer)} tokens, too many for data.seq_len = "
        f"{cfg.seq_len}"
      )
    tokens, types = cfg.layout.frame(question, answer, cfg.special_tokens)
    return cfg.layout.row(
      tokens, types, seq_len=cfg.seq_len, pad=cfg.special_tokens.pad, pad_left=True
    )
