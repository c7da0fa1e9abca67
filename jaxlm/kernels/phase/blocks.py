"""Tiles of the TPU kernels, and where they are the default."""

from jaxlm.kernels.pallas_support import LANES, SPILLS, round_up

#: Tokens that are summed by one product with a triangle: the width of the matrix unit. The phase
#: reaches 128 rad before it is wrapped, where a float32 is exact to 4e-6.
STEP = 128

SUBLANES = 8  # a row of float32 takes as many on chip

#: Tokens of a block by device kind, chosen by the compiler's estimate (bench/kernel_estimates.py,
#: libtpu 0.0.52).
TOKENS = {"": 512}

#: Of head_dim: each half of a head's channels is then whole registers, of bfloat16 too.
HEAD_MULTIPLE = 32

#: Device kinds where the kernels are the default: where the XLA form takes at least 1.3 times as long
#: at CAROPE_SMALL by the compiler's estimate, or on v5p the whole step is faster (kernels/README.md).
PREFERRED: tuple[str, ...] = ("TPU v5 lite", "TPU v5", "TPU v6 lite")


def vmem_bytes(tokens: int, N: int, K: int, H: int, itemsize: int) -> int:
  """On-chip bytes of a step of the backward kernel: six blocks of q and k twice (one is used while
  the next is on its way), log f and its gradient likewise, two columns of all pairs, which fill
  whole registers, and 16 arrays of the pairs of one group. N query heads, K kv heads, H head_dim."""
  moved = 2 * 3 * tokens * (N + K) * H * itemsize
  rows = 2 * 2 * SUBLANES * 4 * tokens * (K + 1)
  columns = 2 * 4 * LANES * K * H // 2
  kept = 16 * 4 * tokens * max(LANES, H // 2)
  return int(SPILLS * (moved + rows + columns + kept))


def tokens(device_kind: str, T: int, N: int, K: int, H: int, itemsize: int, room: int) -> int:
  """The table's tokens of a block, no more than T, halved until a block fits into `room` bytes."""
  found = min(TOKENS.get(device_kind, TOKENS[""]), round_up(T, STEP))
  while found > STEP and vmem_bytes(found, N, K, H, itemsize) > room:
    found = max(STEP, found // 2 // STEP * STEP)
  return found


def prefers_pallas(device_kind: str, T: int) -> bool:
  """A sequence below one step would be padded to it."""
  return device_kind in PREFERRED and T >= STEP
