"""Blocks of the TPU kernels."""

import dataclasses

from jaxlm.kernels.chunked_recurrence import heads_per_block
from jaxlm.kernels.pallas_support import SPILLS


@dataclasses.dataclass(frozen=True)
class Blocks:
  """chunk: tokens, a power of two. channels: of the heads of a block, at most, keys or values."""

  chunk: int
  channels: int

  def heads(self, num_heads: int, H: int, E: int) -> int | None:
    return heads_per_block(num_heads, 1, (H, E), self.channels)

  def bytes(self, G: int, H: int, E: int, itemsize: int) -> int:
    """On-chip bytes of the backward kernel: operands and gradients twice (one is used while the next
    is on its way), states, three arrays per level and key channel, and squares of the chunk.
    """
    Q, levels = self.chunk, self.chunk.bit_length() - 1
    moved = 2 * (Q * G * (4 * itemsize * H + 3 * itemsize * E + 8 * H) + 3 * 4 * G * H * E)
    return int(SPILLS * (moved + 4 * 4 * G * H * E + 3 * levels * 4 * Q * H + 10 * 4 * Q * Q))


#: By device kind, chosen by the compiler's estimate (bench/kernel_estimates.py, libtpu 0.0.52).
BLOCKS = {"": Blocks(chunk=128, channels=256)}

#: Device kinds where the kernels are the default: where their estimate is at least 1.3 times the
#: XLA form's (kernels/README.md).
PREFERRED = ("TPU v5 lite", "TPU v5", "TPU v6 lite")


def pallas_blocks(device_kind: str) -> Blocks:
  return BLOCKS.get(device_kind, BLOCKS[""])


def prefers_pallas(device_kind: str) -> bool:
  return device_kind in PREFERRED
