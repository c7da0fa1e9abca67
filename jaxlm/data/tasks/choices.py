"""`data.kind = "choices"`: a list of items in any order, and a question about it.

An item is a key and a value. asked = "key": the question names a key, the answer is its value. asked =
"largest": the question names none, the answer is the largest value. Ids: keys, values, one mark that ends an item, one in front of the question, then PAD, BOS, EOS.
"""

import dataclasses
from typing import Literal

import numpy as np

from jaxlm.config import ConfigError, checked
from jaxlm.data.forms import Form
from jaxlm.data.special_tokens import SpecialTokens
from jaxlm.data.splits import SPLIT_SEEDS
from jaxlm.data.tasks.base import Problem, TaskData
from jaxlm.ranges import Count


@dataclasses.dataclass(frozen=True)
@checked
class ChoicesData(TaskData):
  """num_items: in a list. num_keys, num_values: to draw from; keys of a list are distinct. asked: what
  the question is for, "key" (the value of a key) or "largest" (the largest value of the list)."""

  batch_size: Count
  seq_len: Count = 24
  form: Form = "causal"
  num_items: Count = 4
  num_keys: Count = 16
  num_values: Count = 16
  asked: Literal["key", "largest"] = "key"

  def __post_init__(self):
    if self.num_items > self.num_keys:
      raise ConfigError(
        f"data.num_items = {self.num_items} exceeds num_keys = {self.num_keys}: keys of a list are distinct"
      )
    if self.seq_len < 3 * self.num_items + 4:
      raise ConfigError(f"data.seq_len = {self.seq_len}: wanted {3 * self.num_items + 4} or more")

  @property
  def mark(self) -> int:
    return self.num_keys + self.num_values

  @property
  def vocab_size(self):
    return self.mark + 5

  @property
  def special_tokens(self):
    return SpecialTokens.after(self.mark + 2, ("pad", "bos", "eos"))

  @property
  def longest_answer(self):
    return 1

  def fingerprint(self, split):
    return f"choices {self} {split}"

  def random_access(self, split, seed):
    return _Lists(self, split, seed)

  def items(self, question) -> list[list[int]]:
    """The items of a question, as lists of ids."""
    n = 3 * self.num_items
    return [list(map(int, question[i : i + 3])) for i in range(0, n, 3)]


class _Lists:
  def __init__(self, cfg: ChoicesData, split: str, seed: int):
    self.cfg, self.split, self.key = cfg, split, [seed, SPLIT_SEEDS[split]]

  def __len__(self):
    return 500_000 if self.split == "train" else 1024

  def __getitem__(self, index):
    cfg, rng = self.cfg, np.random.default_rng([*self.key, int(index)])
    keys = rng.choice(cfg.num_keys, cfg.num_items, replace=False)
    values = cfg.num_keys + rng.integers(0, cfg.num_values, cfg.num_items)
    items = [x for k, v in zip(keys, values) for x in (int(k), int(v), cfg.mark)]
    if cfg.asked == "largest":
      return Problem([*items, cfg.mark + 1], [int(values.max())])
    asked = int(rng.integers(cfg.num_items))
    return Problem([*items, cfg.mark + 1, int(keys[asked])], [int(values[asked])])
