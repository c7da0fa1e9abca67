"""The memory of a CPU that computes."""

import ctypes
import os
import pathlib
import platform

# mallopt's names, from glibc's malloc.h.
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX, ARENA_MAX = -1, -2, -4, -8
ACCELERATORS = ("nvidia[0-9]*", "accel[0-9]*", "vfio/[0-9]*")      # device files of GPUs and TPUs


def on_cpu(environ=os.environ, devices: str = "/dev") -> bool:
  """Whether JAX will compute on the CPU, before it is asked."""
  chosen = environ.get("JAX_PLATFORMS", "")
  return chosen == "cpu" or not (chosen or any(any(pathlib.Path(devices).glob(name)) for name in ACCELERATORS))


def keep_freed_memory() -> bool:
  """Lets the process keep what it frees, as long as it lives. Whether that was possible (glibc only).

  A step's temporaries are allocated and freed every step. By default glibc maps and unmaps blocks of that size, and
  the kernel clears every page of them again at first touch: a third of a small model's step (bench/RESULTS.md, H-Net).
  Call it before JAX starts its threads: those that have a heap of their own already, of 64 MiB at most, keep it.
  """
  if platform.libc_ver()[0] != "glibc":
    return False
  options = {ARENA_MAX: 1, MMAP_MAX: 0, TRIM_THRESHOLD: 2**31 - 1, TOP_PAD: 64 * 2**20}
  libc = ctypes.CDLL(None)
  return all([libc.mallopt(name, value) for name, value in options.items()])
