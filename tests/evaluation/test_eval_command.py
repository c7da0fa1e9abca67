"""`jaxlm eval` on a run folder made here by a few steps of training."""

import json

import pytest

from jaxlm.checkpoint.opening import open_model
from jaxlm.evaluation import command
from jaxlm.evaluation.perplexity import evaluate_lengths
from jaxlm.training.config import run_config
from jaxlm.training.run import train

CONFIG = dict(
  model=dict(
    kind="decoder",
    vocab_size=256,
    d_model=16,
    num_layers=1,
    mixer=dict(kind="attention", num_heads=2),
    position=dict(kind="learned", max_len=16),
  ),
  objective=dict(kind="next_token"),
  data=dict(
    kind="text",
    source="mini:moby_dick",
    tokenizer=dict(kind="bytes", separator=254),
    seq_len=16,
    batch_size=8,
  ),
  optimizer=dict(kind="adamw", learning_rate=1e-2),
  schedule=dict(kind="constant"),
  train=dict(steps=2, save_every=0),
  eval=dict(num_tokens=128),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("eval") / "run"
  train(CONFIG, folder, quiet=True)
  return str(folder)


def answer(capsys, *argv):
  code = command.main(list(argv))
  out = capsys.readouterr()
  return code, out.out, out.err


def test_a_run_is_evaluated_over_the_mesh_as_on_one_device(folder, capsys):
  code, out, _ = answer(
    capsys, "--run", folder, "--lengths=8,16", "--num_tokens=500", "--json", "--by-position"
  )
  got = json.loads(out)
  config, params = (opened := open_model(folder)).run, opened.params
  cfg = run_config(config)
  want = evaluate_lengths(cfg.model, params, cfg.data, [8, 16], num_tokens=500)
  assert code == 0 and got["step"] == 2
  for g, w in zip(got["lengths"], want):
    assert g["tokens"] == w.tokens == 496
    assert g["loss"] == pytest.approx(w.loss, rel=1e-6)
    assert g["bits_per_byte"] == pytest.approx(w.bits_per_byte, rel=1e-6)
    assert len(g["loss_by_position"]) == g["length"]


def test_beyond_a_learned_table_there_is_a_reason_and_no_number(folder, capsys):
  code, out, _ = answer(capsys, "--run", folder, "--lengths=16,32", "--num_tokens=200")
  assert code == 0 and "n/a" in out and "max_len = 16" in " ".join(out.split())


@pytest.mark.parametrize(
  "argv, sentence",
  [
    (["--lengths=8,x"], "wanted token counts"),
    (["--num_tokens=0"], "wanted 1 or more"),
    (["--config.model.positoin=rope"], "did you mean 'position'"),
  ],
)
def test_wrong_requests_end_with_a_sentence_and_code_2(folder, capsys, argv, sentence):
  code, _, err = answer(capsys, "--run", folder, *argv)
  assert code == 2 and sentence in err


def test_a_folder_that_is_no_run_ends_with_a_sentence_and_code_2(tmp_path, capsys):
  code, _, err = answer(capsys, "--run", str(tmp_path))
  assert code == 2 and "neither a run folder" in err
