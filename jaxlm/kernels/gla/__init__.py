from jaxlm.kernels.gla.api import gla
from jaxlm.kernels.gla.xla import BLOCK
from jaxlm.kernels.operation import callable_package

__all__ = ["BLOCK", "gla"]

callable_package(gla)
