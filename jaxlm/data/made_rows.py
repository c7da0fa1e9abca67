"""Data without a corpus: each row is a function of (seed, split, index)."""

from collections.abc import Callable
from typing import ClassVar

import grain
import numpy as np

from jaxlm.data.base import DataConfig
from jaxlm.data.pipeline import batches
from jaxlm.data.splits import SPLIT_SEEDS, check_split

TRAINING_ROWS = 10_000_000  # of one pass, then they repeat

Row = dict[str, np.ndarray]


class MadeRows(DataConfig):
  """Base of such data. A subclass has `name`, which is a part of the fingerprint, the fields `batch_size`
  and `rows` (of one pass of validation or test), and `row_maker`.
  """

  name: ClassVar[str]

  def row_maker(self) -> Callable[[np.random.Generator], Row]:
    """The function that draws a row; what it needs for all rows is made here, once."""
    raise NotImplementedError

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
    return batches(
      _Rows(self, split, seed),
      batch_size=self.batch_size,
      seed=seed,
      shuffle=False,
      repeat=repeat,
      process_index=process_index,
      process_count=process_count,
      fingerprint=f"{self.name} {self}",
    )


def row_rng(seed: int, split: str, index: int) -> np.random.Generator:
  """The generator that a row is drawn from."""
  return np.random.default_rng([seed, SPLIT_SEEDS[split], int(index)])


def text_row(text: np.ndarray) -> dict[str, np.ndarray]:
  """T + 1 symbols, which are no text, as a row of T tokens and their T successors."""
  T = len(text) - 1
  return dict(
    tokens=text[:-1].astype(np.int32),
    targets=text[1:].astype(np.int32),
    segment_ids=np.ones(T, np.int32),
    positions=np.arange(T, dtype=np.int32),
    loss_weights=np.ones(T, np.float32),
    target_bytes=np.zeros(T, np.int32),
  )


class _Rows:
  def __init__(self, cfg: MadeRows, split: str, seed: int):
    self.make, self.split, self.seed = cfg.row_maker(), split, seed
    self.length = TRAINING_ROWS if split == "train" else cfg.rows

  def __len__(self) -> int:
    return self.length

  def __getitem__(self, index: int) -> Row:
    return self.make(row_rng(self.seed, self.split, index))
