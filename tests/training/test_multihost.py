"""Real processes on loopback, two simulated devices each, collectives by Gloo, all through
`jaxlm train`.
"""

import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from jaxlm.checkpoint.reading import restore_params
from jaxlm.parallel.rollcall import LOST
from jaxlm.training import metrics

HERE = pathlib.Path(__file__).parent
STEPS, SAVE_EVERY = 12, 4
CONFIG = f"""
import tiny_run

def get_config():
  return tiny_run.config(**{{
      "data.kind": "tiny_paced", "train.steps": {STEPS}, "train.save_every": {SAVE_EVERY}, "train.keep_last": 9,
      "mesh.data": 1, "mesh.fsdp": -1}})
"""


class Run:
  """`count` processes of one run; `said(i)` is what process i wrote to stderr.

  own: {index: flags and variables of this process alone}; of_all: flags of all.
  """

  def __init__(self, folder, count, *, devices=2, only=None, own={}, of_all=(), **environment):  # noqa: B006
    folder.parent.mkdir(parents=True, exist_ok=True)
    config = folder.with_suffix(".py")
    config.write_text(CONFIG)
    self.started = time.monotonic()
    with socket.socket() as free:
      free.bind(("127.0.0.1", 0))
      address = f"127.0.0.1:{free.getsockname()[1]}"
    self.folder, self.processes, self.outputs = folder, {}, {}
    for index in range(count) if only is None else only:
      env = (
        os.environ
        | {
          "JAX_PLATFORMS": "cpu",
          "JAX_NUM_CPU_DEVICES": str(devices),
          "PYTHONPATH": os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH")))),
          "JAX_DISABLE_MOST_OPTIMIZATIONS": "True",
          # What one run has compiled the next does not: a quarter of the time of these tests.
          "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "compiled"),
          "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
          "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        | environment
      )
      if count > 1:
        env |= {
          "JAX_COORDINATOR_ADDRESS": address,
          "JAX_NUM_PROCESSES": str(count),
          "JAX_PROCESS_ID": str(index),
        }
      self.outputs[index] = folder.with_suffix(f".{index}.txt")
      with open(self.outputs[index], "a") as output:
        self.processes[index] = subprocess.Popen(
          [
            sys.executable,
            "-m",
            "jaxlm.cli",
            "train",
            f"--config={config}",
            f"--workdir={folder}",
            *of_all,
            *[word for word in own.get(index, ()) if word.startswith("--")],
          ],
          stdout=output,
          stderr=output,
          cwd=HERE,
          env=env
          | dict(word.split("=", 1) for word in own.get(index, ()) if not word.startswith("--")),
        )

  def said(self, index):
    return self.outputs[index].read_text()

  def codes(self, timeout=240):
    """Exit codes; no process outlives a test."""
    try:
      end = time.monotonic() + timeout
      return [process.wait(max(end - time.monotonic(), 0.1)) for process in self.processes.values()]
    finally:
      for process in self.processes.values():
        process.kill()

  def until(self, text, timeout=240):
    """Waits until process 0 has said it."""
    end = time.monotonic() + timeout
    while text not in self.said(0):
      assert time.monotonic() < end and self.processes[0].poll() is None, self.said(0)
      time.sleep(0.02)
    return self


def losses(folder, first=1):
  """The loss of each step, each written once."""
  records = [r for r in metrics.read(folder) if "loss" in r]
  assert [r["step"] for r in records] == list(range(1, STEPS + 1))
  return [r["loss"] for r in records[first - 1 :]]


def steps(folder):
  return {int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def one(runs):
  """One process with all four devices."""
  run = Run(runs / "one", 1, devices=4)
  assert run.codes() == [0], run.said(0)
  return run.folder


@pytest.fixture(scope="module")
def two(runs):
  """Two processes, never stopped."""
  run = Run(runs / "two", 2)
  assert run.codes() == [0, 0], run.said(0) + run.said(1)
  return run


def assert_losses_agree(folder, one, first=1):
  # The same global batches, summed in another order: a few float32 roundings (1e-7 each), amplified
  # by Adam.
  np.testing.assert_allclose(losses(folder, first), losses(one, first), rtol=1e-5)


def test_two_processes_compute_what_one_does_and_write_everything_once(one, two):
  assert_losses_agree(two.folder, one)

  def last(folder):
    return [r["eval/loss"] for r in metrics.read(folder) if "eval/loss" in r]

  assert len(last(two.folder)) == 1
  np.testing.assert_allclose(last(two.folder), last(one), rtol=1e-5)
  (start,) = json.loads((two.folder / "run.json").read_text())
  assert start["processes"] == 2 and start["devices"] == "4 x cpu"
  assert len(list((two.folder / "events").iterdir())) == 1
  assert (
    steps(two.folder) == {4, 8, 12}
    and json.loads((two.folder / "result.json").read_text())["finished"]
  )
  assert "step 1/12" in two.said(0) and "step" not in two.said(1)


@pytest.mark.parametrize("victim", [1, 0])
def test_a_killed_process_ends_the_other_and_both_together_continue_bit_for_bit(victim, two, runs):
  folder = runs / f"killed{victim}"
  run = Run(folder, 2).until("step 6/12")
  run.processes[victim].send_signal(signal.SIGKILL)
  killed = time.monotonic()
  codes = run.codes(timeout=60)
  assert codes[victim] == -signal.SIGKILL and codes[1 - victim] == LOST, run.said(1 - victim)
  assert time.monotonic() - killed < 40
  assert f"process {victim} of 2 has ended or cannot be reached" in run.said(1 - victim)
  assert not re.search("Traceback|terminat|coordination", run.said(1 - victim))
  newest = max(steps(folder))
  assert newest < STEPS
  # As if the machine had died in the middle of a later save.
  shutil.copytree(
    folder / "checkpoints" / str(newest),
    folder / "checkpoints" / f"{newest + 1}.orbax-checkpoint-tmp",
  )
  again = Run(folder, 2)
  assert again.codes() == [0, 0], again.said(0)
  assert f"resumed at step {newest} in " in again.said(0)
  got, want = restore_params(folder).params, restore_params(two.folder).params
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), got, want)
  assert losses(folder) == losses(two.folder)


@pytest.mark.parametrize("victim", [1, 0])
def test_a_stopped_process_ends_the_other_within_the_time_out(victim, runs):
  run = Run(runs / f"stopped{victim}", 2, JAXLM_LOST_TIMEOUT_S="6").until("step 3/12")
  run.processes[victim].send_signal(signal.SIGSTOP)
  try:
    assert run.processes[1 - victim].wait(timeout=30) == LOST
  finally:
    run.processes[victim].kill()
    run.codes()
  assert f"process {victim} of 2 has not been heard of for 6 s (JAXLM_LOST_TIMEOUT_S)" in run.said(
    1 - victim
  )
  assert not re.search("Traceback|terminat|coordination", run.said(1 - victim))


def test_processes_with_other_settings_end_before_the_first_step_and_say_which(runs):
  for name, own, said in (
    ("seed", "--config.seed=9", "seed is 3 in process 0 and 9 in process 1;"),
    (
      "folder",
      f"--workdir={runs / 'elsewhere'}",
      f"--workdir is {runs / 'folder'} in process 0 and {runs / 'elsewhere'}",
    ),
  ):
    run = Run(runs / name, 2, own={1: [own]})
    assert run.codes(timeout=60) == [2, 2]
    for index in range(2):
      assert f"jaxlm train: the processes of this run differ: {said}" in run.said(index)
      assert not re.search("Traceback|terminat|coordination", run.said(index))
    assert not (runs / name).exists()


def test_processes_with_other_texts_end_before_the_first_step_and_say_so(runs):
  for index, lines in enumerate((300, 200)):
    (runs / f"home{index}").mkdir()
    (runs / f"home{index}" / "corpus.txt").write_text("a line of text\n" * lines)
  text = [
    f"--config.{pair}"
    for pair in (
      "data.kind=text",
      "data.source=text:~/corpus.txt",
      "data.seq_len=8",
      "data.batch_size=8",
      "model.vocab_size=260",
    )
  ]
  run = Run(
    runs / "texts",
    2,
    of_all=text,
    own={i: [f"HOME={runs / f'home{i}'}", f"JAXLM_DATA={runs / f'home{i}'}"] for i in range(2)},
  )
  assert run.codes(timeout=60) == [2, 2]
  for index in range(2):
    assert re.search(
      r"the processes of this run differ: the data's data is \w+ in process 0 and \w+ in process 1;",
      run.said(index),
    )
    assert "Traceback" not in run.said(index)
  assert not (runs / "texts" / "checkpoints").exists()


def test_sigterm_to_one_of_four_processes_stops_all_at_one_step_and_one_process_goes_on(one, runs):
  folder = runs / "four"
  run = Run(folder, 4).until("step 5/12")
  run.processes[2].send_signal(signal.SIGTERM)
  assert run.codes() == [128 + signal.SIGTERM] * 4, run.said(0)
  result = json.loads((folder / "result.json").read_text())
  assert (
    not result["finished"]
    and result["stopped"] == "SIGTERM"
    and max(steps(folder)) == result["step"] < STEPS
  )
  assert f"stopped by SIGTERM at step {result['step']}, saved" in run.said(0)
  alone = Run(folder, 1, devices=1)
  assert alone.codes() == [0], alone.said(0)
  assert_losses_agree(folder, one)


def test_two_processes_go_on_with_what_one_saved(one, runs):
  folder = runs / "taken_over"
  shutil.copytree(one, folder)
  for step in (8, 12):
    shutil.rmtree(folder / "checkpoints" / str(step))
  run = Run(folder, 2)
  assert run.codes() == [0, 0], run.said(0)
  assert "resumed at step 4 in " in run.said(0)
  assert_losses_agree(folder, one, first=5)


def test_a_process_that_does_not_come_is_named(runs):
  for count, present, missing in ((2, 0, "process 1 of 2"), (3, 1, "process 0 of 3")):
    run = Run(runs / f"alone{present}", count, only=[present], JAXLM_START_TIMEOUT_S="1")
    assert run.codes() == [LOST]
    assert f"jaxlm train: {missing} did not join within 1 s (coordinator 127.0.0.1:" in run.said(
      present
    )
    assert "Traceback" not in run.said(present)
