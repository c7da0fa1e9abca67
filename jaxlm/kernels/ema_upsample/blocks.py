"""Where the TPU kernels are the default; their tiles are those of compact/blocks.py."""

from jaxlm.kernels.compact.blocks import POSITIONS
from jaxlm.kernels.pallas_support import LANES

#: Device kinds where the kernels are the default: where the XLA form takes at least 1.3 times as long
#: at every shape of shapes.py by the compiler's estimate (kernels/README.md).
PREFERRED: tuple[str, ...] = ("TPU v5 lite", "TPU v6 lite")


def prefers_pallas(device_kind: str, T: int, D: int) -> bool:
  """Narrow rows and short sequences leave most of a tile unused."""
  return device_kind in PREFERRED and T >= 8 * POSITIONS and D >= LANES
