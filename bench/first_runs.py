"""What the first command of each system costs, and the loss that it ends with.

  taskset -c 0 python bench/first_runs.py [--only carope,lact]

Runs the commands of experiments/systems.py in new folders and keeps, in docs/measured/first_runs.json
for each system: the command, CPU seconds (user and system) and wall seconds of the process with its
start and compilation, the peak memory, the last training loss and the last evaluation, and what
they were measured on. A system that is not named keeps what it had.
"""

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

from experiments.systems import SYSTEMS
from jaxlm import json_text
from jaxlm.experiments import record
from jaxlm.training import metrics

ROOT = pathlib.Path(__file__).parents[1]
KEPT = ROOT / "docs" / "measured" / "first_runs.json"


def run(system) -> dict:
  """The record of one system; a process of its own, so that its cost is its own."""
  made = record.made_by() | {"command": system.command}
  with tempfile.TemporaryDirectory() as folder:
    workdir = pathlib.Path(folder) / "run"
    command = [sys.executable, "-m", "jaxlm.cli", "train", *system.flags, f"--workdir={workdir}"]
    # Compiled programs are not taken from an earlier run: a first run has none.
    environment = os.environ | {"JAXLM_COMPILATION_CACHE": "off"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    after, wall_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.time() - start
    records = metrics.read(workdir)
  cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
  training = [line for line in records if "loss" in line][-1]
  evaluation = ([line for line in records if "eval/loss" in line] or [{}])[-1]
  return made | {
    "load_after": round(os.getloadavg()[0], 1),
    "cpu_s": round(cpu_s, 1),
    "wall_s": round(wall_s, 1),
    "step": training["step"],
    "first_loss": next(line["loss"] for line in records if "loss" in line),
    "loss": training["loss"],
    "evaluation": evaluation,
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--only", default="", help="names, comma-separated")
  parser.add_argument("--out", type=pathlib.Path, default=KEPT)
  only = parser.parse_args().only.split(",")
  out = parser.parse_args().out
  for system in SYSTEMS:
    if only != [""] and system.name not in only:
      continue
    found = run(system)
    kept = json.loads(out.read_text()) if out.exists() else {}
    out.write_text(json_text.dumps(kept | {system.name: found}, indent=1) + "\n")
    print(f"{system.name}: {found['cpu_s']} CPU s, {found['wall_s']} s, loss {found['loss']:.4f}")


if __name__ == "__main__":
  main()
