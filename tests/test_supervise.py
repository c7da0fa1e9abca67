"""tpu/supervise.py: what it does after each exit code, and that nobody is needed for it to go on."""

import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from jaxlm.parallel.rollcall import LOST
from jaxlm.training.watchdog import HUNG

SCRIPT = pathlib.Path(__file__).parents[1] / "tpu" / "supervise.py"
spec = importlib.util.spec_from_file_location("supervise", SCRIPT)
supervise = importlib.util.module_from_spec(spec)
sys.modules["supervise"] = supervise
spec.loader.exec_module(supervise)


def judged(codes, lived_s=1.0, **rules):
  """State and reason after these exit codes, one attempt each."""
  tally = supervise.Tally(supervise.Rules(**rules))
  for code in codes:
    tally.attempt += 1
    verdict = tally.verdict(code, lived_s)
  return verdict


def test_the_codes_are_those_of_the_trainer():
  assert (supervise.LOST, supervise.HUNG) == (LOST, HUNG)


@pytest.mark.parametrize(
  "codes, state, why",
  [
    ([0], "finished", "finished"),
    ([2], "failed", "request is wrong"),
    ([1], "waiting", "crashed with code 1"),
    ([1, 1, 1], "failed", "3 crashes in a row"),
    ([-9, 137, 134], "failed", "3 crashes in a row"),
    ([1, 1, LOST, 1], "failed", "3 crashes"),
    ([LOST] * 9, "waiting", "was lost"),
    ([LOST] * 10, "failed", "does not come back"),
    ([HUNG], "waiting", "hung"),
    ([143], "waiting", "signal"),
    ([-15], "waiting", "signal"),
  ],
)
def test_a_preemption_is_not_a_crash(codes, state, why):
  assert judged(codes)[0] == state and why in judged(codes)[1]


def test_an_attempt_that_lived_long_begins_the_counts_again():
  assert judged([1] * 20, lived_s=601)[0] == "waiting"
  assert judged([LOST] * 50, lived_s=601)[0] == "waiting"
  assert judged([LOST] * 100, lived_s=601) == ("failed", "100 attempts")


COMMAND = """
import pathlib, sys, time
tries = pathlib.Path("tries")
number = len(tries.read_text()) if tries.exists() else 0
tries.write_text("x" * (number + 1))
print("attempt", number, flush=True)
code = {codes}[number]
time.sleep(60) if code == "stay" else sys.exit(code)
"""


class Host:
  """A folder in which one command is supervised."""

  def __init__(self, folder, codes):
    self.folder = folder
    self.command = [sys.executable, "-c", COMMAND.format(codes=codes)]

  def __call__(self, action, *flags):
    words = [sys.executable, SCRIPT, action, f"--folder={self.folder / 'run'}", *flags]
    words += ["--", *self.command] if action in ("start", "run") else []
    return subprocess.run(words, cwd=self.folder, capture_output=True, text=True, timeout=60)

  def status(self):
    return json.loads(self("status").stdout)

  def until(self, state):
    end = time.monotonic() + 30
    while (found := self.status())["state"] != state:
      assert time.monotonic() < end, found
      time.sleep(0.1)
    return found

  def log(self):
    return (self.folder / "run" / "log.txt").read_text()


def test_a_run_is_started_again_until_it_is_finished_and_needs_nobody(tmp_path):
  host = Host(tmp_path, [1, LOST, -1, 0])
  started = host(
    "start", "--pause_s=0.1"
  )  # the process that has started it is gone when it returns
  assert started.returncode == 0 and "in the background" in started.stdout
  assert host.until("finished")["attempt"] == 4
  assert "attempt 1 ended with code 1: it crashed with code 1" in host.log()
  assert "attempt 2 ended with code 75: another process of the run was lost" in host.log()
  assert host("stop").stdout == "nothing runs here\n"


def test_it_is_told_to_stop_looked_at_and_not_started_twice(tmp_path):
  host = Host(tmp_path, ["stay"])
  assert host("status").stdout == '{"state": "none"}\n'
  assert host("stacks").returncode == 1
  assert host("start").returncode == 0
  host.until("running")
  assert "runs already" in host("start").stdout
  other = Host(tmp_path, [0])
  done = other("start")
  assert done.returncode == 2 and "another command runs here" in done.stderr
  assert host("run").returncode == 2  # the foreground neither
  pid = host.status()["pid"]
  assert os.getsid(pid) == pid != os.getsid(0)  # no terminal's
  assert json.loads(host("stop").stdout)["state"] == "stopped"
  assert host.status()["state"] == "stopped" and host.status()["code"] == -signal.SIGTERM


def test_a_supervisor_that_is_gone_is_not_taken_for_one_that_runs(tmp_path):
  host = Host(tmp_path, ["stay", 0])
  host("start")
  found = host.until("running")
  os.kill(found["pid"], signal.SIGKILL)
  os.kill(found["child"], signal.SIGKILL)
  assert host.until("gone")["attempt"] == 1
  host("start")
  assert host.until("finished")["attempt"] == 1  # counted anew


def test_a_command_that_is_not_there_is_not_tried_again(tmp_path):
  host = Host(tmp_path, [])
  host.command = ["./no-such-jaxlm", "train"]
  assert host("run").returncode == 1
  assert host.status()["state"] == "failed" and "cannot be started" in host.log()
