"""How much of the logits to hold at once."""

import dataclasses
import math

from jaxlm.kernels.linear_cross_entropy.tiles import Tile
from jaxlm.kernels.pallas_support import LANES, SPILLS, round_up

#: Softmaxes per device kept for the backward pass, which spares it that share of the products, by
#: device kind: an eighth of what a v5e has, less of a v5p's 95 GiB (either is all of 8,192 tokens
#: over 128,256 words).
KEEP_BYTES = {"TPU v5": 4 * 2**30, "cpu": 5 * 2**28, "": 2 * 2**30}


@dataclasses.dataclass(frozen=True)
class Tiles:
  """Rows and words of a tile of the TPU kernels, forward and backward; step: rows (back_step:
  words) of it whose logits exist at a time. Multiples of 128, the steps divide."""

  rows: int
  words: int
  step: int
  back_rows: int
  back_words: int
  back_step: int

  def forward_bytes(self, D: int, itemsize: int) -> int:
    """On-chip bytes: h, w and r twice (one is used while the next is on its way), the sum of r,
    tiles of logits, row sums.
    """
    tile = 3 * 4 * self.step * self.words
    sums = 4 * self.rows * D + 8 * 4 * LANES * self.rows
    return int(SPILLS * (2 * itemsize * D * (2 * self.rows + self.words) + sums + tile))

  def backward_bytes(self, D: int, itemsize: int) -> int:
    tile = 3 * 4 * self.back_step * self.back_rows
    sums = 4 * self.back_words * D + 8 * 4 * LANES * self.back_words
    return int(SPILLS * (2 * itemsize * D * (self.back_rows + 2 * self.back_words) + sums + tile))

  def fitted(self, rows: int, V: int):
    """No larger than the arrays. A vocabulary below one tile is one tile."""
    most = round_up(rows, LANES)
    n, m, words = min(self.rows, most), min(self.back_rows, most), min(self.back_words, V)
    return Tiles(
      n,
      min(self.words, V),
      math.gcd(self.step, n),
      m,
      words,
      self.back_step if words % self.back_step == 0 else words,
    )


@dataclasses.dataclass(frozen=True)
class Sizes:
  """dense_bytes: of float32 logits per device up to which the dense form is used: it computes them
  once. chunk_bytes: of one stretch's logits. min_tokens: per stretch; below, adding to dw (V, D)
  costs more than the products. tile: of a forward pass without targets, None by whole rows."""

  dense_bytes: int
  chunk_bytes: int
  min_tokens: int
  tile: Tile | None = None


ACCELERATOR = Sizes(32 * 2**20, 64 * 2**20, 256)
# A CPU is faster by stretches as soon as the logits leave its cache: 0.63 to 0.77 of the dense
# form's time at 2,048 tokens and 4,096 to 32,768 words, forward and backward.
# Tiles that stay in the cache make partitions of 256 rows of 30,522 words in 0.75 of the time of
# stretches of 64 rows.
CPU = Sizes(4 * 2**20, 2 * 2**20, 64, Tile(rows=256, step=64, words=1024))


def chunk_length(B: int, T: int, V: int, devices: int = 1, sizes: Sizes = ACCELERATOR) -> int:
  """Positions of a stretch: as many as chunk_bytes hold, at least min_tokens / B, stretches of
  equal length.
  """
  tokens = max(sizes.chunk_bytes * devices // (4 * V), sizes.min_tokens)
  stretches = -(-T // max(1, tokens // B))
  return -(-T // stretches)


def keep_bytes(device_kind: str) -> int:
  return KEEP_BYTES.get(device_kind, KEEP_BYTES[""])


def num_kept(rows: int, chunk: int, V: int, itemsize: int, num_chunks: int, keep_bytes: int) -> int:
  """How many of a device's stretches of (rows, chunk, V) are kept: all if keep_bytes holds them.

  Else as many as fit into 5/8 of it: the others need logits and a float32 sum of dw beside what is
  kept.
  """
  size = rows * chunk * V * itemsize
  return (
    num_chunks if num_chunks * size <= keep_bytes else min(num_chunks, keep_bytes * 5 // 8 // size)
  )


#: Tiles of the TPU kernels by device kind, chosen by the compiler's estimate
#: (bench/kernel_estimates.py, libtpu 0.0.52). With half the rows w is read twice as often, with
#: half the words h in the backward kernel; logits of 256 rows at a time are enough to keep matrix
#: and vector units busy side by side.
TILES = {"": Tiles(rows=1024, words=1024, step=256, back_rows=1024, back_words=1024, back_step=256)}


def tiles(device_kind: str, D: int, itemsize: int, room: int) -> Tiles:
  """The table's tiles, halved until their blocks of D channels fit into `room` bytes of on-chip
  memory.
  """
  found = TILES.get(device_kind, TILES[""])
  while found.rows > LANES and found.forward_bytes(D, itemsize) > room:
    found = dataclasses.replace(
      found,
      rows=found.rows // 2,
      words=max(found.words // 2, 512),
      step=min(found.step, found.rows // 2),
    )
  while found.back_words > LANES and found.backward_bytes(D, itemsize) > room:
    found = dataclasses.replace(
      found,
      back_words=found.back_words // 2,
      back_rows=max(found.back_rows // 2, 512),
      back_step=min(found.back_step, found.back_words // 2),
    )
  return found


#: Device kinds, and widths D for which the kernels are the default there: every shape of that width
#: that was estimated takes the XLA form at least 1.3 times as long (kernels/README.md).
PREFERRED = {"TPU v6 lite": (2048,)}


def prefers_pallas(device_kind: str, D: int, logits: float) -> bool:
  """logits: how many one device has; few of them are held at once anyway."""
  return D in PREFERRED.get(device_kind, ()) and 4 * logits > ACCELERATOR.dense_bytes
