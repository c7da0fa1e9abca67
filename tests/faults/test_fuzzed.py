"""2,000 configurations, 500 files of each format and 500 command lines: sentences, never a
traceback, nothing left half done.
"""

import collections
import contextlib
import io
import os
import random
import shutil
import types

import command_lines
import formats
import mutate
import pytest
import summary

from jaxlm import cli
from jaxlm.checkpoint import weights_folder
from jaxlm.config import ConfigError
from jaxlm.preflight import command as preflight
from jaxlm.training import run as training
from jaxlm.training.config import check, load_config, plain, resolved, run_config

CONFIGS, FILES, LINES = 2000, 500, 500


def as_json(value):
  """Tuples as lists, as JSON has them."""
  if isinstance(value, dict):
    return {key: as_json(item) for key, item in value.items()}
  return [as_json(item) for item in value] if isinstance(value, (list, tuple)) else value


def test_fuzzed_configurations():
  good = []
  for file in sorted((formats.ROOT / "configs").glob("*/*.py")):
    config = load_config(str(file))
    good += [as_json(plain(config)), as_json(plain(resolved(run_config(config))))]
  rng, came, wrong = random.Random(16), collections.Counter(), []
  for _ in range(CONFIGS):
    config = mutate.changed(rng.choice(good), rng)
    try:
      check(run_config(load_config(config)) if isinstance(config, dict) else run_config(config), 1)
      came["accepted"] += 1
    except formats.SENTENCES:
      came["refused"] += 1
    except Exception as error:
      wrong.append((config, error))
  summary.record("fuzz", "configurations", CONFIGS, len(wrong), came)
  assert not wrong, wrong[0]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", formats.FORMATS)
def test_fuzzed_files(name, tmp_path):
  form, rng, came, wrong = formats.FORMATS[name], random.Random(16), collections.Counter(), []
  good = form.make()
  for number in range(FILES):
    folder = tmp_path / str(number)
    folder.mkdir()
    form.beside(folder)
    what, data = form.damage(rng.choice(good), rng)
    try:
      came["read" if formats.read_damaged(form, data, folder) == "read" else "refused"] += 1
    except Exception as error:
      wrong.append((what, data[:300], error))
    shutil.rmtree(folder)
  summary.record("fuzz", f"files: {name}", FILES, len(wrong), came)
  assert not wrong, wrong[0]


def _no_chip(args):
  raise ConfigError("no chip in this test")


def test_fuzzed_command_lines(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("HOME", str(tmp_path))
  training.train(command_lines.TINY, tmp_path / "run", command_lines.SMALL, quiet=True)
  weights_folder.save(tmp_path / "weights", formats.MODEL, formats.parameters())
  foreign = tmp_path / "foreign"
  shutil.copytree(tmp_path / "weights", foreign)
  (foreign / "config.json").write_bytes(formats.huggingface_configs()[0])
  (tmp_path / "file").write_text("a file")
  (tmp_path / "torn.py").write_text("def (:\n")
  (tmp_path / "empty").mkdir()
  (tmp_path / "link").symlink_to("nowhere")
  monkeypatch.setattr(
    training, "_train", lambda *_: types.SimpleNamespace(exit_code=0)
  )  # all that comes before the first step
  monkeypatch.setattr(preflight, "_target", _no_chip)  # this process has chosen its devices
  rng, came, wrong, good = (
    random.Random(16),
    collections.Counter(),
    [],
    command_lines.good(tmp_path),
  )
  before = set(os.listdir())
  for _ in range(LINES):
    line, said, code = command_lines.changed(rng.choice(good), rng, good), io.StringIO(), None
    try:
      with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = cli.main(line)
      came[f"exit {code}"] += 1
      if "Traceback" in said.getvalue():
        wrong.append((line, said.getvalue()))
    except Exception as error:
      wrong.append((line, error))
    new = set(os.listdir()) - before
    if any(name.startswith(".") or name == "out" and (code or "--dry-run" in line) for name in new):
      wrong.append((line, new))
    for name in new:
      shutil.rmtree(name) if os.path.isdir(name) else os.unlink(name)
  summary.record("fuzz", "command lines", LINES, len(wrong), came)
  assert not wrong, wrong[0]
