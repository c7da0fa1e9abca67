"""The real decoder on the embedded corpus: one loss curve on every mesh, and processes that die and
come back.
"""

import os
import pathlib
import random
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxlm.checkpoint.steps import Checkpoints
from jaxlm.parallel.mesh import make_mesh
from jaxlm.parallel.place import placer
from jaxlm.training import metrics
from jaxlm.training.config import load_config, run_config
from jaxlm.training.run import train
from jaxlm.training.step import build_program

CONFIG = str(pathlib.Path(__file__).parents[2] / "configs/carope/tiny.py")
SMALL = {
  "model.d_model": 32,
  "model.num_layers": 2,
  "model.unroll": 1,
  "model.vocab_size": 264,
  "data.seq_len": 16,
  "data.batch_size": 8,
  "schedule.warmup_steps": 2,
  "train.steps": 20,
  "train.log_every": 1,
  "eval.every": 0,
  "eval.lengths": (),
}


def losses(num_devices, **mesh):
  """The first 20 losses."""
  cfg = run_config(load_config(CONFIG, SMALL | {f"mesh.{k}": v for k, v in mesh.items()}))
  mesh = make_mesh(cfg.mesh, jax.devices()[:num_devices])
  batches = iter(cfg.data.build("train", seed=0))
  program, out = None, []
  for _ in range(20):
    batch = next(batches)
    if program is None:
      program = build_program(cfg, mesh, batch)
      with program.context():
        state = program.init()
    with program.context():
      state, found, _ = program.step(state, placer(mesh)(batch))
    out.append(found["loss"])
  return [float(pair.sum) / float(pair.weight) for pair in jax.device_get(out)]


@pytest.fixture(scope="module")
def single():
  return losses(1)


@pytest.mark.parametrize(
  "mesh",
  [
    dict(data=8, fsdp=1),
    dict(fsdp=8),
    dict(data=2, fsdp=2, tensor=2),
    dict(data=2, fsdp=2, sequence=2),
  ],
  ids=str,
)
def test_eight_devices_give_the_single_device_loss_curve(single, mesh):
  assert single[-1] < single[0] - 0.5  # it learns, so the curve says something
  # Float32 sums in another order: 1e-7 a step, amplified by Adam's division by small second
  # moments.
  np.testing.assert_allclose(losses(8, **mesh), single, rtol=2e-5)


def test_a_mesh_of_tensor_alone_gives_the_single_device_loss_curve(single):
  np.testing.assert_allclose(losses(2, data=1, fsdp=1, tensor=2), single, rtol=2e-5)


SAVING = SMALL | {"train.save_every": 4, "train.keep_last": 2}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """The run that nothing stops."""
  return train(CONFIG, tmp_path_factory.mktemp("runs") / "whole", SAVING, quiet=True)


def killed(folder, number, step):
  """Exit code of a process of the same run that gets a signal once it has said that it is past a
  step.
  """
  overrides = [f"--config.{key}={value}" for key, value in SAVING.items()]
  process = subprocess.Popen(
    [
      sys.executable,
      "-m",
      "jaxlm.cli",
      "train",
      f"--config={CONFIG}",
      f"--workdir={folder}",
      *overrides,
    ],
    stderr=subprocess.PIPE,
    text=True,
    env=os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"},
  )
  said = []
  for line in process.stderr:
    said.append(line)
    if line.startswith(f"step {step}/"):
      process.send_signal(number)
      break
  said += process.stderr.readlines()
  return process.wait(timeout=120), "".join(said)


@pytest.mark.parametrize(
  "number",
  [
    signal.SIGKILL,
    signal.SIGTERM,
    pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
    pytest.param(signal.SIGINT, marks=pytest.mark.slow),
  ],
  ids=lambda s: s.name,
)
def test_a_process_killed_at_a_random_step_and_resumed_ends_with_bit_identical_parameters(
  number, whole, tmp_path
):
  step = random.Random(number).randint(5, 15)
  folder = tmp_path / "r"
  code, said = killed(folder, number, step)
  with Checkpoints(folder / "checkpoints") as saved:
    newest = max(saved.steps())
  if number != signal.SIGKILL:
    assert code == 128 + number, said
    assert f"stopped by {number.name} at step {newest}, saved" in said and step <= newest < 20
  else:
    assert code == -signal.SIGKILL and newest % 4 == 0
  resumed = train(CONFIG, folder, SAVING, quiet=True)
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)),
    resumed.params,
    whole.params,
  )

  def steps(result):
    return [r["step"] for r in metrics.read(result.workdir) if "loss" in r]

  assert steps(resumed) == steps(whole) == list(range(1, 21))
