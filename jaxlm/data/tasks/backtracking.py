"""`data.kind = "backtracking"`: search traces with a token that goes back, for sampling by schedules.

The question says, for every level of a tree in mixed order, which branch leads on. The answer is a trace: a
branch per level; `back` takes the last branch away. Traces of training take a wrong branch with probability
`slips` and go back from it, and go back from a right one with probability `doubts`: a model learns both, so
its own rate of `back` is not the best one. An answer is right if the branches that are left are the path.
Ids: levels, branches, BACK, then PAD, BOS, EOS.
"""

import dataclasses

import numpy as np

from jaxlm.config import ConfigError, checked
from jaxlm.data.forms import Form
from jaxlm.data.special_tokens import SpecialTokens
from jaxlm.data.splits import SPLIT_SEEDS
from jaxlm.data.tasks.base import Problem, TaskData
from jaxlm.ranges import Count, Fraction


@dataclasses.dataclass(frozen=True)
@checked
class BacktrackingData(TaskData):
  """levels: of the tree. branches: at each. longest_trace: tokens of an answer in training at most."""

  batch_size: Count
  seq_len: Count = 48
  form: Form = "causal"
  levels: Count = 6
  branches: Count = 4
  slips: Fraction = 0.3
  doubts: Fraction = 0.15
  longest_trace: Count = 28

  def __post_init__(self):
    if self.seq_len < 2 * self.levels + self.longest_trace + 2:
      raise ConfigError(
        f"data.seq_len = {self.seq_len}: wanted {2 * self.levels + self.longest_trace + 2} or more"
      )
    if self.longest_trace < self.levels:
      raise ConfigError(f"data.longest_trace = {self.longest_trace} holds no path of {self.levels}")

  @property
  def back(self) -> int:
    return self.levels + self.branches

  @property
  def vocab_size(self):
    return self.back + 4

  @property
  def special_tokens(self):
    return SpecialTokens.after(self.back + 1, ("pad", "bos", "eos"))

  @property
  def longest_answer(self):
    return self.longest_trace

  def fingerprint(self, split):
    return f"backtracking {self} {split}"

  def random_access(self, split, seed):
    return _Traces(self, split, seed)

  def path(self, question) -> list[int]:
    """The branch of each level, as ids."""
    pairs = list(zip(question[::2], question[1::2]))
    return [int(branch) for _, branch in sorted(pairs)]

  def score(self, problem, answer):
    left: list[int] = []
    for token in map(int, answer):
      if token == self.back:
        left = left[:-1]
      else:
        left.append(token)
    return float(left == self.path(problem.question))


class _Traces:
  def __init__(self, cfg: BacktrackingData, split: str, seed: int):
    self.cfg, self.split, self.key = cfg, split, [seed, SPLIT_SEEDS[split]]

  def __len__(self):
    return 500_000 if self.split == "train" else 2048

  def __getitem__(self, index):
    cfg, rng = self.cfg, np.random.default_rng([*self.key, int(index)])
    path = cfg.levels + rng.integers(0, cfg.branches, cfg.levels)
    question = [x for l in rng.permutation(cfg.levels) for x in (int(l), int(path[l]))]
    trace: list[int] = []
    for level, right in enumerate(map(int, path)):
      # Every detour takes two tokens, and the rest of the path must fit.
      while len(trace) + cfg.levels - level + 2 <= cfg.longest_trace:
        if rng.random() < cfg.slips:
          wrong = cfg.levels + int(rng.integers(cfg.branches - 1))
          trace += [wrong + (wrong >= right), cfg.back]
        elif rng.random() < cfg.doubts:
          trace += [right, cfg.back]
        else:
          break
      trace.append(right)
    return Problem(question, trace)
