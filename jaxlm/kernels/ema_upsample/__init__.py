"""Smooth the chunks, then let every position read its chunk."""

from jaxlm.kernels.ema_upsample.api import ema_upsample
from jaxlm.kernels.operation import callable_package

__all__ = ["ema_upsample"]

callable_package(ema_upsample)
