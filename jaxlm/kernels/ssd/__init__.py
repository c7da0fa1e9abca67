"""The state-space scan of Mamba-2, evaluated in matrix products (SSD)."""

from jaxlm.kernels.ssd.api import ssd

__all__ = ["ssd"]
