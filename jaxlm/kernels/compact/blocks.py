"""Tiles of the TPU kernels that move rows between positions and slots, and where they are the default."""

from jaxlm.kernels.pallas_support import LANES, SPILLS

#: Positions and slots of a tile: the width of the matrix unit.
POSITIONS, SLOTS = 128, 128
#: Most channels of a tile.
CHANNELS = 1024

#: Device kinds where the kernels are the default: none, as long as XLA's gathers cannot be estimated
#: (kernels/README.md).
PREFERRED: tuple[str, ...] = ()


def channels(D: int) -> int | None:
  """Channels of a tile: all up to CHANNELS, else the most whole registers that divide D; None if
  there are none."""
  if D <= CHANNELS:
    return D
  return next((c for c in range(CHANNELS, 0, -LANES) if D % c == 0), None)


def vmem_bytes(channels: int, itemsize: int) -> int:
  """On-chip bytes: tiles in and out twice, sums, and the rows that are computed."""
  tile = (POSITIONS + SLOTS) * channels
  return int(SPILLS * tile * (2 * itemsize + 4 * 6))


def prefers_pallas(device_kind: str, T: int, D: int) -> bool:
  """Narrow rows and short sequences leave most of a tile unused."""
  return device_kind in PREFERRED and T >= 8 * POSITIONS and D >= LANES
