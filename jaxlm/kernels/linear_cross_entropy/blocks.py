"""How much of the logits to hold at once."""

import dataclasses

from jaxlm.kernels.linear_cross_entropy.tiles import Tile

#: Softmaxes per device kept for the backward pass, which spares it that share of the products, by device kind: an
#: eighth of what a v5e has, less of a v5p's 95 GiB (either is all of 8,192 tokens over 128,256 words).
KEEP_BYTES = {"TPU v5": 4 * 2**30, "cpu": 5 * 2**28, "": 2 * 2**30}


@dataclasses.dataclass(frozen=True)
class Sizes:
  """dense_bytes: of float32 logits per device up to which the dense form is used: it computes them once. chunk_bytes: of
  one stretch's logits. min_tokens: per stretch; below, adding to dw (V, D) costs more than the products. tile: of a forward
  pass without targets, None by whole rows."""

  dense_bytes: int
  chunk_bytes: int
  min_tokens: int
  tile: Tile | None = None


ACCELERATOR = Sizes(32 * 2**20, 64 * 2**20, 256)
# A CPU is faster by stretches as soon as the logits leave its cache: 0.63 to 0.77 of the dense form's time at 2,048 tokens
# and 4,096 to 32,768 words, forward and backward.
# Tiles that stay in the cache make partitions of 256 rows of 30,522 words in 0.75 of the time of stretches of 64 rows.
CPU = Sizes(4 * 2**20, 2 * 2**20, 64, Tile(rows=256, step=64, words=1024))


def chunk_length(B: int, T: int, V: int, devices: int = 1, sizes: Sizes = ACCELERATOR) -> int:
  """Positions of a stretch: as many as chunk_bytes hold, at least min_tokens / B, stretches of equal length."""
  tokens = max(sizes.chunk_bytes * devices // (4 * V), sizes.min_tokens)
  stretches = -(-T // max(1, tokens // B))
  return -(-T // stretches)


def keep_bytes(device_kind: str) -> int:
  return KEEP_BYTES.get(device_kind, KEEP_BYTES[""])


def num_kept(rows: int, chunk: int, V: int, itemsize: int, num_chunks: int, keep_bytes: int) -> int:
  """How many of a device's stretches of (rows, chunk, V) are kept: all if keep_bytes holds them.

  Else as many as fit into 5/8 of it: the others need logits and a float32 sum of dw beside what is kept.
  """
  size = rows * chunk * V * itemsize
  return num_chunks if num_chunks * size <= keep_bytes else min(num_chunks, keep_bytes * 5 // 8 // size)
