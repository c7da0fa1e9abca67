"""One process at a time writes to a run folder; a dead one's lock is free at once on a local disk,
a lease after a while.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys

import pytest
import tiny_run

from jaxlm.checkpoint.reading import restore_params
from jaxlm.config import ConfigError
from jaxlm.training import command, loop, run_lock
from jaxlm.training.loop import one_step
from jaxlm.training.run import train
from jaxlm.training.run_lock import LOCK, LockLost, RunLocked, hold

SMALL = {
  "mesh.fsdp": 1,
  "mesh.data": 8,
  "train.save_every": 2,
  "schedule": "constant",
  "eval.every": 0,
}
HOLDER = """
import os, sys, time
from jaxlm.training.run_lock import hold
with hold(sys.argv[1]):
  if "fork" in sys.argv:
    child = os.fork()
    if child:
      print(child, flush=True)
  else:
    print(0, flush=True)
  time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
  """start(*words) -> (process that holds the folder's lock, its forked child or 0); none outlives
  the test.
  """
  started = []

  def start(*words):
    process = subprocess.Popen(
      [sys.executable, "-c", HOLDER, str(tmp_path), *words], stdout=subprocess.PIPE, text=True
    )
    started.append(process.pid)
    child = int(process.stdout.readline())
    started.extend([child] * bool(child))
    return process, child

  yield start
  for pid in started:
    try:
      os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
      pass


def test_a_second_run_in_the_folder_is_refused_and_told_who_has_it(tmp_path, capsys):
  config = tmp_path / "config.py"
  config.write_text("import tiny_run\ndef get_config():\n  return tiny_run.config()\n")
  folder = tmp_path / "r"
  folder.mkdir()
  (folder / "config.json").write_text("{}")
  with hold(folder):
    assert command.main([f"--config={config}", f"--workdir={folder}", "--config.seed=7"]) == 2
  said = capsys.readouterr().err
  assert re.search(
    rf"is in use by process {os.getpid()} on host {re.escape(socket.gethostname())}, started \d{{4}}-\d\d-\d\d "
    rf"\d\d:\d\d:\d\d \S*; wait, choose another --workdir, or end it first",
    said,
  ), said
  assert "Traceback" not in said and sorted(os.listdir(folder)) == ["config.json"]


def test_a_killed_owner_holds_nothing_and_neither_does_its_child(tmp_path, holder):
  process, child = holder("fork")
  with pytest.raises(RunLocked, match=f"process {process.pid} on host"), hold(tmp_path):
    pass
  process.kill()
  process.wait()
  os.kill(child, 0)  # it lives
  with hold(tmp_path) as lock:
    lock.check()
  assert not (tmp_path / LOCK).exists()


def test_an_owner_that_lives_is_never_deposed(tmp_path, holder):
  process, _ = holder()
  with (
    pytest.raises(RunLocked, match=rf"end it first \(kill {process.pid}\)"),
    hold(tmp_path, take_over=True),
  ):
    pass


def test_an_owner_that_cannot_be_asked_is_deposed_on_demand_and_notices(tmp_path):
  with hold(tmp_path) as first:
    owner = json.loads((tmp_path / LOCK).read_text())
    (tmp_path / LOCK).write_text(json.dumps(owner | {"machine": "another", "host": "far"}))
    with pytest.raises(RunLocked, match="give the same command with --take_over"), hold(tmp_path):
      pass
    said = []
    with hold(tmp_path, take_over=True, say=said.append) as second:
      assert said == [
        f"took {tmp_path} over from process {owner['pid']} on host far, started {owner['started']}"
      ]
      second.check()
      with pytest.raises(
        LockLost, match=f"{tmp_path} has been taken over by process {os.getpid()} on host"
      ):
        first.check()
  assert not (tmp_path / LOCK).exists()


def test_a_run_whose_lock_is_gone_saves_nothing_more(tmp_path, monkeypatch):
  count = iter(range(1, 9))

  def removed(*args):
    if next(count) == 4:
      (tmp_path / LOCK).unlink()
    return one_step(*args)

  monkeypatch.setattr(loop, "one_step", removed)
  with pytest.raises(LockLost, match="lock.json has been removed"):
    train(tiny_run.config(**SMALL), tmp_path, quiet=True)
  assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["2"]
  monkeypatch.undo()
  with hold(tmp_path):
    restore_params(tmp_path)  # readers need no lock
    with pytest.raises(ConfigError, match="is in use"):
      train(tiny_run.config(**SMALL), tmp_path, quiet=True)
  assert train(tiny_run.config(**SMALL), tmp_path, quiet=True).finished


@pytest.fixture
def leases(monkeypatch):
  monkeypatch.setenv("JAXLM_LEASE_S", "1")
  monkeypatch.setattr(run_lock, "kernel_locks", lambda folder: False)


def far(folder, **fields):
  """A lease of a process on another machine."""
  owner = {
    "host": "far",
    "pid": 42,
    "started": "then",
    "token": "theirs",
    "machine": "another",
    "lease_s": 1,
  } | fields
  (folder / LOCK).write_text(json.dumps(owner))


def test_a_lease_is_refused_while_its_owner_renews_it(tmp_path, leases, monkeypatch):
  with hold(tmp_path):
    monkeypatch.setattr(run_lock, "_is_here", lambda owner: False)  # as another host sees it
    for take_over in (False, True):
      if take_over:
        monkeypatch.setattr(run_lock, "_alive", lambda owner: True)
      with (
        pytest.raises(RunLocked, match=f"process {os.getpid()} on host"),
        hold(tmp_path, take_over=take_over),
      ):
        pass
  assert not (tmp_path / LOCK).exists()


def test_a_lease_that_nobody_renews_is_taken_over(tmp_path, leases):
  far(tmp_path)
  said = []
  with hold(tmp_path, say=said.append) as lock:
    assert said == [f"took {tmp_path} over from process 42 on host far, started then; it is gone"]
    far(tmp_path)  # and it comes back
    with pytest.raises(LockLost, match="process 42 on host far"):
      lock.check()
  assert json.loads((tmp_path / LOCK).read_text())["token"] == "theirs"


def test_a_lease_of_a_process_that_died_on_this_machine_is_free_at_once(
  tmp_path, leases, monkeypatch
):
  monkeypatch.setenv("JAXLM_LEASE_S", "1000")
  monkeypatch.setattr(run_lock.time, "sleep", lambda seconds: None)
  far(tmp_path, machine=run_lock._machine(), pid=2**22 + 1, born="1", lease_s=1000)
  with hold(tmp_path):
    pass


def test_of_two_that_see_no_lease_one_is_refused(tmp_path, leases, monkeypatch):
  monkeypatch.setattr(
    run_lock.time, "sleep", lambda seconds: far(tmp_path)
  )  # the other writes after us
  with pytest.raises(RunLocked, match="process 42 on host far"), hold(tmp_path):
    pass


@pytest.mark.parametrize(
  "mount, kind, kernel",
  [
    ("/home/x rw - nfs4 server:/x rw", "nfs4", False),
    ("/home/x rw - fuse.gcsfuse bucket rw", "fuse", False),
    ("/home rw - fuseblk /dev/sdb rw", "fuseblk", True),
    ("/ rw - overlay overlay rw", "overlay", True),
  ],
)
def test_kernel_locks_are_trusted_on_disks_of_this_machine_only(
  tmp_path, monkeypatch, mount, kind, kernel
):
  mount = mount.replace("/home/x", str(tmp_path)).replace("/home", str(tmp_path.parent))

  def read(path):
    return f"1 0 8:1 / / rw - ext4 /dev/sda rw\n2 1 0:9 / {mount}\n"

  monkeypatch.setattr(run_lock.pathlib.Path, "read_text", read)
  assert run_lock._file_system(tmp_path) == kind and run_lock.kernel_locks(tmp_path) == kernel
