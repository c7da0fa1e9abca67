"""The parts of docs/extending.md, written to disk as a reader would, are parts of the library by
one registry line.
"""

import importlib
import json
import pathlib
import re
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config import ConfigError
from jaxlm.generation import Sampling, engine_for
from jaxlm.generation.sampling import GREEDY
from jaxlm.layers.mixer import Context
from jaxlm.models.encoder_decoder import EncoderDecoderConfig
from jaxlm.training.metrics import read
from jaxlm.training.run import train

PAGE = (pathlib.Path(__file__).parents[1] / "docs" / "extending.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
TABLES = (
  "jaxlm.layers.mixer:MIXERS",
  "jaxlm.layers.positions:POSITIONS",
  "jaxlm.objectives:OBJECTIVES",
  "jaxlm.data:DATA",
  "jaxlm.generation:ENGINES",
  "jaxlm.analysis.probes:PROBES",
)


@pytest.fixture(autouse=True)
def mine(tmp_path, monkeypatch):
  """The package of the page on the path, its parts registered, and all of it gone afterwards."""
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine" / "__init__.py").write_text("")
  registration, *files = BLOCKS
  for block in files:
    (name,) = re.findall(r"^# file: (\S+)\n", block)
    (tmp_path / name).write_text(block)
  monkeypatch.syspath_prepend(str(tmp_path))
  for where in TABLES:
    module, name = where.split(":")
    kinds = getattr(importlib.import_module(module), name)
    monkeypatch.setattr(kinds, "table", dict(kinds.table))
  exec(registration, {})
  yield
  for name in [name for name in sys.modules if name.split(".")[0] == "mine"]:
    del sys.modules[name]


def config(**sections):
  """A tiny decoder on the task of the page; sections are merged over it."""
  out = {
    "model": dict(
      kind="decoder",
      vocab_size=27,
      d_model=16,
      num_layers=2,
      mixer=dict(kind="attention", num_heads=2),
      position="rope",
    ),
    "objective": dict(kind="next_token"),
    "data": dict(kind="reversal", batch_size=8, seq_len=8),
    "optimizer": dict(kind="adamw", learning_rate=1e-2),
    "schedule": dict(kind="constant"),
    "train": dict(steps=2, save_every=0, log_every=1),
    "eval": dict(every=0, num_tokens=64),
  }
  return {name: {**out[name], **sections.get(name, {})} for name in out}


def trained(tmp_path, **sections):
  return train(config(**sections), tmp_path / "run", quiet=True)


def test_the_position_trains_and_decodes(tmp_path):
  done = trained(tmp_path, model=dict(position="half_alibi"))
  assert np.isfinite(done.metrics["loss"])
  import jaxlm

  opened = jaxlm.open_model(tmp_path / "run")
  engine = engine_for(opened.config, sampling=GREEDY)
  new = engine.generate(opened.params, [[1, 2, 3], [4]], 3).answers
  assert [len(tokens) for tokens in new] == [3, 3]
  whole = opened.config.build().apply({"params": opened.params}, jnp.asarray([[1, 2, 3, *new[0]]]))
  np.testing.assert_array_equal(
    np.argmax(whole[0, 2:-1], -1), new[0]
  )  # step by step is the parallel pass


def test_the_mixer_streams_what_it_maps_and_keeps_documents_apart(tmp_path):
  assert np.isfinite(
    trained(tmp_path, model=dict(mixer=dict(kind="moving_average"), position="none")).metrics[
      "loss"
    ]
  )
  from mine.moving_average import MovingAverageConfig

  from jaxlm.layers.rewind import rewind

  cfg, D, rng = MovingAverageConfig(), 8, np.random.default_rng(0)

  def run(module, x, context, state):
    return module(x, context, state)

  x = jnp.asarray(rng.standard_normal((1, 9, D)), jnp.float32)
  ids, at = jnp.ones((1, 9), jnp.int32), jnp.arange(9)[None]

  def build():
    return cfg.build(D, "float32")

  params = nn.unbox(nn.init(run, build())(jax.random.key(0), x, Context(ids, at), None))["params"]

  def apply(x, ids, state=None):
    return nn.apply(run, build())({"params": params}, x, Context(ids, jnp.zeros_like(ids)), state)

  whole, _ = apply(x, ids)
  state, pieces = cfg.init_state(D, 1, 9, "float32"), []
  for piece in (x[:, :4], x[:, 4:5], x[:, 5:]):
    y, state = apply(piece, jnp.ones(piece.shape[:2], jnp.int32), state)
    pieces.append(y)
  np.testing.assert_allclose(jnp.concatenate(pieces, 1), whole, atol=1e-6)
  _, kept = apply(x[:, :3], jnp.zeros((1, 3), jnp.int32), state)
  np.testing.assert_array_equal(kept, state)  # padding leaves a row as it was
  once = jnp.ones((1, 2), jnp.int32)
  _, before = apply(x[:, :2], once, cfg.init_state(D, 1, 9, "float32", rewindable=2))
  _, after = apply(x[:, 2:4], once, before)
  y, _ = apply(x[:, 4:6], once, rewind(after, jnp.asarray([2])))
  np.testing.assert_array_equal(y, apply(x[:, 4:6], once, before)[0])
  packed, _ = apply(x, jnp.asarray([[1] * 4 + [2] * 5]))
  np.testing.assert_allclose(packed[:, 4:], apply(x[:, 4:], ids[:, 4:])[0], atol=1e-6)


def test_the_objective_is_next_token_at_epsilon_0(tmp_path):
  done = trained(tmp_path / "0", objective=dict(kind="smoothed", epsilon=0.0))
  plain = trained(tmp_path / "1")
  np.testing.assert_allclose(done.metrics["loss"], plain.metrics["loss"], rtol=1e-5)
  smoothed = trained(tmp_path / "2", objective=dict(kind="smoothed"))
  assert smoothed.metrics["objective"] != smoothed.metrics["loss"]


STARS = dict(kind="star_graphs", family="tiny", batch_size=64, rows=640, eval_rows=8, seq_len=None)
WIDE = dict(vocab_size=20)


def test_the_objective_with_a_frozen_reference_prefers_the_better_answer(tmp_path):
  """It starts at log 2 from the reference itself, does not depend on how pairs are shared out to
  micro-batches, and learns.
  """
  trained(tmp_path / "sft", model=WIDE, data=STARS | {"form": "causal"})
  reference = str(tmp_path / "sft" / "run")

  def preference(name, steps=2, **more):
    return trained(
      tmp_path / name,
      model=WIDE,
      data=STARS | {"form": "answer_pairs"},
      objective=dict(kind="preference", reference=reference, beta=1.0),
      train=dict(steps=steps, save_every=0, log_every=1, init_from=reference) | more,
    )

  preference("whole", 30)
  losses = [line["loss"] for line in read(tmp_path / "whole" / "run") if "loss" in line]
  np.testing.assert_allclose(losses[0], np.log(2), rtol=1e-5)
  assert losses[-1] < 0.6
  parts = preference("parts", accumulation=4)
  np.testing.assert_allclose(parts.metrics["loss"], losses[1], rtol=1e-5)
  with pytest.raises(ConfigError, match="x 2 rows that belong together = 128"):
    preference("split", accumulation=8)
  with pytest.raises(ConfigError, match="reads batches of form 'answer_pairs'"):
    trained(tmp_path / "x", objective=dict(kind="preference", reference=reference))


def test_the_task_is_learnt_and_shared_out_to_hosts(tmp_path):
  from mine.reversal import ReversalData

  data = ReversalData(batch_size=4, seq_len=8)
  batch = next(iter(data.build("train", seed=0)))
  np.testing.assert_array_equal(batch["targets"][:, 4:], batch["tokens"][:, 3::-1])
  halves = [
    next(iter(data.build("train", seed=0, process_index=i, process_count=2))) for i in range(2)
  ]
  np.testing.assert_array_equal(
    np.stack([h["tokens"] for h in halves], 1).reshape(4, 8), batch["tokens"]
  )
  first = trained(tmp_path / "a", train=dict(steps=1))
  later = trained(tmp_path / "b", train=dict(steps=60))
  assert later.metrics["loss"] < first.metrics["loss"] - 0.3


def test_the_engine_keeps_the_most_probable_answer_and_refuses_other_models(tmp_path):
  trained(tmp_path)
  import jaxlm

  config, params, _ = jaxlm.open_model(tmp_path / "run")
  prompts, scores = [[1, 2, 3], [4], [5, 6]], []
  for num_answers in (1, 4):
    engine = engine_for(config, "best_of", num_answers=num_answers, sampling=Sampling(2.0))
    found = engine.generate(params, prompts, 4, seed=3)
    assert [len(answer) for answer in found.answers] == [4, 4, 4]
    scores.append(engine.log_probs(params, found.rows, 7))
  assert (scores[1] >= scores[0]).all() and (scores[1] > scores[0]).any()
  again = engine.generate(params, prompts, 4, seed=3, batch_size=1)
  np.testing.assert_array_equal(np.stack(again.answers), np.stack(found.answers))
  with pytest.raises(ConfigError, match="'best_of' decodes models that score next_token, token by"):
    engine_for(EncoderDecoderConfig(), "best_of")


def test_the_probe_gives_a_number_for_each_head(tmp_path):
  trained(tmp_path)
  from mine.head_worth import head_worth
  from mine.reversal import ReversalData

  batch = next(iter(ReversalData(batch_size=4, seq_len=8).build("validation", seed=0)))
  worth = head_worth(tmp_path / "run", batch, layer=1)
  assert len(worth) == 2 and np.isfinite(worth).all() and any(abs(w) > 1e-6 for w in worth)


@pytest.mark.parametrize("name", ["steps", "mine.steps:Steps"])
def test_the_new_probe_is_read_by_the_command(name, tmp_path, capsys):
  from jaxlm.cli import main

  trained(tmp_path)
  picture = tmp_path / "steps.png"
  argv = ["probe", "--run", str(tmp_path / "run"), "--probe", name, "--out", str(picture)]
  assert main([*argv, "--json"]) == 0
  found = json.loads(capsys.readouterr().out)
  assert found["numbers"]["mean step"] > 0 and picture.stat().st_size > 1000
