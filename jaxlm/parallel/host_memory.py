"""The memory of a CPU that computes."""

import ctypes
import platform

# mallopt's names, from glibc's malloc.h.
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
  """Lets the process keep what it frees, as long as it lives. Whether that was possible (glibc only).

  A step's temporaries are allocated and freed every step. By default glibc maps and unmaps blocks of that size, and
  the kernel clears every page of them again at first touch (bench/RESULTS.md, H-Net: page faults per step).
  """
  if platform.libc_ver()[0] != "glibc":
    return False
  libc = ctypes.CDLL(None)
  return all([libc.mallopt(MMAP_MAX, 0), libc.mallopt(TRIM_THRESHOLD, 2**31 - 1), libc.mallopt(TOP_PAD, 64 * 2**20)])
