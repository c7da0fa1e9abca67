"""Blocks of the TPU kernels, and what they need on chip."""

from jaxlm.kernels.pallas_support import LANES, SPILLS, round_up

#: Columns of a symmetric product that are computed at a time: above the diagonal only, the rest is
#: turned. By device kind and up to so many rows; smaller blocks leave out more of the product and
#: use the matrix unit less.
COLUMNS = {"": ((512, 128), (2**31, 256))}

#: Device kinds where the kernel is the default: where its estimate is at least 1.3 times the XLA
#: form's (kernels/README.md). None: XLA keeps these matrices on chip as well.
PREFERRED = ()


def padded(M: int, N: int) -> tuple[int, int]:
  """Sizes of a wide matrix in whole registers. Zero rows and columns stay zero."""
  M = round_up(M, LANES)
  return (M if M <= 512 else round_up(M, 2 * LANES)), round_up(N, LANES)


def columns(device_kind: str, M: int) -> int:
  """A divisor of the padded M."""
  return next(size for rows, size in COLUMNS.get(device_kind, COLUMNS[""]) if M <= rows)


def forward_bytes(M: int, N: int, itemsize: int, buffers: int) -> int:
  """On-chip bytes: G and X in `buffers` copies each, two X, A, c A and P."""
  return int(SPILLS * itemsize * ((2 * buffers + 2) * M * N + 3 * M * M))


def backward_bytes(M: int, N: int, itemsize: int, steps: int, buffers: int) -> int:
  """On-chip bytes: G and the gradients of X and of G, X, A and P of every step, work arrays."""
  wide, square = (3 * buffers + steps + 2) * M * N, (2 * steps + 4) * M * M
  return int(SPILLS * itemsize * (wide + square))


def buffers(M: int, N: int, itemsize: int, steps: int, room: int) -> int | None:
  """2: a matrix is used while the next is on its way; 1 where two do not fit; None where one does
  not.
  """
  for count in (2, 1):
    needed = max(forward_bytes(M, N, itemsize, count), backward_bytes(M, N, itemsize, steps, count))
    if needed <= room:
      return count
  return None
