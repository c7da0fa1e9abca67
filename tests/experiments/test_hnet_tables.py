"""The H-Net tables' own parts: noise, word starts, alignment; and that every script declares runs that can be meant."""

import importlib.util
import pathlib
import random

import numpy as np
import pytest

from jaxlm.experiments.chunks import alignment, f1, word_starts
from jaxlm.experiments.perturb import PERTURBATIONS
from jaxlm.experiments.runner import override
from jaxlm.training.config import load_config, run_config

pytestmark = pytest.mark.slow     # compiling whole models takes minutes on two cores

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = sorted(p for p in (ROOT / "experiments" / "hnet").glob("*.py") if p.stem != "boundaries")


def test_words_start_after_what_is_no_letter():
  text = np.frombuffer("a bc, d\u00e9".encode(), np.uint8)[None]
  assert word_starts(text)[0].astype(int).tolist() == [1, 0, 1, 0, 0, 0, 1, 0, 0]


def test_alignment_takes_either_habit_and_says_what_chance_would_give():
  starts = np.zeros((1, 40), bool)
  starts[0, 5::5] = True
  at_spaces = np.roll(starts, -1, axis=1)
  assert alignment(starts, starts)["f1"] == alignment(at_spaces, starts)["f1"] == 1.0
  draws = np.random.default_rng(0).random((400, 400)) < 0.3
  truth = np.random.default_rng(1).random((400, 400)) < 0.2
  found = alignment(draws, truth)
  assert abs(f1(draws, truth) - found["chance"]) < 0.01 and abs(found["chance"] - 0.24) < 0.01


def test_noise_is_what_it_says_and_the_same_each_time():
  text = "The quick brown fox. " * 200
  noisy = {name: noise(text, random.Random(0)) for name, noise in PERTURBATIONS.items()}
  assert noisy == {name: noise(text, random.Random(0)) for name, noise in PERTURBATIONS.items()}
  assert noisy["UpperCase"] == text.upper() and noisy["AntSpeak"].startswith("T H E   Q")
  assert abs(len(noisy["Drop"]) / len(text) - 0.9) < 0.02 and noisy["RandomCase"].lower() == text.lower()
  assert abs(len(noisy["Repeat"]) / len(text) - 1.5) < 0.05      # one in five, 2.5 more on average


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)
def test_every_row_of_a_script_is_a_run_that_can_be_meant(path, monkeypatch):
  monkeypatch.chdir(ROOT)
  spec = importlib.util.spec_from_file_location(f"hnet_{path.stem}", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  for scale in module.TABLE.scales.values():
    for row in module.TABLE.rows:
      config = load_config(row.config).to_dict()
      for overrides in (scale.overrides, row.overrides):
        config = override(config, overrides)
      run_config(config)
