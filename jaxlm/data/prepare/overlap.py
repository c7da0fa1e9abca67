"""Does held-out text stand in train? Windows of 200 bytes, every 50 in held-out text, at any place
in train.
"""

import numpy as np

WINDOW, STRIDE = 200, 50
BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that multiplication mod 2^64 loses nothing
BITS = 24
CHUNK = 1 << 16  # bytes at a time: what fits the cache is several times faster


def window_hashes(text: np.ndarray) -> np.ndarray:
  """uint64 (n - 199,): sum_j text[i + j] BASE^(199 - j) mod 2^64, by doubling:
  h_{a+b}[i] = h_a[i] BASE^b + h_b[i + a]."""
  n = len(text) - WINDOW + 1
  if n < 1:
    return np.zeros(0, np.uint64)
  power, size, factor = text.astype(np.uint64) * BASE + np.uint64(1), 1, BASE
  total, done = None, 0
  remaining = WINDOW
  while remaining:
    if remaining & 1:
      piece = power[done : done + n]
      total = piece.copy() if total is None else total * factor + piece
      done += size
    remaining >>= 1
    if remaining:
      power = power[:-size] * factor + power[size:]
      size, factor = 2 * size, np.uint64(int(factor) ** 2 & (1 << 64) - 1)
  return total


class Overlap:
  """hold_out(text).., then train(text).., finish(), then shared(text) of each held-out text."""

  def __init__(self):
    self._held, self._exact, self._table, self._found = [], None, None, set()

  def hold_out(self, text: bytes) -> None:
    self._held.append(window_hashes(np.frombuffer(text, np.uint8))[::STRIDE].copy())

  def train(self, text: bytes) -> None:
    if self._exact is None:
      self._exact = np.unique(np.concatenate(self._held)) if self._held else np.zeros(0, np.uint64)
      # Most windows of train match nothing: one look into 16 MB of bits says so.
      self._table = np.zeros(1 << BITS, bool)
      self._table[(self._exact >> np.uint64(64 - BITS)).astype(np.int64)] = True
    if not len(self._exact):
      return
    raw = np.frombuffer(text, np.uint8)
    for start in range(0, len(raw), CHUNK):
      hashes = window_hashes(raw[start : start + CHUNK + WINDOW - 1])
      likely = hashes[self._table[(hashes >> np.uint64(64 - BITS)).astype(np.int64)]]
      if len(likely):
        place = np.minimum(np.searchsorted(self._exact, likely), len(self._exact) - 1)
        self._found.update(likely[self._exact[place] == likely].tolist())

  def finish(self) -> None:
    self._held = []

  def shared(self, text: bytes) -> tuple[int, int]:
    """(windows of this text that stand in train, windows)."""
    hashes = window_hashes(np.frombuffer(text, np.uint8))[::STRIDE].tolist()
    return sum(h in self._found for h in hashes), len(hashes)
