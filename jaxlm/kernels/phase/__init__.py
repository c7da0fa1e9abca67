"""Accumulated rotary phases (CARoPE) and the rotation of queries and keys by them."""

from jaxlm.kernels.phase.api import (
  carope_rotate,
  cumulative_phase,
  rotate,
  shard_prefix,
  total_phase,
)
from jaxlm.kernels.phase.circle import sincos, wrap

__all__ = [
  "cumulative_phase",
  "carope_rotate",
  "rotate",
  "shard_prefix",
  "total_phase",
  "sincos",
  "wrap",
]
