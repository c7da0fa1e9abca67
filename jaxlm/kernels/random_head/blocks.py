"""Tiles of the TPU kernels."""

import dataclasses

from jaxlm.kernels.pallas_support import LANES, round_up


@dataclasses.dataclass(frozen=True)
class Tiles:
  """words: rows of a table on chip at a time, a multiple of 128. step: of them generated at a time, so that their numbers stay
  in registers. positions: whose logits exist at a time, a divisor of 128 or 128."""

  words: int
  step: int
  positions: int

  def bytes(self, T: int, D: int, itemsize: int, with_embed: bool) -> int:
    """On-chip bytes: h and the sums twice (one is used while the next is on its way), rows, learned rows or their gradient."""
    forward = T * D * 2 * (itemsize + 4) + self.words * D * itemsize * (3 if with_embed else 1) + 2 * 4 * T * LANES
    backward = T * D * 2 * itemsize + self.words * D * (3 * itemsize + 2 * 4) + 3 * 4 * T * self.step
    return max(forward, backward) if with_embed else forward

  def fitted(self, T: int, V: int):
    """No larger than the arrays."""
    positions = next(n for n in (self.positions, LANES) if T % n == 0)
    return dataclasses.replace(self, words=min(self.words, round_up(V, LANES)), positions=positions)


#: By device kind, chosen by the compiler's estimate (bench/kernel_estimates.py, libtpu 0.0.52).
TILES = {"": Tiles(words=512, step=64, positions=256)}

#: Device kinds where the kernel is the default; see kernels/README.md.
PREFERRED: tuple[str, ...] = ()


def tiles(device_kind: str, D: int) -> Tiles:
  return TILES.get(device_kind, TILES[""])
