"""Tiles of the TPU kernels."""

import dataclasses

from jaxlm.kernels.pallas_support import LANES, SPILLS, round_up


@dataclasses.dataclass(frozen=True)
class Tiles:
  """words: rows of a table on chip at a time, a multiple of 128. step: of them generated at a time,
  so that their numbers stay
  in registers. positions: whose logits exist at a time, a divisor of 128 or 128."""

  words: int
  step: int
  positions: int

  def bytes(self, T: int, D: int, itemsize: int, with_embed: bool) -> int:
    """On-chip bytes: h and the sums twice (one is used while the next is on its way), rows, learned
    rows or their gradient.
    """
    forward = (
      T * D * 2 * (itemsize + 4)
      + self.words * D * itemsize * (6 if with_embed else 2)
      + 2 * 4 * T * LANES
    )
    backward = (
      T * D * 2 * itemsize + self.words * D * (3 * itemsize + 2 * 4) + 3 * 4 * T * self.step
    )
    return int(SPILLS * (max(forward, backward) if with_embed else forward))

  def fitted(self, T: int, V: int):
    """No larger than the arrays; fewer words where that leaves fewer words of the last tile unused."""
    positions = next(n for n in (self.positions, LANES) if T % n == 0)
    words = min(
      range(min(self.words, round_up(V, LANES)), 0, -LANES), key=lambda words: round_up(V, words)
    )
    return dataclasses.replace(self, words=words, positions=positions)


#: By device kind, chosen by the compiler's estimate (bench/kernel_estimates.py, libtpu 0.0.52).
TILES = {"": Tiles(words=256, step=64, positions=256)}

#: Device kinds where the kernel is the default: where its estimate is at least 1.3 times the XLA
#: form's (kernels/README.md).
PREFERRED = ("TPU v5 lite", "TPU v6 lite")
MIN_WORDS = (
  4096  # of the vocabulary: with a few hundred words the first tile's rows are a large share
)


def prefers_pallas(device_kind: str, vocab_size: int, with_embed: bool) -> bool:
  """with_embed: the gradient of learned rows has not been compared."""
  return device_kind in PREFERRED and vocab_size >= MIN_WORDS and not with_embed


def tiles(device_kind: str, D: int) -> Tiles:
  return TILES.get(device_kind, TILES[""])
