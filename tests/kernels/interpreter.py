"""The interpreter of TPU memory with all of its detectors, for tests of Pallas kernels."""

import contextlib

from jax.experimental.pallas import tpu as pltpu

from jaxlm.kernels import pallas_support


@contextlib.contextmanager
def every_detector(num_cores: int = 2):
  """Reads outside an array raise, memory that nobody wrote is NaN, a race fails.

  Two cores share the "parallel" grid axes.
  """
  from jax._src.pallas.mosaic.interpret import (
    interpret_pallas_call as interpreter,
  )  # 0.10 has no public verdict

  parameters = pltpu.InterpretParams(
    detect_races=True,
    out_of_bounds_reads="raise",
    uninitialized_memory="nan",
    num_cores_or_threads=num_cores,
  )
  with pallas_support.interpreted(parameters):
    yield
  assert interpreter.races is not None and not interpreter.races.races_found
