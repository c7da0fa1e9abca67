"""The GPU's flags: known to XLA, set only where there is a GPU, and never over the user's."""

import os
import subprocess
import sys

from jaxlm.parallel import gpu


def test_every_flag_is_known_to_xla():
  # XLA ends a process that is given a flag it does not know, on any platform.
  out = subprocess.run(
    [sys.executable, "-c", "import jax; print(jax.device_count())"],
    capture_output=True,
    text=True,
    env=os.environ | {"XLA_FLAGS": gpu.flags(), "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"},
  )
  assert out.returncode == 0 and out.stdout.strip() == "1", out.stderr
  bad = subprocess.run(
    [sys.executable, "-c", "import jax; jax.devices()"],
    capture_output=True,
    text=True,
    env=os.environ
    | {"XLA_FLAGS": gpu.flags() + " --xla_gpu_no_such_flag=1", "JAX_PLATFORMS": "cpu"},
  )
  assert bad.returncode != 0


def test_flags_are_set_for_a_gpu_only_and_never_over_the_users(tmp_path):
  assert not gpu.set_flags(here := {}, devices=tmp_path) and here == {}  # no GPU
  (tmp_path / "nvidiactl").touch()
  assert not gpu.set_flags({}, devices=tmp_path)  # a driver without a card
  (tmp_path / "nvidia0").touch()
  assert not gpu.set_flags({"JAX_PLATFORMS": "cpu"}, devices=tmp_path)  # a run on the CPU beside it
  mine = {"XLA_FLAGS": "--xla_dump_to=/tmp"}
  assert not gpu.set_flags(mine, devices=tmp_path) and mine["XLA_FLAGS"] == "--xla_dump_to=/tmp"
  assert gpu.set_flags(here, devices=tmp_path) and here["XLA_FLAGS"] == gpu.flags()
