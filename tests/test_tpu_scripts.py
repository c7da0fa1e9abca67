"""The scripts of tpu/ say what they would do, and refuse what cannot be meant."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

TPU = pathlib.Path(__file__).parents[1] / "tpu"
VARIABLES = dict(
  PROJECT="p",
  ZONE="z",
  NAME="n",
  TOPOLOGY="v5e:4x4",
  WORKDIR="gs://b/r",
  CLUSTER="c",
  IMAGE="i",
  DRY_RUN="1",
  TPU_ENV="/nonexistent",
)
CONFIG = "configs/carope/tiny.py"


def dry_run(script, *arguments, **variables):
  environment = {
    "PATH": os.environ["PATH"],
    "HOME": os.environ.get("HOME", "/"),
    **VARIABLES,
    **variables,
  }
  environment = {k: v for k, v in environment.items() if v is not None}
  return subprocess.run(
    [TPU / script, *arguments], env=environment, capture_output=True, text=True, timeout=60
  )


@pytest.mark.parametrize(
  "topology, accelerator, runtime",
  [
    ("v4:2x2x4", "v4-32", "tpu-ubuntu2204-base"),
    ("v5e:16x16", "v5litepod-256", "v2-alpha-tpuv5-lite"),
    ("v5p:4x4x4", "v5p-128", "v2-alpha-tpuv5"),
    ("v6e:2x4", "v6e-8", "v2-alpha-tpuv6e"),
  ],
)
def test_a_topology_becomes_the_clouds_own_name_for_the_slice(topology, accelerator, runtime):
  done = dry_run("create.sh", TOPOLOGY=topology)
  assert done.returncode == 0, done.stderr
  assert (
    f"--accelerator-type={accelerator} " in done.stdout
    and f"--runtime-version={runtime} " in done.stdout
  )


def test_several_slices_are_several_nodes_everywhere():
  assert "--node-count=2 --node-prefix=n" in dry_run("create.sh", NUM_SLICES="2").stdout
  launched = dry_run("launch.sh", CONFIG, NUM_SLICES="2").stdout
  assert "ssh n-0 " in launched and "ssh n-1 " in launched


def test_overrides_reach_every_worker():
  for script in ("launch.sh", "profile.sh", "xpk.sh"):
    done = dry_run(script, CONFIG, "--config.train.steps=10")
    assert done.returncode == 0, done.stderr
    assert (
      "--config.train.steps=10" in done.stdout
      and "--worker=all" in done.stdout
      or script == "xpk.sh"
    )


@pytest.mark.parametrize("script", ["bootstrap.sh", "logs.sh", "delete.sh"])
def test_dry_run_prints_gcloud_commands_and_runs_none(script):
  done = dry_run(script)
  assert done.returncode == 0, done.stderr
  assert "gcloud compute tpus" in done.stdout


@pytest.mark.parametrize(
  "script, arguments, variables, message",
  [
    ("create.sh", (), dict(TOPOLOGY="v9:4x4"), "known: v4 v5e v5p v6e"),
    ("create.sh", (), dict(TOPOLOGY="v5e"), "chip:AxB"),
    ("create.sh", (), dict(PROJECT=None), "PROJECT is not set"),
    ("launch.sh", ("configs/none.py",), {}, "no config file"),
    ("launch.sh", (), {}, "usage"),
    ("launch.sh", (CONFIG,), dict(WORKDIR="/tmp/x", DRY_RUN="0"), "not gs://"),
  ],
)
def test_bad_input_is_refused_with_the_remedy(script, arguments, variables, message):
  done = dry_run(script, *arguments, **variables)
  assert done.returncode == 2 and message in done.stderr


def test_scripts_are_shellcheck_clean():
  # Beside this interpreter (extra `test`); its folder need not be on PATH.
  shellcheck = shutil.which(
    "shellcheck",
    path=os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ["PATH"]]),
  )
  done = subprocess.run(
    [shellcheck, "-x", "-P", str(TPU), *map(str, TPU.glob("*.sh"))], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stdout


GCLOUD = """#!/usr/bin/env bash
# Stands for gcloud: writes down what it is asked; training fails as often as $FAILURES says, `describe` answers $STATE.
echo "$*" >> "$LOG"
case "$*" in
  *"jaxlm train --config"*) [[ "$(grep -c 'jaxlm train --config' "$LOG")" -gt "$FAILURES" ]] ;;
  *describe*) [[ "$STATE" == ACTIVE ]] && echo ACTIVE || { echo "$STATE" >&2; exit 1; } ;;
esac
"""


def launched(folder, failures, state):
  """launch.sh against a gcloud of ours, and what that was asked."""
  (folder / "gcloud").write_text(GCLOUD)
  (folder / "gcloud").chmod(0o755)
  done = dry_run(
    "launch.sh",
    CONFIG,
    DRY_RUN="0",
    PATH=f"{folder}{os.pathsep}{os.environ['PATH']}",
    LOG=str(folder / "log"),
    FAILURES=str(failures),
    STATE=state,
    STATE_TRIES="2",
    STATE_PAUSE="0",
    RESTART_PAUSE="0",
    RETRIES="4",
  )
  return done, (folder / "log").read_text().splitlines()


def test_a_crash_on_a_living_slice_is_cleared_away_and_tried_again(tmp_path):
  done, asked = launched(tmp_path, 2, "ACTIVE")
  assert done.returncode == 0, done.stderr
  cleared = [line for line in asked if "pkill" in line]
  assert len(cleared) == 2 and all(
    "'[j]axlm train'" in line for line in cleared
  )  # a plain pattern finds its own shell
  assert sum("jaxlm train --config" in line for line in asked) == 3 and not any(
    "delete" in line for line in asked
  )


def test_three_crashes_in_a_row_end_the_launch(tmp_path):
  done, _ = launched(tmp_path, 9, "ACTIVE")
  assert done.returncode == 2 and "three failures on a living slice" in done.stderr


def test_a_slice_that_cannot_be_asked_about_is_not_deleted(tmp_path):
  done, asked = launched(tmp_path, 9, "ERROR: could not resolve host")
  assert (
    done.returncode == 2
    and "may still be training" in done.stderr
    and not any("delete" in line for line in asked)
  )


def test_a_slice_that_was_taken_away_is_asked_for_again(tmp_path):
  done, asked = launched(tmp_path, 9, "ERROR: NOT_FOUND")
  assert done.returncode == 2 and any(
    "queued-resources delete" in line for line in asked
  )  # create.sh then finds none
  assert any("queued-resources create" in line for line in asked)


def test_the_environment_wins_over_the_file(tmp_path):
  (tmp_path / "env").write_text("TOPOLOGY=v5e:8x8\nNAME=from-file\n")
  done = dry_run("create.sh", TPU_ENV=str(tmp_path / "env"), NAME=None)
  assert "accelerator-type=v5litepod-16 " in done.stdout and "create from-file" in done.stdout
