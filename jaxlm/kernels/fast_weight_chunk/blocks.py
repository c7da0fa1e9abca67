"""Tiles of the TPU kernels, and what they need on chip."""

import dataclasses

from jaxlm.kernels.pallas_support import LANES, SPILLS, round_up

#: Device kinds, and head widths for which the kernels are the default there: their estimate is at
#: least 1.3 times the XLA form's (kernels/README.md). Other widths were not estimated.
PREFERRED = {"TPU v5 lite": (384,), "TPU v6 lite": (384,)}

#: Tokens of a tile by device kind, the first that fits: adding to the sums of a tile and its first
#: stretch, which no product hides, cost the same whatever its size.
TOKENS = {"": (1024, 512, 256, 128)}


@dataclasses.dataclass(frozen=True)
class Tiles:
  """tokens: of a tile. parts: into which the inner width is cut; each is a network of its own, and
  what the tokens get from them is summed afterwards.
  """

  tokens: int
  parts: int


def prefers_pallas(device_kind: str, H: int, F: int) -> bool:
  return H == F and H in PREFERRED.get(device_kind, ())


def stretch(Q: int) -> int:
  """Tokens of a tile whose work arrays exist at a time: half a tile, at most 256."""
  return max(LANES, min(Q // 2, 256)) if Q % (2 * LANES) == 0 else LANES


def step_bytes(Q: int, F: int, H: int, itemsize: int) -> int:
  """On-chip bytes of the backward kernel of a step, the largest, for an inner width of F: weights and
  cotangents twice (one is used while the next is on its way), both once in the products' dtype as
  they are and turned, results twice, tokens and theirs twice, work arrays.
  """
  matrices = (6 * 4 * 2 + 3 * 4 * 2 + 12 * itemsize + 4) * F * H
  tokens = 4 * 2 * Q * H * itemsize + 2 * 4 * Q * H
  work = 6 * Q * F * itemsize + 2 * 12 * 4 * stretch(Q) * F
  return int(SPILLS * (matrices + tokens + work))


def tiles(device_kind: str, C: int, F: int, H: int, itemsize: int, room: int) -> Tiles | None:
  """For chunks of C tokens, H channels and an inner width of F (multiples of 128); None where nothing
  fits.
  """
  most = round_up(C, LANES)
  sizes = TOKENS.get(device_kind, TOKENS[""])
  for parts in range(1, F // LANES + 1):
    if F % (parts * LANES):
      continue
    for Q in sizes:
      Q = min(Q, most)
      if step_bytes(Q, F // parts, H, itemsize) <= room:
        return Tiles(Q, parts)
  return None
