"""Smooth the chunks, then let every position read its chunk."""

from jaxlm.kernels.ema_upsample.api import ema_upsample

__all__ = ["ema_upsample"]
