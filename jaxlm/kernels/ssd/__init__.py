"""The state-space scan of Mamba-2, evaluated in matrix products (SSD)."""

from jaxlm.kernels.operation import callable_package
from jaxlm.kernels.ssd.api import ssd

__all__ = ["ssd"]

callable_package(ssd)
