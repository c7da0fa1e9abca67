"""SIGKILL at seeded random moments, imports and saves included: the resumed run ends with the bits
of one that nothing stopped.

Real processes, `python -m jaxlm.cli train`. Half of the kills come at any moment of the run's
length, the others while a save is under way. The final state, every array of it, and every number
of metrics.jsonl are compared, times excepted.
"""

import collections
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import summary

from jaxlm.training import metrics

KILLS = 14
CONFIGS = os.path.join(os.path.dirname(__file__), "..", "..", "configs")
SHORT = {
  "train.steps": 24,
  "train.save_every": 3,
  "train.log_every": 1,
  "train.keep_last": 2,
  "eval.every": 12,
  "eval.num_tokens": 512,
}
#: kind -> (file, overrides, processes)
RUNS = {
  "H-Net": (
    "hnet/tiny.py",
    {
      "model.layout": "m1 [T1] m1",
      "data.seq_len": 64,
      "data.batch_size": 4,
      "schedule.warmup_steps": 4,
      "objective.capacities": "((16,), (32,), (64,))",
    },
    1,
  ),
  "MrT5": (
    "mrt5/smoke.py",
    {
      "model.d_model": 32,
      "model.d_ff": 64,
      "model.num_encoder_layers": 2,
      "model.num_decoder_layers": 1,
      "model.unroll": 1,
      "data.batch_size": 8,
      "data.rows": 256,
      "schedule.warmup_steps": 4,
      "objective.delay": 3,
      "objective.hard_probability": 0.5,
      "objective.capacities": "(16, 24, 32)",
    },
    1,
  ),
  "ILM": (
    "ilm/star_easy.py",
    {
      "model.d_model": 48,
      "model.num_layers": 2,
      "model.mlp.d_ff": 64,
      "data.batch_size": 8,
      "schedule.warmup_steps": 4,
    },
    1,
  ),
  "two hosts": (
    "carope/tiny.py",
    {
      "model.d_model": 32,
      "model.num_layers": 1,
      "model.unroll": 1,
      "model.mixer.num_heads": 2,
      "data.seq_len": 32,
      "data.batch_size": 8,
      "schedule.warmup_steps": 4,
      "eval.lengths": "()",
    },
    2,
  ),
}
TIMES = ("tokens_per_s", "step_s", "mfu", "goodput")


def start(kind: str, folder) -> list[subprocess.Popen]:
  """The processes of the run, which begin or resume it."""
  file, overrides, count = RUNS[kind]
  command = [
    sys.executable,
    "-m",
    "jaxlm.cli",
    "train",
    "--quiet",
    f"--config={os.path.join(CONFIGS, file)}",
    f"--workdir={folder}",
    *(f"--config.{key}={value}" for key, value in (SHORT | overrides).items()),
  ]
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"
  processes = []
  for index in range(count):
    env = os.environ | {
      "JAX_PLATFORMS": "cpu",
      "JAX_NUM_CPU_DEVICES": "1",
      "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "compiled"),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    if count > 1:
      env |= {
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(count),
        "JAX_PROCESS_ID": str(index),
      }
    with open(folder.with_suffix(f".{index}.txt"), "a") as said:
      processes.append(subprocess.Popen(command, stdout=said, stderr=said, env=env))
  return processes


def finish(processes, folder) -> None:
  for index, process in enumerate(processes):
    try:
      assert process.wait(timeout=300) == 0, folder.with_suffix(f".{index}.txt").read_text()[-3000:]
    finally:
      process.kill()


def size(file) -> int:
  return file.stat().st_size if file.exists() else 0


def saving(folder) -> bool:
  """Whether a step is half written at this moment."""
  try:
    return any("tmp" in name for name in os.listdir(folder / "checkpoints"))
  except OSError:
    return False


def final(folder):
  """({array: value} of the last step, the numbers of metrics.jsonl without times)."""
  handlers = {"state": ocp.PyTreeCheckpointHandler()}
  with ocp.CheckpointManager(
    folder / "checkpoints",
    item_handlers=handlers,
    options=ocp.CheckpointManagerOptions(read_only=True),
  ) as manager:
    step = manager.latest_step()
    saved = manager.item_metadata(step)["state"]
    saved = getattr(saved, "tree", saved)
    # As NumPy arrays, for two hosts had other devices than this process.
    how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
    state = manager.restore(
      step, args=ocp.args.Composite(state=ocp.args.PyTreeRestore(item=saved, restore_args=how))
    ).state
  arrays = {
    jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(state)
  }
  return arrays, [
    {k: v for k, v in record.items() if k not in TIMES} for record in metrics.read(folder)
  ]


def differing(a, b) -> int:
  """How many arrays and records are not the same to the last bit."""
  (arrays, records), (others, theirs) = a, b
  bad = (
    len(set(arrays) ^ set(others))
    + abs(len(records) - len(theirs))
    + sum(x != y for x, y in zip(records, theirs))
  )
  return bad + sum(
    x.dtype != others[name].dtype or x.tobytes() != others[name].tobytes()
    for name, x in arrays.items()
    if name in others
  )


@pytest.mark.parametrize("kind", RUNS)
def test_a_killed_run_ends_as_one_that_nothing_stopped(kind, tmp_path):
  rng, came, wrong = random.Random(kind), collections.Counter(), 0
  whole = tmp_path / "whole"
  finish(start(kind, whole), whole)
  began = time.monotonic()
  again = tmp_path / "again"
  finish(start(kind, again), again)  # compiled already, as the runs below
  length = time.monotonic() - began
  wanted = final(whole)
  wrong += differing(wanted, final(again))
  kills = number = 0
  folder = tmp_path / f"r{number}"
  while kills < KILLS:
    written = size(folder / metrics.JSONL)
    processes, during = start(kind, folder), rng.random() < 0.5
    end = time.monotonic() + (
      rng.uniform(0.25, 1) * length if during else rng.uniform(0.05, 1) * length
    )
    while time.monotonic() < end and all(p.poll() is None for p in processes):
      time.sleep(0.001)
    if during:  # the next save, or the end
      while not saving(folder) and all(p.poll() is None for p in processes):
        time.sleep(0.0005)
    if all(p.poll() is None for p in processes):
      moment = (
        "in a save"
        if saving(folder)
        else "as it started"
        if size(folder / metrics.JSONL) == written
        else "between saves"
      )
      for process in rng.sample(processes, len(processes)):
        process.send_signal(signal.SIGKILL)
        time.sleep(rng.choice((0, 0.3)) if len(processes) > 1 else 0)
      for process in processes:
        process.wait()
      kills += 1
      came[f"killed {moment}"] += 1
      continue
    finish(processes, folder)  # it was done before the kill: another one
    wrong += differing(wanted, final(folder))
    came["runs compared"] += 1
    shutil.rmtree(folder)
    number += 1
    folder = tmp_path / f"r{number}"
  finish(start(kind, folder), folder)
  wrong += differing(wanted, final(folder))
  came["runs compared"] += 1
  summary.record("SIGKILL", kind, kills, wrong, came)
  assert wrong == 0
