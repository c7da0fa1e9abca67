"""The C allocator on a CPU: what a step frees stays with the process for the next step.

glibc returns large blocks to the kernel and asks for them again, a page fault for every 4 KiB of a
step's temporaries: measured on a decoder of 4.2 M parameters, 100,000 faults and a quarter of the
step's time (bench/RESULTS.md).
"""

import ctypes
import os
import pathlib
import sys

# <malloc.h>: parameter -> value, each with its reason.
OPTIONS = {
  -8: 1,  # M_ARENA_MAX: a thread's own arena cannot hold a block over 64 MiB and maps it anew each time
  -4: 0,  # M_MMAP_MAX: no block is a mapping of its own, returned when it is freed
  -1: 2**31 - 1,  # M_TRIM_THRESHOLD: the heap's end is returned from 2 GiB on
}


def keep_memory(environ=os.environ, devices: str = "/dev") -> bool:
  """Tells glibc to keep what is freed; whether it did. Called before the backend starts its
  threads.

  Only where the CPU computes: beside an accelerator the loader's threads are better off with an
  arena each. Not where the user has set glibc's own variables (MALLOC_…, GLIBC_TUNABLES), and not
  without glibc.
  """
  if not sys.platform.startswith("linux") or not computes(environ, devices):
    return False
  if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in environ):
    return False
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
  return mallopt is not None and all(
    [mallopt(option, value) == 1 for option, value in OPTIONS.items()]
  )


def computes(environ, devices: str) -> bool:
  """Whether JAX will take the CPU: asked for, or nothing else is there."""
  if platforms := environ.get("JAX_PLATFORMS", ""):
    return platforms.split(",")[0] == "cpu"
  return not any(
    found
    for pattern in ("nvidia[0-9]*", "accel[0-9]*", "vfio/[0-9]*")
    for found in pathlib.Path(devices).glob(pattern)
  )
