"""Mosaic GPU's interpreter with its detectors, and GPUs that are not there, for tests of kernels."""

import contextlib

import jax
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from jaxlm.kernels import mosaic_support


@contextlib.contextmanager
def interpreted():
  """Races and reads outside an array raise; memory that nobody wrote is NaN. Reads by the matrix unit
  are not watched: the interpreter multiplies at once."""
  if (reason := mosaic_support.too_old()) is not None:
    pytest.skip(reason)
  with mosaic_support.interpreted(
    detect_races=True, out_of_bounds_reads="raise", uninitialized_memory="nan"
  ):
    yield


@contextlib.contextmanager
def traced_for(kind: str, platform: str = "gpu"):
  """Within it traces are for one device of this kind."""
  mesh = AbstractMesh((1,), ("data",), abstract_device=AbstractDevice(kind, 132, platform))
  with jax.sharding.use_abstract_mesh(mesh):
    yield
