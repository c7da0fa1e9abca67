"""A process that computes on the CPU keeps the memory that it frees; one beside an accelerator does not."""

import subprocess
import sys

from jaxlm.parallel.host_memory import on_cpu

FAULTS = """
import resource
from jaxlm.parallel.host_memory import keep_freed_memory
kept = keep_freed_memory()
block = lambda: bytearray(b"x") * 2**25
block()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
  block()
print(int(kept), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_a_freed_block_comes_back_without_page_faults():
  kept, faults = map(int, subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True).stdout.split())
  assert not kept or faults < 2**25 // 4096      # eight blocks of 8192 pages each: less than one of them


def test_only_where_nothing_else_computes(tmp_path):
  assert on_cpu({}, devices=tmp_path) and on_cpu({"JAX_PLATFORMS": "cpu"}, devices=tmp_path)
  assert not on_cpu({"JAX_PLATFORMS": "cuda"}, devices=tmp_path)
  (tmp_path / "nvidia0").touch()
  assert not on_cpu({}, devices=tmp_path) and on_cpu({"JAX_PLATFORMS": "cpu"}, devices=tmp_path)
