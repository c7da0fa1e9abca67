"""The H-Net tables' own parts: noise, word starts, alignment; and that every script declares runs
that can be meant.
"""

import pathlib
import random

import numpy as np
import pytest

from experiments.hnet.chunks import (
  alignment,
  fluctuation,
  shifts,
  space_starts,
  spaces_before_words,
  word_starts,
)
from experiments.hnet.perturb import PERTURBATIONS
from jaxlm.experiments.command import load
from jaxlm.experiments.runner import resolve
from jaxlm.layers.routers import space_like
from jaxlm.models.hnet_rules import forward_flops
from jaxlm.training.config import run_config

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = sorted(
  p for p in (ROOT / "experiments" / "hnet").glob("*.py") if "\nTABLE = " in p.read_text()
)


def as_bytes(*rows: str) -> np.ndarray:
  return np.array([list(row.encode()) for row in rows], np.int32)


def test_words_start_after_what_is_no_letter_and_spaces_after_what_is():
  text = as_bytes("a bc, d\u00e9")
  assert word_starts(text)[0].astype(int).tolist() == [1, 0, 1, 0, 0, 0, 1, 0, 0]
  assert space_starts(text)[0].astype(int).tolist() == [
    0,
    1,
    0,
    0,
    1,
    0,
    0,
    1,
    0,
  ]  # the comma; and \u00e9, by its rule
  assert spaces_before_words(text)[0].astype(int).tolist() == [
    0,
    1,
    0,
    0,
    0,
    1,
    0,
    0,
    0,
  ]  # not the comma
  assert (
    not spaces_before_words(as_bytes("a - b\nc "))[0, [1, 5, 7]].any()
    and spaces_before_words(as_bytes("a - b\nc "))[0, 3]
  )


def test_space_starts_are_the_boundaries_of_the_router_with_that_rule():
  every_pair = np.stack(np.meshgrid(np.arange(256), np.arange(256)), -1).reshape(-1, 2)
  like = np.asarray(space_like(every_pair))
  assert np.array_equal(space_starts(every_pair)[:, 1], like[:, 1] & ~like[:, 0])


def test_alignment_knows_every_habit_and_chance_is_what_random_cuts_reach():
  text = as_bytes("see the sea, " * 40)
  at_spaces, at_letters = alignment(space_starts(text), text), alignment(word_starts(text), text)
  assert at_spaces["at_spaces"] == at_letters["at_letters"] == 1.0
  assert at_spaces["at_letters"] == at_letters["at_spaces"] == 0.0
  at_blanks = alignment(spaces_before_words(text), text)
  assert at_blanks["at_word_spaces"] == 1.0 and at_blanks["at_letters"] == 0.0
  commas = alignment(
    text == ord(","), text
  )  # a model that avoids spaces passes SpaceByte's rule, and this one not
  assert commas["at_spaces"] > commas["at_spaces_chance"] and commas["at_word_spaces"] == 0.0
  draws = np.random.default_rng(0).random((400, text.shape[1])) < 0.3
  found = alignment(draws, np.repeat(text, 400, axis=0))
  for where in ("at_spaces", "at_word_spaces", "at_letters"):
    assert abs(found[where] - found[f"{where}_chance"]) < 0.01
  for where in ("at_spaces", "at_letters"):
    assert abs(found[where] - 2 * 0.3 * 3 / 13 / (0.3 + 3 / 13)) < 0.01


def test_shifts_are_shares_of_words_and_all_alike_at_random():
  text = as_bytes("a big wave " * 30)
  found = shifts(np.roll(word_starts(text), -1, axis=1), text, (-2, -1, 0, 1))
  assert found[-1] == 1.0 and found[0] == 0.0
  assert found[1] == pytest.approx(
    1 / 3, abs=0.02
  )  # only "a" is so short that the next space is one byte on
  draws = np.random.default_rng(0).random((300, text.shape[1])) < 0.2
  assert all(
    abs(share - 0.2) < 0.01 for share in shifts(draws, np.repeat(text, 300, axis=0)).values()
  )


def test_the_fluctuation_is_of_the_second_half_relative_to_its_mean():
  assert fluctuation([9.0, 1.0, 5.0, 5.0]) == 0
  assert fluctuation([0.0, 0.0, 4.0, 6.0]) == pytest.approx(20)


def test_noise_is_what_it_says_and_the_same_each_time():
  text = "The quick brown fox. " * 200
  noisy = {name: noise(text, random.Random(0)) for name, noise in PERTURBATIONS.items()}
  assert noisy == {name: noise(text, random.Random(0)) for name, noise in PERTURBATIONS.items()}
  assert noisy["UpperCase"] == text.upper() and noisy["AntSpeak"].startswith("T H E   Q")
  assert (
    abs(len(noisy["Drop"]) / len(text) - 0.9) < 0.02 and noisy["RandomCase"].lower() == text.lower()
  )
  assert abs(len(noisy["Repeat"]) / len(text) - 1.5) < 0.05  # one in five, 2.5 more on average


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)
def test_every_row_of_a_script_is_a_run_that_can_be_meant(path, monkeypatch):
  monkeypatch.chdir(ROOT)
  table = load(path)
  for scale in table.scales.values():
    for row in table.rows:
      run_config(resolve(table, row, scale, "", 0))


def cost(table, row, scale, ratios):
  """MFLOP per byte of a row at so many bytes a chunk, by the paper's formula."""
  cfg = run_config(resolve(table, table.row(row), table.scales[scale], "", 0))
  return forward_flops(cfg.model, cfg.data.seq_len, ratios) / cfg.data.seq_len / 1e6


def test_table_2_has_the_papers_models_at_the_scale_paper():
  table = load(ROOT / "experiments" / "hnet" / "table2.py")
  for row in table.rows:
    cfg = run_config(resolve(table, row, table.scales["paper"], "", 0))
    assert cfg.model.stages[-1].d_model >= 1024 and cfg.train.steps == 220_000, row.name
    assert (
      1.8e6 < cfg.data.seq_len * cfg.data.batch_size * (4.6 if row.name == "bpe" else 1) < 2.2e6
    ), row.name


def test_the_rows_of_table_2_cost_the_same_at_small_and_read_as_many_bytes():
  table = load(ROOT / "experiments" / "hnet" / "table2.py")
  ratios = {
    "1stage": (5.0,),
    "2stage": (2.5, 2.0),
    "pool": (5.0,),
    "space": (5.6,),
    "spacebyte": (5.6,),
    "spacebyte++": (5.6,),
  }
  for row in table.rows:
    seq_len = resolve(table, row, table.scales["small"], "", 0)["data"]["seq_len"]
    bytes_per_token = 2.58 if row.name == "bpe" else 1  # test_hnet_released.py
    assert abs(seq_len * bytes_per_token / 1024 - 1) < 0.01, row.name
    assert (
      abs(cost(table, row.name, "small", ratios.get(row.name, ())) / bytes_per_token / 0.59 - 1)
      < 0.08
    ), row.name


@pytest.mark.parametrize("scale", ["smoke", "small"])
@pytest.mark.parametrize("text, bytes_per_chunk", [("zh", 3.0), ("code", 8.0)])
def test_the_rows_of_table_4_cost_the_same(text, bytes_per_chunk, scale):
  table = load(ROOT / "experiments" / "hnet" / "table4.py")
  want = cost(table, f"2stage_{text}", scale, (2.5, 2.0))
  for name, ratios in (("space", (bytes_per_chunk,)), ("isotropic", ())):
    assert abs(cost(table, f"{name}_{text}", scale, ratios) / want - 1) < 0.08, name


@pytest.mark.parametrize("scale", ["smoke", "small"])
def test_the_rows_of_table_5_cost_the_same(scale):
  table = load(ROOT / "experiments" / "hnet" / "table5.py")
  want = cost(table, "1stage", scale, (3.0,))
  for name in ("isotropic", "mamba"):
    assert abs(cost(table, name, scale, ()) / want - 1) < 0.05, name
