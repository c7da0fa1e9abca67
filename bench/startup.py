"""How long `jaxlm train` takes to its first step: cold, warm, and after a kill.

  python bench/startup.py                          this tree
  python bench/startup.py --before=7bb612d         and another revision, in turns

cold: no compiled program is kept yet. warm: the same command in a new folder, with what the cold run
has kept (a revision without a cache keeps nothing). restart: a run is killed by SIGKILL behind its
checkpoint of step 5 and started again, until it has taken its next step. Wall seconds run from the
start of the process to the first record in metrics.jsonl; CPU seconds, of user and system, are those
of the process until then, and say more where other programs run. Load: runnable processes in the
last minute.
"""

import argparse
import contextlib
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[1]
FLAGS = (
  "--config.train.log_every=1",
  "--config.train.save_every=5",
  "--config.train.steps=100000",
  "--config.eval.every=0",
)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--config", default="configs/carope/tiny.py")
  parser.add_argument("--before", help="a revision to compare with")
  parser.add_argument("--rounds", type=int, default=1)
  args = parser.parse_args()
  with contextlib.ExitStack() as stack:
    trees = {"now": ROOT}
    if args.before:
      trees = {args.before: stack.enter_context(checked_out(args.before))} | trees
    found = {}
    for _ in range(args.rounds):
      for name, tree in trees.items():
        for what, numbers in measured(tree, args.config).items():
          found.setdefault((what, name), []).append(numbers)
          print(f"{what:8} {name:10} {row(numbers)}", file=sys.stderr, flush=True)
  print(f"\n{args.config}, {os.cpu_count()} cores, median of {args.rounds}\n")
  print("| start | tree | wall s | CPU s | load |\n| --- | --- | --- | --- | --- |")
  for (what, name), rounds in sorted(found.items()):
    wall, cpu, load = (statistics.median(x) for x in zip(*rounds))
    print(f"| {what} | {name} | {wall:.1f} | {cpu:.1f} | {load:.1f} |")


def row(numbers) -> str:
  return "wall {:6.1f} s  CPU {:6.1f} s  load {:5.1f}".format(*numbers)


@contextlib.contextmanager
def checked_out(revision: str):
  with tempfile.TemporaryDirectory() as folder:
    tree = pathlib.Path(folder) / "tree"
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "-q", "--detach", str(tree), revision], check=True)
    try:
      yield tree
    finally:
      subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def measured(tree: pathlib.Path, config: str) -> dict[str, tuple[float, float, float]]:
  """{start: (wall seconds, CPU seconds, load)} in an empty home."""
  with tempfile.TemporaryDirectory() as folder:
    runs = pathlib.Path(folder)
    unwanted = ("JAX_COMPILATION", "JAX_PERSISTENT", "JAXLM_")
    env = {k: v for k, v in os.environ.items() if not k.startswith(unwanted)}
    env |= {"HOME": folder, "PYTHONPATH": str(tree), "JAX_PLATFORMS": "cpu"}

    def start(name, until):
      command = [sys.executable, "-m", "jaxlm.cli", "train", f"--config={config}", *FLAGS]
      begin, load = time.perf_counter(), os.getloadavg()[0]
      with open(runs / f"{name}.txt", "a") as out:
        process = subprocess.Popen(
          [*command, f"--workdir={runs / name}"], cwd=tree, env=env, stdout=out, stderr=out
        )
      while not until(runs / name):
        if process.poll() is not None:
          raise SystemExit((runs / f"{name}.txt").read_text())
        time.sleep(0.01)
      wall = time.perf_counter() - begin
      cpu = sum(cpu_ticks(process.pid)) / os.sysconf("SC_CLK_TCK")
      process.send_signal(signal.SIGKILL)
      process.wait()
      return wall, cpu, load

    found = {"cold": start("one", lambda run: records(run) >= 1)}
    found["warm"] = start("two", lambda run: records(run) >= 1)
    start("three", lambda run: (run / "checkpoints/5/_CHECKPOINT_METADATA").exists())
    old = (runs / "three" / "metrics.jsonl").stat().st_ino  # a restart writes the file anew
    found["restart"] = start("three", lambda run: last_is(run, 6, old))
    return found


def records(run: pathlib.Path) -> int:
  with contextlib.suppress(OSError):
    return (run / "metrics.jsonl").read_bytes().count(b"\n")
  return 0


def last_is(run: pathlib.Path, step: int, old: int) -> bool:
  """Whether the newest record is of this step, in a file that is not the old one: it was cut back to
  the checkpoint's.
  """
  with contextlib.suppress(OSError):
    if (run / "metrics.jsonl").stat().st_ino == old:
      return False
    return (
      (run / "metrics.jsonl").read_bytes().rpartition(b'{"step": ')[2].startswith(b"%d," % step)
    )
  return False


def cpu_ticks(pid: int) -> tuple[int, int]:
  fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
  return int(fields[11]), int(fields[12])


if __name__ == "__main__":
  main()
