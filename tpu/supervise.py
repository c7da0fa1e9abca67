#!/usr/bin/env python3
"""Keeps a training command going on one host, detached from whoever started it.

  supervise.py start  [--folder F] -- COMMAND ...   begins in the background and returns
  supervise.py status [--folder F]                  one line of JSON: state, attempt, why
  supervise.py stop   [--folder F]                  SIGTERM, waits until the checkpoint is saved
  supervise.py stacks [--folder F]                  the command prints the stacks of its threads into the log
  supervise.py run    [--folder F] -- COMMAND ...   as start, in the foreground

The command's exit code says what is done (docs/pods.md has the table):

  0               finished
  2               the request is wrong: the same command would fail again, so it is not started again
  75              another process of the run was lost: started again
  76              the process hung and ended itself: started again
  129, 130, 143   a signal, as when the host is taken away: started again, unless it was `stop`
  any other       a crash

Three crashes in a row, or ten losses in a row, each within ten minutes of its start, end it. It needs
only Python's standard library, so that it is what runs where everything else is broken.
"""

import argparse
import dataclasses
import fcntl
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

LOST, HUNG, WRONG = 75, 76, 2
TOLD = (128 + signal.SIGHUP, 128 + signal.SIGINT, 128 + signal.SIGTERM)


@dataclasses.dataclass
class Rules:
  """healthy_s: an attempt that lives so long has made progress, and the counts begin again."""

  crashes: int = 3
  losses: int = 10
  attempts: int = 100
  healthy_s: float = 600.0
  pause_s: float = 10.0


def kind_of(code: int) -> str:
  """'finished', 'wrong', 'lost', 'hung', 'told' or 'crashed'. code: of subprocess; -n is signal n."""
  code = 128 - code if code < 0 else code
  if code in TOLD:
    return "told"
  return {0: "finished", WRONG: "wrong", LOST: "lost", HUNG: "hung"}.get(code, "crashed")


class Tally:
  """What has happened so far, and whether to start again."""

  def __init__(self, rules: Rules):
    self.rules, self.attempt, self.crashes, self.losses = rules, 0, 0, 0

  def verdict(self, code: int, lived_s: float) -> tuple[str, str]:
    """(state, why): 'waiting' where the command is to be started again, else 'finished' or 'failed'."""
    kind, rules = kind_of(code), self.rules
    if lived_s >= rules.healthy_s:
      self.crashes = self.losses = 0
    self.crashes += kind == "crashed"
    self.losses += kind in ("lost", "hung", "told")
    if kind == "finished":
      return "finished", "the run is finished"
    if kind == "wrong":
      return "failed", "code 2: the request is wrong; its log says what to change"
    if self.crashes >= rules.crashes:
      return (
        "failed",
        f"{self.crashes} crashes in a row, the last with code {code}; its log says why",
      )
    if self.losses >= rules.losses:
      return (
        "failed",
        f"contact was lost {self.losses} times in a row: another host does not come back",
      )
    if self.attempt >= rules.attempts:
      return "failed", f"{self.attempt} attempts"
    said = {
      "lost": "another process of the run was lost",
      "hung": "it hung",
      "told": "a signal ended it",
    }
    return "waiting", said.get(kind, f"it crashed with code {code}")


class Folder:
  """status.json, log.txt and the lock of one supervised command."""

  def __init__(self, path: str):
    self.path = pathlib.Path(path).expanduser()
    self.path.mkdir(parents=True, exist_ok=True)
    self.status_file, self.log = self.path / "status.json", self.path / "log.txt"

  def lock(self):
    """The open lock file, or None where a supervisor holds it."""
    file = open(self.path / "lock", "a")
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
      file.close()
      return None
    return file

  def write(self, **values) -> None:
    draft = self.status_file.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps(values | {"time": int(time.time())}) + "\n")
    draft.replace(self.status_file)

  def status(self) -> dict:
    """As written; a supervisor that is gone without a word (the host was restarted) is 'gone'."""
    try:
      found = json.loads(self.status_file.read_text())
    except (OSError, ValueError):
      return {"state": "none"}
    if found["state"] in ("running", "waiting") and (lock := self.lock()):
      lock.close()
      return found | {"state": "gone"}
    return found


def run(folder: Folder, command: list[str], rules: Rules) -> int:
  """Starts the command until it is finished or has failed. The exit code is 0, 1 or 143."""
  lock = folder.lock()
  if lock is None:
    return refuse(f"{folder.path} is in use; `supervise.py stop` ends what runs there")
  stop: list[int] = []
  child: list[subprocess.Popen] = []

  def on_signal(number, frame):
    stop.append(number)
    for process in child:
      process.send_signal(signal.SIGTERM)

  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, on_signal)
  tally = Tally(rules)
  about = {"command": shlex.join(command), "pid": os.getpid()}
  with open(folder.log, "ab", buffering=0) as log:
    while True:
      tally.attempt += 1
      began = time.monotonic()
      log.write(f"supervise: attempt {tally.attempt} of {shlex.join(command)}\n".encode())
      folder.write(state="running", attempt=tally.attempt, why="", **about)
      try:
        child[:] = [
          subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        ]
        if stop:  # it came before there was somebody to tell
          child[0].send_signal(signal.SIGTERM)
        folder.write(state="running", attempt=tally.attempt, why="", child=child[0].pid, **about)
        code = child[0].wait()
      except OSError as error:
        log.write(f"supervise: {command[0]} cannot be started: {error}\n".encode())
        code = WRONG
      child.clear()
      state, why = tally.verdict(code, time.monotonic() - began)
      if stop and state != "finished":
        state, why = "stopped", "it was told to stop, and resumes with the same command"
      log.write(f"supervise: attempt {tally.attempt} ended with code {code}: {why}\n".encode())
      folder.write(state=state, attempt=tally.attempt, why=why, code=code, **about)
      if state != "waiting":
        lock.close()
        return {"finished": 0, "stopped": 128 + signal.SIGTERM}.get(state, 1)
      end = time.monotonic() + rules.pause_s
      while time.monotonic() < end and not stop:
        time.sleep(0.1)
      if stop:
        folder.write(state="stopped", attempt=tally.attempt, why="it was told to stop", **about)
        lock.close()
        return 128 + signal.SIGTERM


def start(folder: Folder, command: list[str], flags: list[str]) -> int:
  """In a session of its own, which no closed terminal and no lost connection ends."""
  lock = folder.lock()
  if lock is None:
    running = folder.status().get("command")
    if running == shlex.join(command):
      print(f"runs already: {running}")
      return 0
    return refuse(f"another command runs here: {running}; `supervise.py stop` ends it")
  folder.write(state="waiting", attempt=0, why="it is being started", command=shlex.join(command))
  lock.close()
  with open(folder.log, "ab") as log:
    process = subprocess.Popen(
      [sys.executable, __file__, "run", f"--folder={folder.path}", *flags, "--", *command],
      stdin=subprocess.DEVNULL,
      stdout=log,
      stderr=log,
      start_new_session=True,
    )
  for _ in range(100):  # until it holds the lock: `status` would call it gone
    if (free := folder.lock()) is None or process.poll() is not None:
      break
    free.close()
    time.sleep(0.1)
  print(f"started in the background; its log is {folder.log}")
  return 0


def stop(folder: Folder, wait_s: float) -> int:
  """Whoever is told saves first, so this may take as long as a checkpoint."""
  free = folder.lock()
  if free is not None:
    free.close()
    print("nothing runs here")
    return 0
  pid = folder.status().get("pid")
  if pid is None:
    return refuse("it is just being started; try again")
  os.kill(pid, signal.SIGTERM)
  end = time.monotonic() + wait_s
  while time.monotonic() < end:
    free = folder.lock()
    if free is not None:
      free.close()
      print(json.dumps(folder.status()))
      return 0
    time.sleep(0.2)
  return refuse(f"it still saves after {wait_s:g} s; ask again with `supervise.py status`", 1)


def stacks(folder: Folder) -> int:
  """`jaxlm train` prints its stacks on SIGUSR1, and goes on."""
  found = folder.status()
  if found["state"] != "running" or "child" not in found:
    return refuse(f"nothing runs here ({found['state']})", 1)
  os.kill(found["child"], signal.SIGUSR1)
  print(f"the stacks are in {folder.log}")
  return 0


def refuse(sentence: str, code: int = WRONG) -> int:
  print(f"supervise: {sentence}", file=sys.stderr)
  return code


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(
    prog="supervise.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("action", choices=("start", "run", "status", "stacks", "stop"))
  parser.add_argument("--folder", default="~/jaxlm-run", help="of its status, log and lock")
  parser.add_argument("--wait_s", type=float, default=300, help="`stop` waits so long")
  for field in dataclasses.fields(Rules):
    parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
  ours, command = argv, []
  if "--" in argv:
    ours, command = argv[: argv.index("--")], argv[argv.index("--") + 1 :]
  args = parser.parse_args(ours)
  folder = Folder(args.folder)
  if args.action == "status":
    print(json.dumps(folder.status()))
    return 0
  if args.action == "stacks":
    return stacks(folder)
  if args.action == "stop":
    return stop(folder, args.wait_s)
  if not command:
    return refuse("no command; write it after --")
  rules = Rules(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Rules)})
  if args.action == "run":
    return run(folder, command, rules)
  flags = [f"--{field.name}={getattr(rules, field.name)}" for field in dataclasses.fields(Rules)]
  return start(folder, command, flags)


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
