"""What every Mosaic GPU kernel shares: where it may run, how it is interpreted, its pipeline.

A kernel's package has `pallas_gpu.py`, which says what is supported and prepares arguments, and
`mosaic_kernels.py` (attention: `mosaic_forward.py` and `mosaic_backward.py`), which imports Mosaic
GPU and is imported when a kernel is used: that takes seconds. The name is "pallas_gpu", and it is never the default: no kernel here has run on a device.
"""

import contextlib
import contextvars
import re

import jax

from jaxlm.kernels.platform import target_device_kind, target_platform

#: The first release whose Mosaic GPU the kernels are written for, and which can interpret them.
JAX_VERSION = (0, 12)

#: Bytes of shared memory that one block of threads may use on Hopper.
SHARED_BYTES = 232448 - 1024

#: Rows of a tile that one warpgroup multiplies.
ROWS = 64

_interpret = contextvars.ContextVar("interpret_gpu", default=None)


def too_old() -> str | None:
  """None, or the sentence that says that this jax lacks what the kernels need."""
  if tuple(map(int, jax.__version__.split(".")[:2])) >= JAX_VERSION:
    return None
  return (
    f"jax {jax.__version__} is older than {'.'.join(map(str, JAX_VERSION))}, whose Mosaic GPU the kernel "
    'needs; install a newer jax (Python 3.12 or newer), or use implementation="xla"'
  )


def is_hopper(device_kind: str) -> bool:
  """Whether a GPU has the matrix instructions of compute capability 9.0: 'NVIDIA H100 80GB HBM3'."""
  return re.search(r"\bG?H\d{2,3}\b", device_kind) is not None


def why_not_here() -> str | None:
  """None, or the sentence that says why a Mosaic GPU kernel cannot run where the trace will."""
  if (reason := too_old()) is not None:
    return reason
  if interpreting():
    return None
  if target_platform() != "gpu":
    return (
      f"the trace is for {target_platform()} and the kernel needs a Hopper GPU; use "
      'implementation="xla"'
    )
  if not is_hopper(target_device_kind()):
    return (
      f"the kernel is for Hopper GPUs (H100, H200) and this is {target_device_kind()}; use "
      'implementation="xla"'
    )
  return None


@contextlib.contextmanager
def interpreted(**parameters):
  """Within it Mosaic GPU kernels are traced for JAX's interpreter of GPU memory, threads and
  barriers, so that they run on a CPU, slowly.

  parameters: of plgpu.InterpretGPUParams. Not part of the key of jax.jit's cache.
  """
  from jax.experimental.pallas import mosaic_gpu as plgpu

  token = _interpret.set(plgpu.InterpretGPUParams(**parameters))
  try:
    yield
  finally:
    _interpret.reset(token)


def interpreting() -> bool:
  return _interpret.get() is not None


def interpreter():
  """The argument `interpret` of plgpu.kernel."""
  return _interpret.get() or False
