"""Rows of a store that may be in a bucket, read by the block: in the corpus's order, or in lanes.

Lanes are the order of shuffled training rows. Row o of every global batch comes from lane o. A lane reads blocks of consecutive windows, each with
one request, in an order of its own within; which block it reads next is drawn from the seed, anew
each epoch, and an epoch is every block once. So a batch holds windows from as many places as it has
rows, a host reads only the blocks of its own rows, memory is a few blocks per row whatever the size
of the corpus, and the global batches do not depend on the number of hosts.
"""

import collections
import concurrent.futures
import functools
import hashlib
import threading

import numpy as np

from jaxlm.data.files import is_url
from jaxlm.data.rows import Windows, row_of

BLOCK_BYTES = 1 << 17  # of tokens
MOST_ROWS = 64
READERS = 16  # requests at a time ahead of use
FOREVER = 1 << 48  # rows of a stream that does not end


class InOrder:
  """The rows of `windows` as they are, read by the block. Each host reads every block: a pass over a
  corpus whose rows are not shuffled costs that.
  """

  KEPT = 8  # blocks

  def __init__(self, windows: Windows):
    self.windows, self.rows = windows, rows_of_block(windows)
    self._start()

  def _start(self):
    self._blocks = functools.lru_cache(self.KEPT)(self._read)

  def __getstate__(self):
    return {"windows": self.windows, "rows": self.rows}

  def __setstate__(self, state):
    self.__dict__.update(state)
    self._start()

  def __len__(self) -> int:
    return len(self.windows)

  def __getitem__(self, index: int):
    piece = self._blocks(int(index) // self.rows)
    return row_of(piece, *self.windows.span(index), self.windows.seq_len)

  def _read(self, block: int):
    start, _ = self.windows.span(block * self.rows)
    _, stop = self.windows.span((block + 1) * self.rows - 1)
    return self.windows.store.piece(start, min(stop, len(self.windows.store)))


def rows_of_block(windows: Windows) -> int:
  itemsize = np.dtype(windows.store.header["dtype"]).itemsize
  return max(1, min(MOST_ROWS, BLOCK_BYTES // (windows.seq_len * itemsize)))


class Lanes:
  """Row s of an endless stream of training rows, a function of s, seed and batch_size alone.

  windows: whole windows of a store that has `piece`. Of the last rows of a split, fewer than a
  block are left out.
  """

  def __init__(self, windows: Windows, batch_size: int, seed: int):
    self.windows, self.batch_size, self.seed = windows, batch_size, seed
    # Small corpora have small blocks: at least four for every lane.
    self.rows = max(1, min(rows_of_block(windows), len(windows) // (4 * batch_size)))
    self.blocks = len(windows) // self.rows
    self._start()

  def _start(self):
    self._kept, self._lock, self._readers = collections.OrderedDict(), threading.Lock(), None

  def __getstate__(self):
    return {
      name: value
      for name, value in self.__dict__.items()
      if name not in ("_kept", "_lock", "_readers")
    }

  def __setstate__(self, state):
    self.__dict__.update(state)
    self._start()

  def __len__(self) -> int:
    return FOREVER

  def __getitem__(self, index: int):
    turn, lane = divmod(int(index), self.batch_size)
    number, place = divmod(turn, self.rows)
    piece, order = self._block(number, lane)
    if place == lane % self.rows and is_url(self.windows.store.folder):
      self._ahead(number + 1, lane)
    return row_of(piece, *self.windows.span(int(order[place])), self.windows.seq_len)

  def _block(self, number: int, lane: int):
    """(tokens, numbers of the rows in the order in which they are read) of a lane's block."""
    with self._lock:
      found = self._kept.get((number, lane))
      if found is not None:
        self._kept.move_to_end((number, lane))
    if isinstance(found, concurrent.futures.Future):
      found = found.result()
    if found is None:
      found = self._read(number, lane)
    self._keep((number, lane), found)
    return found

  def _keep(self, key, value) -> None:
    with self._lock:
      self._kept[key] = value
      while len(self._kept) > 2 * self.batch_size + 2:
        self._kept.popitem(last=False)

  def _ahead(self, number: int, lane: int) -> None:
    with self._lock:
      if (number, lane) in self._kept:
        return
      self._readers = self._readers or concurrent.futures.ThreadPoolExecutor(READERS, "blocks")
      self._kept[number, lane] = self._readers.submit(self._read, number, lane)

  def _read(self, number: int, lane: int):
    epoch, slot = divmod(number * self.batch_size + lane, self.blocks)
    block = permuted(slot, self.blocks, f"{self.seed} {epoch}")
    first = block * self.rows
    order = np.random.default_rng([self.seed, 0x6C616E65, epoch, block]).permutation(self.rows)
    start, _ = self.windows.span(first)
    _, stop = self.windows.span(first + self.rows - 1)
    return self.windows.store.piece(start, stop), first + order


def permuted(index: int, count: int, key: str) -> int:
  """Place of `index` in an order of 0 .. count - 1 that `key` names. No table of it is made.

  A Feistel network over the next power of four; results that are not below count go in again.
  """
  half = max(1, -(-(count - 1).bit_length() // 2))
  mask = (1 << half) - 1
  while True:
    left, right = index >> half, index & mask
    for round_ in range(4):
      digest = hashlib.blake2b(f"{key} {round_} {right}".encode(), digest_size=8).digest()
      left, right = right, left ^ (int.from_bytes(digest, "big") & mask)
    index = left << half | right
    if index < count:
      return index
