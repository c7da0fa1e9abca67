"""The training step of this tree against that of another revision: CPU time and peak memory.

  python bench/keep.py against_revision -- python bench/against_revision.py --before=4aefb48
  python bench/against_revision.py --before=4aefb48 --config=configs/mrt5/smoke.py --seconds=60

Each side is `jaxlm train` in a process of its own, in an empty home, with the programs that a first
run has compiled, from step 60 on. Both run by turns of two seconds (SIGSTOP, SIGCONT), so that a busy machine is
unfair to none. CPU milliseconds per step: user and system time between two records of
metrics.jsonl. Peak memory: VmHWM of the process at its end, the compiler's not included. Ratio: now
/ before.
"""

import argparse
import contextlib
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time

from startup import ROOT, checked_out, cpu_ticks

CONFIGS = (
  "configs/carope/tiny.py",
  "configs/hnet/tiny.py",
  "configs/mrt5/smoke.py",
  "configs/lact/micro.py",
)
TURN_S = 2.0
WARM_STEPS = 60  # an H-Net has left its first buckets by then
LEAST_STEPS = 40


class Side:
  """One training process, stopped but for its turns."""

  def __init__(self, tree: pathlib.Path, config: str, folder: pathlib.Path, extra: list[str]):
    self.tree, self.config, self.folder, self.extra = tree, config, folder, extra
    self.runs = 0

  def start(self) -> None:
    """Starts a run and waits until it has taken its warm steps."""
    self.runs += 1
    self.run = self.folder / f"run{self.runs}"
    unwanted = ("JAX_COMPILATION", "JAX_PERSISTENT", "JAXLM_")
    env = {k: v for k, v in os.environ.items() if not k.startswith(unwanted)}
    env |= {"HOME": str(self.folder), "PYTHONPATH": str(self.tree), "JAX_PLATFORMS": "cpu"}
    env |= {"JAX_COMPILATION_CACHE_DIR": str(self.folder / "xla")}
    env |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, "-m", "jaxlm.cli", "train", f"--config={self.config}"]
    command += ["--config.train.steps=1000000", "--config.train.log_every=2"]
    command += ["--config.train.save_every=1000000", "--config.eval.every=0", *self.extra]
    with open(self.folder / "out.txt", "a") as out:
      self.process = subprocess.Popen(
        [*command, f"--workdir={self.run}"], cwd=self.tree, env=env, stdout=out, stderr=out
      )
    while self.step() < WARM_STEPS:
      if self.process.poll() is not None:
        raise SystemExit((self.folder / "out.txt").read_text())
      time.sleep(0.02)

  def step(self) -> int:
    """The step of the last whole record; 0 before the first."""
    with contextlib.suppress(OSError):
      lines = (self.run / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
      if lines:
        return json.loads(lines[-1])["step"]
    return 0

  def cpu_seconds(self) -> float:
    return sum(cpu_ticks(self.process.pid)) / os.sysconf("SC_CLK_TCK")

  def turn(self) -> None:
    self.process.send_signal(signal.SIGCONT)
    time.sleep(TURN_S)
    self.process.send_signal(signal.SIGSTOP)

  def peak_mib(self) -> float:
    status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024

  def kill(self) -> None:
    self.process.kill()
    self.process.wait()


@contextlib.contextmanager
def compiled(trees: dict[str, pathlib.Path], config: str, extra: list[str]):
  """{tree: Side}: a first run of each has compiled what it will need."""
  with contextlib.ExitStack() as stack:
    sides = {}
    for name, tree in trees.items():
      folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
      sides[name] = Side(tree, config, folder, extra)
      sides[name].start()
      sides[name].kill()
    yield sides


def compared(sides: dict[str, Side], seconds: float) -> dict:
  """{tree: {ms: CPU milliseconds per step, mib: peak memory, steps: counted}}"""
  with contextlib.ExitStack() as stack:
    for side in sides.values():
      side.start()
      stack.callback(side.kill)
      side.process.send_signal(signal.SIGSTOP)
    begin = {name: (side.step(), side.cpu_seconds()) for name, side in sides.items()}
    turn = 0
    while turn * TURN_S < seconds or any(
      side.step() < begin[name][0] + LEAST_STEPS for name, side in sides.items()
    ):
      turn += 1
      for name in list(sides)[:: 1 if turn % 2 else -1]:
        sides[name].turn()
    found = {}
    for name, side in sides.items():
      steps = side.step() - begin[name][0]
      cpu = side.cpu_seconds() - begin[name][1]
      found[name] = {"ms": 1e3 * cpu / steps, "mib": side.peak_mib(), "steps": steps}
    return found


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--before", required=True, help="the revision to compare with")
  parser.add_argument("--config", action="append", help="default: one of each family")
  parser.add_argument("--seconds", type=float, default=40, help="of each side, per round")
  parser.add_argument("--rounds", type=int, default=3)
  args, extra = parser.parse_known_args()
  results = {}
  with checked_out(args.before) as former:
    trees = {"before": former, "now": ROOT}
    for config in args.config or CONFIGS:
      with compiled(trees, config, extra) as sides:
        rounds = [compared(sides, args.seconds) for _ in range(args.rounds)]
      ratio = {
        what: [found["now"][what] / found["before"][what] for found in rounds]
        for what in ("ms", "mib")
      }
      results[config] = {"rounds": rounds, "ratio": ratio}
      print(f"{config}: {ratio}", file=sys.stderr, flush=True)
  print(f"\nnow / {args.before}, median of {args.rounds} rounds (range)\n")
  print("| config | before, CPU ms per step | now | step ratio | peak memory ratio |")
  print("| --- | --- | --- | --- | --- |")
  for config, found in results.items():
    before, now = (
      statistics.median(r[side]["ms"] for r in found["rounds"]) for side in ("before", "now")
    )
    print(
      f"| {config} | {before:.1f} | {now:.1f} | "
      + " | ".join(
        f"{statistics.median(r):.3f} ({min(r):.3f} to {max(r):.3f})"
        for r in found["ratio"].values()
      )
      + " |"
    )


if __name__ == "__main__":
  main()
