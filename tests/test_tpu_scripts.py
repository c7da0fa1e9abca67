"""The scripts of tpu/ say what they would do, and refuse what cannot be meant."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest
from fake_cloud import Cloud

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
  CLUSTER_ENV="/nonexistent",
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
    ("create.sh", (), dict(CAPACITY="free"), "wanted spot, reservation or on-demand"),
    ("create.sh", (), dict(CAPACITY="reservation"), "RESERVATION is not set"),
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


@pytest.fixture
def cloud(tmp_path):
  """A slice of two hosts that exists, with the checkout on them."""
  made = Cloud(
    tmp_path / "cloud",
    **VARIABLES
    | {
      "DRY_RUN": "0",
      "STATE_TRIES": "1",
      "STATE_PAUSE": "0",
      "POLL_S": "0.2",
      "SUPERVISE": "--pause_s=0.1",
    },
  )
  yield made
  made.close()


@pytest.fixture
def slice_of_two(cloud):
  done = cloud.run([TPU / "create.sh"])
  assert done.returncode == 0, done.stderr
  for home in cloud.homes():  # what bootstrap.sh brings and launch.sh needs
    (home / "jaxlm" / "tpu").mkdir(parents=True)
    shutil.copy(TPU / "supervise.py", home / "jaxlm" / "tpu")
  return cloud


def launch(cloud, **variables):
  return cloud.run([TPU / "launch.sh", CONFIG], **variables)


def started(cloud):
  """How often each host has started the trainer."""
  return [len((home / "trained").read_text().splitlines()) for home in cloud.homes()]


def test_crashes_and_losses_are_mended_on_the_hosts_and_the_slice_is_kept(slice_of_two):
  slice_of_two.trains([1, 75, 143, 0])
  done = launch(slice_of_two)
  assert done.returncode == 0 and "finished: gs://b/r" in done.stderr, done.stderr
  assert started(slice_of_two) == [4, 4]
  assert not any("delete" in call for call in slice_of_two.asked())
  logs = slice_of_two.run([TPU / "logs.sh"], LOG_DIR=str(slice_of_two.folder / "logs"))
  assert logs.returncode == 0, logs.stderr
  log = (slice_of_two.folder / "logs" / "n-worker-1.log").read_text()
  assert "attempt 2 ended with code 75: another process of the run was lost" in log


def test_a_bug_ends_the_launch_on_all_hosts(slice_of_two):
  slice_of_two.trains([1, 1, 1])
  done = launch(slice_of_two)
  assert done.returncode == 1 and "3 crashes in a row" in done.stderr
  assert started(slice_of_two) == [3, 3]


def test_a_lost_connection_is_no_crash_and_ends_nothing(slice_of_two):
  with subprocess.Popen(
    [TPU / "launch.sh", CONFIG],
    env=slice_of_two.environment,
    stderr=subprocess.PIPE,
    text=True,
    cwd=TPU.parent,
    start_new_session=True,
  ) as laptop:
    lines = iter(laptop.stderr.readline, "")
    assert any("2 running" in line for line in lines)
    slice_of_two.say(offline=True)
    assert any("no answer from the hosts (2 times), slice is UNKNOWN" in line for line in lines)
    slice_of_two.say(offline=None)
    assert any("2 running" in line for line in lines)
    os.killpg(laptop.pid, signal.SIGINT)  # the lid is closed
    assert "the run goes on" in laptop.stderr.read()
  assert laptop.returncode == 130
  assert started(slice_of_two) == [1, 1]  # through all of it
  looked = slice_of_two.run([TPU / "status.sh"])
  assert looked.stdout.count('"state": "running"') == 2, looked.stderr
  again = launch(slice_of_two, DETACH="1")
  assert again.returncode == 0 and started(slice_of_two) == [1, 1]
  stopped = slice_of_two.run([TPU / "stop.sh"])
  assert stopped.stdout.count('"state": "stopped"') == 2, stopped.stderr


@pytest.mark.skipif(not (TPU.parent / ".git").exists(), reason="bootstrap.sh copies a git checkout")
def test_a_slice_that_was_taken_away_is_asked_for_again_and_the_run_goes_on(slice_of_two):
  with subprocess.Popen(
    [TPU / "launch.sh", CONFIG],
    env=slice_of_two.environment,
    stderr=subprocess.PIPE,
    text=True,
    cwd=TPU.parent,
  ) as laptop:
    lines = iter(laptop.stderr.readline, "")
    assert any("2 running" in line for line in lines)
    slice_of_two.trains([0])
    slice_of_two.take_away()  # the queued resource still says ACTIVE
    rest = "".join(lines)
  assert laptop.returncode == 0 and "slice is PREEMPTED" in rest and "finished" in rest, rest
  calls = [" ".join(call) for call in slice_of_two.asked()]
  for action, times in (("delete", 1), ("create", 2)):
    assert sum(f"queued-resources {action} n" in call for call in calls) == times
  assert all((home / "jaxlm" / "REVISION").exists() for home in slice_of_two.homes())


def test_the_environment_wins_over_the_file(tmp_path):
  (tmp_path / "env").write_text("TOPOLOGY=v5e:8x8\nNAME=from-file\n")
  done = dry_run("create.sh", CLUSTER_ENV=str(tmp_path / "env"), NAME=None)
  assert "accelerator-type=v5litepod-16 " in done.stdout and "create from-file" in done.stdout
