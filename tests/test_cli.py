"""The command line: quick to answer, lazy, and polite about wrong names."""

import subprocess
import sys

import pytest

from jaxlm import __version__, cli


def test_help_lists_every_command_and_imports_no_jax():
  code = "import sys; from jaxlm.cli import main; assert main(['--help']) == 0; assert 'jax' not in sys.modules"
  run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
  assert run.returncode == 0, run.stderr
  assert all(f"\n  {name}" in run.stdout for name in cli.COMMANDS)


def test_help_of_a_command_is_asked_for_in_two_ways(capsys):
  assert cli.main(["help", "runs"]) == 0
  said = capsys.readouterr().out
  assert cli.main(["runs", "--help"]) == 0
  assert said == capsys.readouterr().out and "usage: jaxlm runs" in said


def test_version(capsys):
  assert cli.main(["--version"]) == 0 and capsys.readouterr().out == f"jaxlm {__version__}\n"


def test_an_unknown_command_is_answered_with_the_nearest_one(capsys):
  assert (
    cli.main(["trian"]) == 2
    and "no command 'trian'; did you mean 'train'?" in capsys.readouterr().err
  )


def test_no_command_is_an_error_that_shows_the_list(capsys):
  assert cli.main([]) == 2 and "preflight" in capsys.readouterr().out


@pytest.mark.parametrize(
  "argv, said",
  [
    (["--workdir=x"], "no configuration; give --config="),
    (
      ["--workdir=x", "--config=configs/no_such.py"],
      "config file configs/no_such.py does not exist",
    ),
    (["--workdir=x", "--config"], "--config has no value"),
  ],
)
def test_train_without_a_usable_config_ends_with_one_sentence_and_code_2(argv, said, capsys):
  assert cli.main(["train", *argv]) == 2
  error = capsys.readouterr().err
  assert said in error and error.startswith("jaxlm train: ") and "Traceback" not in error


def test_a_prompt_that_is_no_text_is_refused_before_anything_is_read(capsys):
  assert (
    cli.main(["generate", "--run", "nowhere", "--prompt", "\udcff"]) == 2
  )  # how Python reads the byte 0xff
  assert r"'\udcff' holds bytes that are not UTF-8" in capsys.readouterr().err


def test_only_what_this_library_does_not_implement_is_a_sentence():
  import json

  import jax.numpy as jnp

  from jaxlm.kernels.compact import compact
  from jaxlm.training.command import _is_ours

  for call, ours in (
    (lambda: compact(jnp.ones((1, 2), bool), 1, implementation="magic"), True),
    (lambda: json.JSONEncoder().default(object()), False),
  ):
    with pytest.raises((NotImplementedError, TypeError)) as caught:
      call()
    assert _is_ours(caught.value) == ours
