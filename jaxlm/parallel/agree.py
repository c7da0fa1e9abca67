"""Decisions that all processes must make alike: what one of them sees on a disk or hears from a
signal, told to all.
"""

import json

import jax
import numpy as np


def gather(value) -> list:
  """The (JSON) value of every process, by index, on all of them; also a barrier.

  Every process must call it.
  """
  if jax.process_count() == 1:
    return [value]
  from jax.experimental import multihost_utils

  data = np.frombuffer(json.dumps(value).encode(), np.uint8)
  sizes = np.ravel(multihost_utils.process_allgather(np.int32(data.size)))
  width = -(-int(sizes.max()) // 1024) * 1024  # few sizes: each is a compilation
  padded = np.zeros(width, np.uint8)
  padded[: data.size] = data
  rows = np.reshape(multihost_utils.process_allgather(padded), (-1, width))
  return [json.loads(bytes(row[:size])) for row, size in zip(rows, sizes)]


def from_first(value):
  """Process 0's value, on all."""
  return gather(value if jax.process_index() == 0 else None)[0]
