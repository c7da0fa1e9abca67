r"""Every op compiled, forward and backward, for GPUs that are not there: what the compiler says.

  python bench/gpu_compiled.py [--ops attention,ssd] [--chips H100,A100] [--forms xla,pallas_gpu]
  python bench/gpu_compiled.py --write      only the tables of jaxlm/kernels/README.md, from the JSON

Needs the extra `preflight-gpu` and `ptxas` on PATH, no GPU. Of both forms: temporary memory. Of the
Mosaic GPU kernels also: shared memory of a block of threads, registers that a thread starts with
(computing warpgroups take 240, or 232), and spills. No times: there is no model of a GPU here.
Nothing is tuned: a run on a GPU picks other tiles for XLA's products.

Every program is a process of its own: flags are read once, and what ptxas prints is its output.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from jaxlm import json_text

RESULTS = Path(__file__).with_suffix(".json")
README = Path(__file__).parents[1] / "jaxlm" / "kernels" / "README.md"
FORMS = ("pallas_gpu", "xla")


def find(op: str, name: str):
  from jaxlm.kernels.gpu_cases import cases

  return next(case for case in cases() if (case.op, case.name) == (op, name))


def one(op: str, name: str, chip: str, form: str) -> dict:
  """In a process of its own, with XLA_FLAGS and MOSAIC_GPU_DUMP_PTXAS set."""
  import time

  from jaxlm.preflight.gpu_target import compiled

  shared: list[int] = []
  if form == "pallas_gpu":
    from jax.experimental.mosaic.gpu import core  # the size stands nowhere else

    size = core._smem_tree_size
    core._smem_tree_size = lambda buffers: shared.append(size(buffers)) or shared[-1]
  case, start = find(op, name), time.time()
  memory = compiled(case.backward(form), case.arguments, chip).memory_analysis()
  return {
    "compile_s": round(time.time() - start, 1),
    "temp_bytes": memory.temp_size_in_bytes,
    "shared_bytes": shared,
  }


def estimate(case: tuple[str, str, str, str]) -> dict | str:
  """The figures, or the last of what a failure printed."""
  env = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_gpu_autotune_level=0",
    "MOSAIC_GPU_DUMP_PTXAS": "1",
    "JAX_ENABLE_COMPILATION_CACHE": "false",
  }
  out = subprocess.run(
    [sys.executable, __file__, "--one", *case], capture_output=True, text=True, env=env
  )
  found = [line for line in out.stdout.splitlines() if line.startswith("RESULT ")]
  if not found:
    return out.stderr[-2000:]
  result = json.loads(found[0].removeprefix("RESULT "))
  said = out.stdout + out.stderr
  kernels = re.findall(
    r"entry function '(\w+?)_mosaic_gpu_kernel'.*?(\d+) bytes spill stores.*?Used (\d+) registers",
    said,
    re.S,
  )
  # Fewer: a kernel that is called twice with the same shapes is assembled once. More: a line of
  # another kernel was read.
  if 0 < len(kernels) <= len(result["shared_bytes"]):
    result["kernels"] = [
      {"name": name, "spilled_bytes": int(spilled), "registers": int(registers)}
      for name, spilled, registers in kernels
    ]
  return result


def _rows(results: dict):
  for key, row in results.items():
    yield *key.split(" | "), row


def mosaic_table(results: dict) -> str:
  lines = [
    "| op | shape | kernels (spilled bytes of a thread) | registers | shared memory, most, KiB "
    "| temporary memory, MiB | revision |",
    "| --- | --- | --- | ---: | ---: | ---: | --- |",
  ]
  for op, name, _, form, row in _rows(results):
    if form == "pallas_gpu":
      kernels = row.get("kernels", [])
      names = ", ".join(f"{k['name']} ({k['spilled_bytes']})" for k in kernels)
      most = max((k["registers"] for k in kernels), default="-")
      lines.append(
        f"| {op} | {name} | {names} | {most} | {max(row['shared_bytes']) / 1024:.0f} "
        f"| {row['temp_bytes'] / 2**20:.0f} | {row['revision']} |"
      )
  return "\n".join(lines)


def xla_table(results: dict) -> str:
  lines = [
    "| op | shape | GPU | temporary memory, MiB | revision |",
    "| --- | --- | --- | ---: | --- |",
  ]
  for op, name, chip, form, row in _rows(results):
    if form == "xla":
      lines.append(
        f"| {op} | {name} | {chip} | {row['temp_bytes'] / 2**20:.0f} | {row['revision']} |"
      )
  return "\n".join(lines)


def write(mark: str, table: str) -> None:
  begin, end = f"<!-- {mark}: bench/gpu_compiled.py -->", f"<!-- end of {mark} -->"
  pattern = re.escape(begin) + ".*?" + re.escape(end)
  text = re.sub(pattern, lambda _: f"{begin}\n{table}\n{end}", README.read_text(), flags=re.S)
  README.write_text(text)


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--ops", help="separated by commas; default: all")
  parser.add_argument("--chips", default="H100,A100")
  parser.add_argument("--forms", default=",".join(FORMS))
  parser.add_argument("--write", action="store_true", help="compile nothing, write the tables")
  parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.one:
    print("RESULT " + json_text.dumps(one(*args.one)))
    return
  from jaxlm.kernels.gpu_cases import cases
  from jaxlm.training.provenance import revision

  results, at = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}, revision()
  for form in args.forms.split(",") if not args.write else ():
    for chip in args.chips.split(","):
      for case in cases():
        if form not in case.implementations or (form == "pallas_gpu" and chip != "H100"):
          continue
        if args.ops is not None and case.op not in args.ops.split(","):
          continue
        key = case.op, case.name, chip, form
        found = estimate(key)
        print(" | ".join(key), found, flush=True)
        if isinstance(found, dict):
          results[" | ".join(key)] = found | {"revision": at}
          RESULTS.write_text(json_text.dumps(dict(sorted(results.items())), indent=1) + "\n")
  write("mosaic_gpu", mosaic_table(results))
  write("gpu_xla", xla_table(results))


if __name__ == "__main__":
  main()
