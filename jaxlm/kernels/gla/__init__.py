from jaxlm.kernels.gla.api import gla

__all__ = ["gla"]
