from jaxlm.kernels.gla.api import gla
from jaxlm.kernels.gla.xla import BLOCK

__all__ = ["BLOCK", "gla"]
