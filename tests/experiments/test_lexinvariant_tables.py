"""The lexinvariant tables: every row is a run that can be meant, and what they measure is what they
say.
"""

import importlib.util
import pathlib

import numpy as np
import pytest

from jaxlm.data.bigram import BigramData
from jaxlm.data.lexinvariant_tasks import LookUp, Permutation
from jaxlm.experiments.runner import override, resolve
from jaxlm.training.config import check, run_config

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = [
  ROOT / "experiments" / "lexinvariant" / f"{name}.py"
  for name in ("bayes", "cipher", "figure_gap", "reasoning", "semi")
]


def table_of(path):
  spec = importlib.util.spec_from_file_location(f"lexinvariant_{path.stem}", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.TABLE


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)
def test_every_row_at_every_scale_is_a_run_that_can_be_meant(path):
  table = table_of(path)
  for name, scale in table.scales.items():
    for row in table.rows:
      source = table.row(row.evaluate_from) if row.evaluate_from else row
      config = resolve(table, source, scale, "", 0)
      check(run_config(config), 1)
      if row.overrides_at:  # a checkpoint of that step exists
        steps = override(config, row.overrides_at(1))["train"]["steps"]
        assert (
          steps % config["train"]["save_every"] == 0 and steps % config["train"]["keep_every"] == 0
        ), (name, row.name)
  assert not table.published  # no value of the paper by cell is known


def test_texts_follow_their_source_and_ciphers_hide_nothing_but_names():
  data = BigramData(batch_size=4, seq_len=200, num_symbols=4, source_seed=3, rows=40)
  found, source = data.examples("validation", 0), data.source
  np.testing.assert_allclose(source.initial_V @ source.transition_VV, source.initial_V, atol=1e-9)
  pairs = np.zeros((4, 4))
  np.add.at(pairs, (found["plain"][:, :-1], found["plain"][:, 1:]), 1)
  # 8,000 draws: each frequency within five standard deviations.
  expected = source.transition_VV * pairs.sum(1, keepdims=True)
  assert (np.abs(pairs - expected) < 5 * np.sqrt(expected + 1)).all()
  for plain, coded in zip(found["plain"][:, :-1], found["tokens"]):
    assert len(set(zip(plain, coded))) == len(set(plain)) == len(set(coded))
  batch = next(iter(data.build("validation", seed=0, repeat=False)))
  np.testing.assert_array_equal(batch["tokens"], found["tokens"][:4])
  assert len({tuple(seed) for seed in found["sequence_seeds"]}) == 40


@pytest.mark.slow
def test_a_trained_model_comes_down_to_the_exact_mixture_from_above(tmp_path):
  """docs/specs/lexinvariant.md, section 9, test 10: two symbols and few steps;
  results/bayes-smoke.md goes on longer.
  """
  from experiments.lexinvariant.mixture import above_exact_mixture
  from jaxlm.experiments.table import Trained
  from jaxlm.training.run import train

  table = table_of(SCRIPTS[0])
  config = override(
    resolve(table, table.row("lexinvariant"), table.scales["smoke"], "", 0),
    {
      "data.num_symbols": 2,
      "model.vocab_size": 2,
      "data.seq_len": 32,
      "data.rows": 256,
      "data.source_seed": 1,
      "model.num_layers": 2,
      "model.unroll": 2,
      "train.steps": 800,
      "train.save_every": 200,
      "train.keep_every": 200,
    },
  )
  trained = Trained(
    config, train(config, str(tmp_path / "run"), quiet=True).params, str(tmp_path / "run")
  )
  measure = above_exact_mixture(probe_texts=64, probe_steps=5)
  early, late = (measure(trained, lambda m, s=s: {"train.steps": s}).numbers for s in (200, 800))
  assert (
    0 < late["excess"] < 0.85 * early["excess"]
  )  # measured: 0.120 nats after 200 steps, 0.089 after 800
  assert min(early["lowest"], late["lowest"]) > -3


@pytest.mark.slow
def test_the_reasoning_measure_asks_for_the_tokens_behind_the_prompt(tmp_path, monkeypatch):
  """An untrained model is near chance over the whole vocabulary; one that says the current token
  again is never right.
  """
  import jax

  from experiments.lexinvariant.in_context import reasoning
  from jaxlm.experiments.table import Trained

  monkeypatch.setenv("JAXLM_DATA", str(tmp_path))
  table = table_of(ROOT / "experiments" / "lexinvariant" / "reasoning.py")
  config = override(
    resolve(table, table.row("lexinvariant_prose"), table.scales["smoke"], "", 0),
    {"model.num_layers": 1, "model.unroll": 1, "model.d_model": 24, "data.source": "mini:udhr/eng"},
  )
  cfg = run_config(config)
  params = cfg.model.build().init(jax.random.key(0), np.zeros((1, 4), np.int32))["params"]
  params = jax.tree.map(
    lambda p: p.unbox() if hasattr(p, "unbox") else p, params, is_leaf=lambda p: hasattr(p, "unbox")
  )
  found = reasoning((LookUp(2), Permutation(3, 3)), instances=40, rows=20)(
    Trained(config, params, ""), None
  ).numbers
  assert (
    found["exact@lookup_2"] == found["token@lookup_2"] <= 20
    and found["exact@permutation_3_3"] <= found["token@permutation_3_3"]
  )
  # Zeroed blocks pass on the current token's own vector: it says that token again, here the arrow,
  # never an answer.
  still = jax.tree_util.tree_map_with_path(
    lambda path, p: 0 * p if path[0].key == "blocks" else p, params
  )
  found = reasoning((LookUp(2),), instances=40, rows=20)(Trained(config, still, ""), None).numbers
  assert found["exact@lookup"] == 0
