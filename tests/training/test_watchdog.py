"""A run that hangs says where; what its steps took of its wall time is logged."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import tiny_run

from jaxlm.config import ConfigError
from jaxlm.data import DATA
from jaxlm.training import metrics, watchdog
from jaxlm.training.config import load_config, run_config
from jaxlm.training.goodput import Goodput
from jaxlm.training.run import train
from jaxlm.training.watchdog import HUNG, HangConfig, Watchdog


@dataclasses.dataclass(frozen=True)
class StuckData(tiny_run.TinyData):
  """The batch of step `stuck` takes two seconds."""

  stuck: int = 30

  def build(self, split, *, seed, process_index=0, process_count=1, repeat=True):
    seen = iter(range(1, 1000))

    def wait_for_a_disk(batch):
      if split == "train" and next(seen) == self.stuck + 1:  # the first is for the shapes
        time.sleep(2)
      return batch

    return (
      super()
      .build(
        split, seed=seed, process_index=process_index, process_count=process_count, repeat=repeat
      )
      .map(wait_for_a_disk)
    )


DATA.table["tiny_stuck"] = f"{__name__}:StuckData"


def test_a_step_that_hangs_prints_the_stacks_and_the_run_goes_on(tmp_path, monkeypatch, capfd):
  monkeypatch.setattr(watchdog, "LEAST_S", 0.5)
  changes = {"data.kind": "tiny_stuck", "train.steps": 32, "train.log_every": 4}
  config = tiny_run.config(**changes, **{"train.hang.factor": 5.0})
  assert train(config, tmp_path / "run", quiet=True).finished
  said = capfd.readouterr().err
  assert "jaxlm: process 0 of 1 may hang: step 30 has taken " in said
  assert "wait_for_a_disk" in said and "train.hang" in said
  records = [r for r in metrics.read(tmp_path / "run") if "step_s" in r]
  assert records and all(0 < r["goodput"] <= 1 for r in records)
  notes = tmp_path / "run" / "checkpoints" / "32" / "note" / "metadata"
  assert json.loads(notes.read_text())["productive_s"] > 1  # also of the slow step


def test_it_is_said_again_after_twice_the_time_and_ends_the_process_where_asked(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(watchdog, "LEAST_S", 0.1)
  codes = []
  monkeypatch.setattr(watchdog.os, "_exit", codes.append)
  with open(tmp_path / "log", "wb+") as log:
    with Watchdog(HangConfig(longest_s=1, ends=True), "process 3 of 4", log.fileno()) as dog:
      dog.unusual("saving")
      time.sleep(2.7)
    said = (tmp_path / "log").read_text()
  assert said.count("process 3 of 4 may hang: saving has taken") == 2 == len(codes)
  assert set(codes) == {HUNG} and f"process 3 of 4 ends with code {HUNG}" in said


def test_neither_usual_steps_nor_what_may_take_long_counts(tmp_path, monkeypatch):
  monkeypatch.setattr(watchdog, "LEAST_S", 0.2)
  with open(tmp_path / "log", "wb+") as log:
    with Watchdog(HangConfig(factor=2), "process 0 of 1", log.fileno()) as dog:
      for number in range(20):
        dog.step(number)
        time.sleep(0.01)
      dog.unusual("evaluating")
      time.sleep(0.5)
      dog.step(20)
    assert not (tmp_path / "log").read_text()
  with Watchdog(HangConfig(factor=None), "", -1):  # never
    assert "watchdog" not in [thread.name for thread in threading.enumerate()]


def test_the_limits_are_checked():
  for pair in ({"train.hang.factor": 1.0}, {"train.hang.longest_s": 0}):
    with pytest.raises(ConfigError, match="train.hang"):
      run_config(load_config(tiny_run.config(), pair))


def test_a_signal_prints_the_stacks_and_the_process_goes_on():
  code = (
    "from jaxlm.training.watchdog import stacks_on_request; import os, signal\n"
    "def here():\n  os.kill(os.getpid(), signal.SIGUSR1)\n"
    "stacks_on_request(); here(); print('on')"
  )
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
  assert done.returncode == 0 and done.stdout == "on\n" and "in here" in done.stderr
  assert signal.SIGUSR1 and os.name == "posix"


def test_goodput_counts_the_time_between_starts_and_no_step_twice():
  now = time.time()
  starts = [{"started_unix": now - 100}, {"started_unix": now - 20}]
  goodput = Goodput.of_run(starts, {"productive_s": 40.0})  # of the checkpoint it resumes from
  goodput.here = 10.0
  assert goodput.productive_s == 50 and abs(goodput.fraction() - 0.5) < 0.01
  assert Goodput.of_run([{"started": "of an older jaxlm"}], {}).fraction() <= 1
