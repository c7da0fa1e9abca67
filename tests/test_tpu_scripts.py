"""The scripts of tpu/ say what they would do, and refuse what cannot be meant."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

TPU = pathlib.Path(__file__).parents[1] / "tpu"
VARIABLES = dict(PROJECT="p", ZONE="z", NAME="n", TOPOLOGY="v5e:4x4", WORKDIR="gs://b/r", CLUSTER="c", IMAGE="i",
                 DRY_RUN="1", TPU_ENV="/nonexistent")
CONFIG = "configs/carope/tiny.py"


def dry_run(script, *arguments, **variables):
  environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **VARIABLES, **variables}
  environment = {k: v for k, v in environment.items() if v is not None}
  return subprocess.run([TPU / script, *arguments], env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("topology, accelerator, runtime", [
    ("v4:2x2x4", "v4-32", "tpu-ubuntu2204-base"), ("v5e:16x16", "v5litepod-256", "v2-alpha-tpuv5-lite"),
    ("v5p:4x4x4", "v5p-128", "v2-alpha-tpuv5"), ("v6e:2x4", "v6e-8", "v2-alpha-tpuv6e")])
def test_a_topology_becomes_the_clouds_own_name_for_the_slice(topology, accelerator, runtime):
  done = dry_run("create.sh", TOPOLOGY=topology)
  assert done.returncode == 0, done.stderr
  assert f"--accelerator-type={accelerator} " in done.stdout and f"--runtime-version={runtime} " in done.stdout


def test_several_slices_are_several_nodes_everywhere():
  assert "--node-count=2 --node-prefix=n" in dry_run("create.sh", NUM_SLICES="2").stdout
  launched = dry_run("launch.sh", CONFIG, NUM_SLICES="2").stdout
  assert "ssh n-0 " in launched and "ssh n-1 " in launched


def test_overrides_reach_every_worker():
  for script in ("launch.sh", "profile.sh", "xpk.sh"):
    done = dry_run(script, CONFIG, "--config.train.steps=10")
    assert done.returncode == 0, done.stderr
    assert "--config.train.steps=10" in done.stdout and "--worker=all" in done.stdout or script == "xpk.sh"


@pytest.mark.parametrize("script", ["bootstrap.sh", "logs.sh", "delete.sh"])
def test_dry_run_prints_gcloud_commands_and_runs_none(script):
  done = dry_run(script)
  assert done.returncode == 0, done.stderr
  assert "gcloud compute tpus" in done.stdout


@pytest.mark.parametrize("script, arguments, variables, message", [
    ("create.sh", (), dict(TOPOLOGY="v9:4x4"), "known: v4 v5e v5p v6e"),
    ("create.sh", (), dict(TOPOLOGY="v5e"), "chip:AxB"),
    ("create.sh", (), dict(PROJECT=None), "PROJECT is not set"),
    ("launch.sh", ("configs/none.py",), {}, "no config file"),
    ("launch.sh", (), {}, "usage"),
    ("launch.sh", (CONFIG,), dict(WORKDIR="/tmp/x", DRY_RUN="0"), "not gs://")])
def test_bad_input_is_refused_with_the_remedy(script, arguments, variables, message):
  done = dry_run(script, *arguments, **variables)
  assert done.returncode == 2 and message in done.stderr


def test_scripts_are_shellcheck_clean():
  # Beside this interpreter (extra `test`); its folder need not be on PATH.
  shellcheck = shutil.which("shellcheck", path=os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ["PATH"]]))
  done = subprocess.run([shellcheck, "-x", "-P", str(TPU), *map(str, TPU.glob("*.sh"))], capture_output=True, text=True)
  assert done.returncode == 0, done.stdout
