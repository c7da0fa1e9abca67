"""What ends a command from outside is said in one sentence and in its exit code, whenever it comes."""

import os
import signal
import subprocess
import sys

import pytest

from jaxlm.commands import exits
from jaxlm.commands.interrupt import during_imports
from jaxlm.training.loop import StopSignal
from jaxlm.training.run import Result, Stopped

INTERRUPTED_IMPORT = """
import sys
sys.path.insert(0, sys.argv[1])
from jaxlm import cli
cli.COMMANDS["slow"] = ("slow", "")
sys.exit(cli.main(["slow"]))
"""


@pytest.mark.parametrize(
  "text",
  [
    "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n",
    # As compiled libraries do: what they meet becomes an error of their own.
    "import os, signal\ntry:\n  os.kill(os.getpid(), signal.SIGINT)\n  x = 1\nexcept BaseException:\n  raise ImportError('broken') from None\n",
  ],
  ids=["plain", "swallowed"],
)
def test_ctrl_c_in_the_middle_of_an_import_is_one_sentence(tmp_path, text):
  (tmp_path / "slow.py").write_text(text)
  run = subprocess.run(
    [sys.executable, "-c", INTERRUPTED_IMPORT, str(tmp_path)], capture_output=True, text=True
  )
  assert (run.returncode, run.stderr) == (130, "jaxlm: interrupted while it was loading\n")


def test_elsewhere_ctrl_c_is_what_it_was_and_the_sentence_comes_at_the_end(capsys):
  @exits.command("jaxlm slow")
  def main(argv):
    with during_imports():
      signal.raise_signal(signal.SIGINT)

  assert main([]) == 130 and capsys.readouterr().err == "jaxlm slow: interrupted\n"
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
  "name, code", [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130), (None, 0)]
)
def test_the_exit_code_of_a_run_says_what_has_stopped_it(name, code, capsys):
  result = Result(3, {}, "runs/x", None, stopped=name)
  assert (result.exit_code, result.finished) == (code, name is None)
  if name:
    assert exits.ending("jaxlm table", Stopped(result)) == code
    assert (
      capsys.readouterr().err == f"jaxlm table: stopped by {name}; the same command continues\n"
    )


def test_a_hangup_stops_a_run_unless_it_was_told_to_ignore_it():
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
  try:
    with StopSignal() as stop:
      signal.raise_signal(signal.SIGHUP)
      assert stop.received is None
    signal.signal(signal.SIGHUP, lambda *_: pytest.fail("not caught"))
    with StopSignal() as stop:
      signal.raise_signal(signal.SIGHUP)
      assert stop.received == "SIGHUP"
  finally:
    signal.signal(signal.SIGHUP, before)


def test_a_run_whose_terminal_is_gone_goes_on_to_save(monkeypatch):
  moved = []

  def gone(*_):
    raise OSError(5, "Input/output error")

  monkeypatch.setattr(os, "write", gone)
  monkeypatch.setattr(os, "dup2", lambda source, stream: moved.append(stream))
  stop = StopSignal()
  stop._handle(signal.SIGHUP, None)
  assert stop.received == "SIGHUP" and moved == [1, 2]
