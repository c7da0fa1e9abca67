"""Chunk lengths, and blocks of the TPU kernels.

Work per token grows with the chunk (the triangle), carried state with its inverse.
"""

import dataclasses

from jaxlm.kernels.chunked_recurrence import heads_per_block
from jaxlm.kernels.pallas_support import SPILLS


def chunk_length(platform: str, head_dim: int, state_dim: int) -> int:
  """Tokens per chunk of the XLA form.

  CPU: measured by `bench/ssd.py` (bench/RESULTS.md): 32 and 64 are within a tenth of each other
  with H 64 and E 64 or 128, and the shorter one sums fewer logarithms of decays, hence rounds less.
  Elsewhere 256, the chunk of the released configurations: a square that fills a matrix unit.
  """
  del head_dim, state_dim
  return 32 if platform == "cpu" else 256


@dataclasses.dataclass(frozen=True)
class Blocks:
  """chunk: tokens, a power of two. channels: of the heads of a block, at most."""

  chunk: int
  channels: int

  def heads(self, num_heads: int, num_groups: int, head_dim: int) -> int | None:
    return heads_per_block(num_heads, num_groups, (head_dim,), self.channels)

  def bytes(self, channels: int, state_dim: int, itemsize: int) -> int:
    """On-chip bytes of the backward kernel: x, dy and dx twice (one is used while the next is on
    its way), four states and their neighbours, b, c and the scores, and what is held per channel.
    """
    F, E, Q = channels, state_dim, self.chunk
    moved = 2 * (3 * itemsize * Q * F + 3 * 4 * F * E + 4 * Q * E * 4)
    return int(SPILLS * (moved + 4 * F * E + 14 * 4 * F * Q + 8 * 4 * Q * Q))


#: By device kind, chosen by the compiler's estimate (bench/kernel_estimates.py, libtpu 0.0.52).
BLOCKS = {"": Blocks(chunk=128, channels=512)}

#: Device kinds where the kernels are the default: where their estimate is at least 1.3 times the
#: XLA form's (kernels/README.md).
PREFERRED = ("TPU v5 lite", "TPU v5", "TPU v6 lite")


def pallas_blocks(device_kind: str) -> Blocks:
  return BLOCKS.get(device_kind, BLOCKS[""])


def prefers_pallas(device_kind: str) -> bool:
  return device_kind in PREFERRED
