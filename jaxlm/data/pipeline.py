"""Rows to batches: shuffled, repeated, shared out to hosts, and resumed by one number.

Global batch n is rows nB .. nB+B-1 of the (shuffled, repeated) stream, a pure function of (seed,
n). Host h of P holds rows h, h + P, h + 2P, .. of each, so the hosts' rows together are the single
host's. The iterator's state is n, the number of batches read: it does not know how many hosts or
workers there were, and seeking costs nothing.
"""

import functools
import sys
from collections.abc import Callable

import grain
import numpy as np

from jaxlm.config import check_seed
from jaxlm.data.errors import DataError
from jaxlm.data.rows import Filled


def batches(
  rows,
  *,
  batch_size: int,
  seed: int = 0,
  shuffle: bool = True,
  repeat: bool = True,
  process_index: int = 0,
  process_count: int = 1,
  num_workers: int = 0,
  fingerprint: str = "",
  limit: int | None = None,
  transform: Callable[[dict, np.random.Generator], dict] | None = None,
  rows_per_group: int = 1,
) -> "Batches":
  """Host-local batches, (batch_size / process_count, ..) per field, of any random-access source of
  equal-shaped rows.

  repeat: for ever, whole batches, a new order each epoch; otherwise once, the last batch filled up
  with rows of weight 0, so that all hosts have the same number. num_workers: processes that read
  ahead; a single pass is read by threads, since processes take longer to start. transform: (row, rng) -> row, rng a
  function of seed and place in the stream (corruption, masking). limit: batches at most.
  fingerprint: what a saved position may be resumed on. rows_per_group: neighbouring rows of the
  source that stay together, whatever the order and the number of hosts.
  """
  check_sizes(batch_size, process_index, process_count, rows_per_group)
  check_seed(seed)
  if num_workers < 0:
    raise DataError(f"data.num_workers = {num_workers}: wanted 0 (threads of this process) or more")
  rows = rows if repeat else Filled(rows, batch_size)
  if rows_per_group > 1:
    rows, transform = Groups(rows, rows_per_group), of_each_row(transform)
  data = grain.MapDataset.source(rows).seed(seed)
  if shuffle:
    data = data.shuffle()
  if repeat:
    data = data.repeat()
  if transform is not None:
    data = data.random_map(transform)
  stream, groups = data, batch_size // rows_per_group // process_count
  data = data[process_index::process_count].batch(groups, drop_remainder=True)
  if rows_per_group > 1:
    data = data.map(ungrouped)
  stamp = {"batch_size": batch_size, "seed": seed, "data": fingerprint}
  return Batches(
    data if limit is None else data[:limit], stamp, num_workers if repeat else 0, stream
  )


class Groups:
  """Groups of neighbouring rows of a source, each field (rows of the group, ...)."""

  def __init__(self, rows, rows_per_group: int):
    self.rows, self.size = rows, rows_per_group

  def __len__(self) -> int:
    return len(self.rows) // self.size

  def __getitem__(self, index: int) -> dict:
    return stacked([self.rows[int(index) * self.size + i] for i in range(self.size)])


def of_each_row(transform):
  """The transform of a row as one of a group; None stays None."""
  if transform is None:
    return None
  return functools.partial(_transformed, transform)


def _transformed(transform, group: dict, rng: np.random.Generator) -> dict:
  size = len(next(iter(group.values())))
  return stacked([transform({k: v[i] for k, v in group.items()}, rng) for i in range(size)])


def stacked(rows: list[dict]) -> dict:
  """Rows as one mapping of arrays with a leading axis."""
  return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def ungrouped(batch: dict) -> dict:
  """(groups, rows of a group, ...) as (rows, ...)."""
  return {name: x.reshape(-1, *x.shape[2:]) for name, x in batch.items()}


def seeded(row: dict, rng: np.random.Generator) -> dict:
  """The row with a seed of its own, whatever the batch size and the number of hosts."""
  return row | {"sequence_seeds": rng.integers(0, 2**32, size=2, dtype=np.uint32)}


def example(dataset: grain.IterDataset) -> dict:
  """A batch of a data set, to see its shapes."""
  return dataset.example() if isinstance(dataset, Batches) else next(iter(dataset))


def check_sizes(
  batch_size: int, process_index: int = 0, process_count: int = 1, rows_per_group: int = 1
) -> None:
  if batch_size < 1:
    raise DataError(f"data.batch_size = {batch_size}: wanted 1 or more sequences")
  if not 0 <= process_index < process_count:
    raise DataError(f"process_index = {process_index} is not below process_count = {process_count}")
  ways = process_count * rows_per_group
  if batch_size % ways:
    up = -(-batch_size // ways) * ways
    groups = f" x {rows_per_group} rows that belong together" if rows_per_group > 1 else ""
    raise DataError(
      f"data.batch_size = {batch_size} is not divisible by the {process_count} hosts{groups}; set it to {up}"
    )


class Batches(grain.IterDataset):
  """The batches of a random-access dataset, in order; `batches` makes it. stream: the rows (or
  groups) of all hosts by index, shuffled, repeated and transformed.
  """

  def __init__(self, data: grain.MapDataset, stamp: dict, num_workers: int, stream=None):
    super().__init__()
    self.data, self.stamp, self.num_workers, self.stream = data, stamp, num_workers, stream

  def __len__(self) -> int:
    """Batches of one pass; sys.maxsize or near it if it repeats."""
    return len(self.data)

  def __iter__(self) -> "BatchIterator":
    return BatchIterator(self)

  def example(self) -> dict:
    """The first batch, read here: no thread or process is started."""
    return self.data[0]

  def start_at(self, step: int) -> grain.MapDataset:
    return self.data[step:] if step else self.data


class BatchIterator(grain.DatasetIterator):
  """State: {'step': batches read, ..what they were read from}; plain JSON."""

  def __init__(self, dataset: Batches):
    super().__init__()
    self._dataset, self._step, self._inner = dataset, 0, None

  def __next__(self):
    if self._inner is None:
      self._inner = self._open()
    batch = next(self._inner)
    self._step += 1
    return batch

  def get_state(self) -> dict:
    return {"step": self._step, **self._dataset.stamp}

  def set_state(self, state: dict) -> None:
    for key, here in self._dataset.stamp.items():
      if state.get(key) != here:
        raise DataError(
          f"the saved position was read with {key} = {state.get(key)!r}, this data has {here!r}: batch "
          f"{state.get('step')} is another one here; resume with the same data, or start a new run"
        )
    self._step = int(state["step"])
    self.close()

  def close(self) -> None:
    if self._inner is not None:
      self._inner.close()
    self._inner = None

  def _open(self):
    data, workers = self._dataset.start_at(self._step), self._dataset.num_workers
    if not workers:
      return iter(data.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)))
    from absl import flags

    if not flags.FLAGS.is_parsed():  # Grain's workers read flags
      flags.FLAGS(sys.argv[:1])
    return iter(
      data.to_iter_dataset(grain.ReadOptions(num_threads=0)).mp_prefetch(
        grain.MultiprocessingOptions(num_workers=workers)
      )
    )
