"""The allocator's options: taken by glibc, only where the CPU computes, and never over the user's."""

import subprocess
import sys

import pytest

from jaxlm.parallel import cpu

FREED_AND_TAKEN_AGAIN = """
import ctypes, resource
from jaxlm.parallel import cpu
assert cpu.keep_memory(environ={"JAX_PLATFORMS": "cpu"})
lib = ctypes.CDLL(None)
lib.malloc.restype, lib.malloc.argtypes, lib.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
counts = []
for _ in range(3):
  before = faults()
  block = lib.malloc(80 << 20)
  ctypes.memset(block, 1, 80 << 20)
  lib.free(block)
  counts.append(faults() - before)
print(*counts)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's options")
def test_a_block_that_was_freed_is_taken_again_without_page_faults():
  done = subprocess.run(
    [sys.executable, "-c", FREED_AND_TAKEN_AGAIN], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  first, *later = map(int, done.stdout.split())
  assert first > 100 and max(later) < first / 100, done.stdout


def test_only_where_the_cpu_computes_and_never_over_the_users(tmp_path):
  assert cpu.computes({}, str(tmp_path)) and cpu.computes({"JAX_PLATFORMS": "cpu"}, str(tmp_path))
  (tmp_path / "nvidia0").touch()
  assert not cpu.computes({}, str(tmp_path)) and cpu.computes(
    {"JAX_PLATFORMS": "cpu,cuda"}, str(tmp_path)
  )
  assert not cpu.computes({"JAX_PLATFORMS": "tpu,cpu"}, str(tmp_path))
  assert not cpu.keep_memory({"JAX_PLATFORMS": "cpu", "MALLOC_ARENA_MAX": "4"})
