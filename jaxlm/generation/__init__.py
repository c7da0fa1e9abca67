"""Decoding for each family of models."""

from jaxlm.generation.autoregressive import Generator
from jaxlm.generation.sampling import Sampling

__all__ = ["Generator", "Sampling"]
