"""Tiles of the TPU kernels of `route`, and where they are the default."""

from jaxlm.kernels.pallas_support import LANES, SPILLS, round_up

#: Most rows and most columns of the projections in a tile.
ROWS, COLUMNS = 512, 512

#: Device kinds where the kernels are the default: those where the XLA form takes at least 1.3 times as
#: long at every shape of shapes.py by the compiler's estimate (kernels/README.md).
PREFERRED: tuple[str, ...] = ()


def tiles(T: int, E: int, most: int, D: int, itemsize: int) -> tuple[int, int] | None:
  """(rows, columns) of a tile, the largest that fit into `most` bytes on chip; None if none do.

  E is a multiple of LANES.
  """
  rows = min(ROWS, round_up(T, LANES))
  while rows >= LANES:
    for columns in range(min(COLUMNS, E), 0, -LANES):
      if E % columns == 0 and vmem_bytes(rows, columns, D, itemsize) <= most:
        return rows, columns
    rows = rows // 2 // LANES * LANES
  return None


def vmem_bytes(rows: int, columns: int, D: int, itemsize: int) -> int:
  """On-chip bytes of the backward kernel: rows and weights twice, projections, the gradient's sum."""
  held = 2 * itemsize * (2 * rows * D + 2 * D * columns + 2 * rows * columns)
  return int(SPILLS * (held + 4 * rows * (D + 6 * columns)))


def prefers_pallas(device_kind: str, T: int, D: int) -> bool:
  return device_kind in PREFERRED and T >= ROWS and D >= 2 * LANES
