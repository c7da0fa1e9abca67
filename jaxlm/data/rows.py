"""Rows of seq_len tokens by index: contiguous windows, or documents packed first-fit.

Both are random-access sources of {tokens, targets, segment_ids, positions, loss_weights,
target_bytes}, each (T,): which tokens row i holds is a function of i alone, so order, hosts and
workers are decided elsewhere.
"""

import functools

import numpy as np

from jaxlm.data.errors import DataError
from jaxlm.data.store import TokenStore

Row = dict[str, np.ndarray]
OPEN_ROWS = (
  64  # rows that first-fit looks at; more fill little better and mix documents of distant places
)


class Windows:
  """Row i reads tokens iT .. iT+T-1 and predicts iT+1 .. iT+T of the joined documents; no mask
  between documents.

  whole: leave out a last window that is not full (training); otherwise it is padded and scored
  (evaluation), so that every token but the first is a target exactly once whatever T is.

  Where the tokenizer begins every text with a token of its own (<s>), every row begins with it, in
  place of its first token; as a target between documents it weighs 0, for a model is told it.
  start: the id that stands in place of every row's first token; None: none does.
  """

  def __init__(
    self, store: TokenStore, seq_len: int, *, whole: bool = True, start: int | None = None
  ):
    self.store, self.seq_len, self.start = store, seq_len, start
    targets = len(store) - 1
    self.length = targets // seq_len if whole else -(-targets // seq_len)
    if self.length < 1:
      raise DataError(
        f"the split holds {len(store)} tokens, fewer than one window of seq_len {seq_len} + 1; "
        f"shorten data.seq_len or use a larger corpus"
      )

  def __len__(self) -> int:
    return self.length

  def __getitem__(self, index: int) -> Row:
    row = row_of(self.store, *self.span(index), self.seq_len)
    if self.start is not None:
      row["tokens"][0] = self.start
    return row

  def span(self, index: int) -> tuple[int, int]:
    """First token of row `index`, and the one behind its last target."""
    start = int(index) * self.seq_len
    return start, start + self.seq_len + 1


class Packed:
  """Documents share rows without seeing each other: segment_ids 1, 2, .., positions from 0 in each
  segment.

  A document (its frame included) longer than T is cut into pieces of T; where the tokenizer begins
  every text with a token of its own (<s>), each piece does: it stands in place of the token that
  ends the piece before. Pieces go, in an order drawn from `seed` (None: corpus order), each into
  the first open row with room. The last token of a segment has no target there: weight 0. Which
  pieces share a row is fixed; epochs shuffle rows.
  """

  def __init__(self, store: TokenStore, seq_len: int, *, seed: int | None = 0):
    self.store, self.seq_len, self.seed = store, seq_len, seed

  @functools.cached_property
  def _plan(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(first piece of each row, start of each piece, its length), pieces in row order."""
    starts, lengths = pieces(
      np.asarray(self.store.starts), self.seq_len, overlap=int(bool(self.store.given))
    )
    order = np.arange(len(starts))
    if self.seed is not None:
      order = np.random.default_rng([self.seed, 0x7061636B]).permutation(order)
    row_of = first_fit(lengths[order], self.seq_len)
    by_row = np.argsort(row_of, kind="stable")
    first = np.searchsorted(row_of[by_row], np.arange(row_of.max() + 2))
    return first, starts[order][by_row], lengths[order][by_row]

  def __getstate__(self):
    return {"store": self.store, "seq_len": self.seq_len, "seed": self.seed}

  def __len__(self) -> int:
    return len(self._plan[0]) - 1

  def __getitem__(self, index: int) -> Row:
    first, starts, lengths = self._plan
    a, b = first[index], first[index + 1]
    return _row(self.store, [(s, s + n) for s, n in zip(starts[a:b], lengths[a:b])], self.seq_len)


class Filled:
  """`rows`, then copies of its first row that weigh nothing, up to a multiple of `multiple`: every
  batch is full.
  """

  def __init__(self, rows, multiple: int):
    self.rows, self.length = rows, -(-len(rows) // multiple) * multiple

  def __len__(self) -> int:
    return self.length

  def __getitem__(self, index: int) -> Row:
    if index < len(self.rows):
      return self.rows[index]
    row = self.rows[0]
    return row | {k: np.zeros_like(row[k]) for k in ("loss_weights", "target_bytes")}


def pieces(starts: np.ndarray, seq_len: int, overlap: int = 0) -> tuple[np.ndarray, np.ndarray]:
  """(start, length) of every piece of at most seq_len tokens, in corpus order; together they are
  all tokens.

  overlap: tokens that a piece has in common with the one before it of its document.
  """
  stride = seq_len - overlap
  counts = np.maximum(-(-(np.diff(starts) - overlap) // stride), 1)
  within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
  begin = np.repeat(starts[:-1], counts) + within * stride
  return begin, np.minimum(np.repeat(starts[1:], counts) - begin, seq_len)


def first_fit(lengths: np.ndarray, seq_len: int, open_rows: int = OPEN_ROWS) -> np.ndarray:
  """int64 row of each piece: the first open row with room; without one, the fullest is closed and a
  new one opened.
  """
  room = np.full(open_rows, seq_len, np.int64)
  row, rows = np.arange(open_rows), open_rows
  out = np.empty(len(lengths), np.int64)
  for i, length in enumerate(lengths.tolist()):
    fits = room >= length
    k = int(fits.argmax())
    if not fits[k]:
      k = int(room.argmin())
      row[k], room[k], rows = rows, seq_len, rows + 1
    out[i] = row[k]
    room[k] -= length
  # Rows that were opened and never used vanish.
  return np.unique(out, return_inverse=True)[1]


def row_of(store, start: int, stop: int, seq_len: int) -> Row:
  """tokens[start:stop] of a store as a row of one segment."""
  return _row(store, [(start, stop)], seq_len)


def _row(store: TokenStore, spans: list[tuple[int, int]], seq_len: int) -> Row:
  """A row of the spans of a store as segments.

  One of seq_len + 1 tokens carries the last position's target.
  """
  row = {
    k: np.zeros(seq_len, np.int32)
    for k in ("tokens", "targets", "segment_ids", "positions", "target_bytes")
  }
  row["loss_weights"] = np.zeros(seq_len, np.float32)
  at = 0
  for number, (start, stop) in enumerate(spans, 1):
    segment = store.tokens[start:stop]
    n, t = min(len(segment), seq_len), len(segment) - 1
    row["tokens"][at : at + n] = segment[:n]
    row["targets"][at : at + t] = segment[1:]
    row["segment_ids"][at : at + n] = number
    row["positions"][at : at + n] = np.arange(n)
    row["loss_weights"][at : at + t] = 1.0
    row["target_bytes"][at : at + t] = store.bytes_between(start + 1, stop)
    if store.given:
      row["tokens"][at] = store.given[-1]
      row["loss_weights"][at : at + t][np.isin(segment[1:], store.given)] = 0.0
    at += n
  return row
