"""What cannot be evaluated is refused before the first step; a run that skipped its steps has not
finished.
"""

import dataclasses
import json
import math

import numpy as np
import pytest
import tiny_run

from jaxlm import json_text
from jaxlm.config import ConfigError
from jaxlm.training import metrics
from jaxlm.training.command import main
from jaxlm.training.loop import NonFinite
from jaxlm.training.run import check_evaluation, too_many_skipped, train

NANS = {"objective.kind": "tiny_nan", "objective.first": 1, "train.max_skipped": 100}


def strictly(text):
  """Parsed as any other language would: NaN and Infinity are no JSON."""

  def refuse(word):
    raise AssertionError(f"{word} is not JSON")

  return json.loads(text, parse_constant=refuse)


@pytest.fixture(scope="module")
def failed(tmp_path_factory):
  folder = tmp_path_factory.mktemp("nans") / "r"
  with pytest.raises(
    NonFinite, match=r"5 of 6 steps were skipped.*train.max_skipped_fraction = 0.5.*learning_rate"
  ):
    train(tiny_run.config(**NANS), folder, quiet=True)
  return folder


def test_a_run_that_skipped_most_of_its_steps_has_not_finished_and_its_files_are_json(failed):
  result = strictly((failed / "result.json").read_text())
  assert not result["finished"] and "5 of 6 steps" in result["failed"] and result["skipped"] == 5
  records = [strictly(line) for line in (failed / "metrics.jsonl").read_text().splitlines()]
  assert [r["grad_norm"] for r in records if "loss" in r][-1] == "nan"
  assert math.isnan(
    [r["grad_norm"] for r in metrics.read(failed) if "loss" in r][-1]
  )  # and is a number to readers


def test_asking_such_a_run_again_fails_again_and_another_limit_lets_it_pass(failed):
  with pytest.raises(NonFinite, match="5 of 6 steps"):
    train(tiny_run.config(**NANS), failed, quiet=True)
  result = train(tiny_run.config(**NANS, **{"train.max_skipped_fraction": 0.9}), failed, quiet=True)
  assert result.finished and strictly((failed / "result.json").read_text())["finished"]


def test_the_command_says_so_and_exits_with_1(tmp_path, monkeypatch, capsys):
  file = tmp_path / "config.py"
  file.write_text(
    "import tiny_run\ndef get_config(): return tiny_run.config(**{'objective.kind': 'tiny_nan', "
    "'objective.first': 0, 'train.max_skipped': 100, 'train.steps': 2})\n"
  )
  assert main([f"--config={file}", f"--workdir={tmp_path / 'r'}", "--quiet"]) == 1
  assert "2 of 2 steps were skipped" in capsys.readouterr().err


@pytest.mark.parametrize(
  "skipped, steps, limit, fails",
  [
    (0, 0, 0.0, False),
    (1, 2, 0.5, False),
    (2, 3, 0.5, True),
    (1, 9, 0.0, True),
    (9, 9, 1.0, False),
  ],
)
def test_the_limit_is_a_share_of_all_steps(skipped, steps, limit, fails):
  assert bool(too_many_skipped(skipped, steps, limit)) == fails


@dataclasses.dataclass(frozen=True)
class NothingToScore(tiny_run.TinyData):
  """Its validation split has no rows, or rows without a target."""

  rows: int = 0

  def build(self, split, **options):
    if split == "train":
      return super().build(split, **options)
    made = dataclasses.replace(tiny_run.TinyData(), num_rows=self.rows).build(split, **options)
    return made.map(lambda batch: batch | {"loss_weights": 0 * batch["loss_weights"]})


tiny_run.DATA.table["nothing_to_score"] = "test_refused_early:NothingToScore"


@pytest.mark.parametrize("every", [0, 1])
@pytest.mark.parametrize("rows", [0, 16])
def test_an_empty_validation_split_is_refused_before_the_first_step(tmp_path, rows, every):
  config = tiny_run.config(data=dict(kind="nothing_to_score", rows=rows), **{"eval.every": every})
  with pytest.raises(
    ConfigError, match="eval.split = 'validation' has no target to score at length 8"
  ):
    train(config, tmp_path / "r", quiet=True)
  assert (
    not (tmp_path / "r" / "metrics.jsonl").exists()
    and not (tmp_path / "r" / "checkpoints").exists()
  )


@pytest.mark.parametrize(
  "overrides, said",
  [
    ({"eval.split": "dev"}, "eval.split = 'dev'"),
    ({"eval.lengths": (0,)}, r"eval.lengths\[0\] = 0: wanted 1 or more"),
  ],
)
def test_an_evaluation_that_cannot_be_meant_is_refused_before_the_first_step(
  tmp_path, overrides, said, monkeypatch
):
  monkeypatch.setenv("JAXLM_DATA", str(tmp_path / "data"))
  (tmp_path / "corpus.txt").write_text("a line of text\n" * 200)
  data = dict(kind="text", source=f"text:{tmp_path / 'corpus.txt'}", seq_len=8, batch_size=8)
  config = tiny_run.config(data=data, **{"model.vocab_size": 257} | overrides)
  with pytest.raises(ConfigError, match=said):
    train(config, tmp_path / "r", quiet=True)
  assert not (tmp_path / "r" / "metrics.jsonl").exists()


def test_perplexity_at_a_length_needs_a_model_of_the_next_token():
  from jaxlm.training.config import load_config, run_config

  cfg = run_config(load_config("configs/mrt5/smoke.py", {"eval.lengths": (8,)}))
  with pytest.raises(
    ConfigError, match=r"eval.lengths = \(8,\).*scores target_sequence; leave eval.lengths out"
  ):
    check_evaluation(cfg, 1)


def test_what_is_not_finite_is_a_text_in_json_and_a_number_again_when_it_is_read():
  value = {
    "a": math.nan,
    "b": [math.inf, -math.inf, 1.5],
    "c": {"d": np.float64("nan")},
    "text": "x",
    "yes": True,
  }
  text = json_text.dumps(value, indent=1)
  assert (
    strictly(text)["a"] == "nan"
    and strictly(text)["b"] == ["inf", "-inf", 1.5]
    and strictly(text)["yes"] is True
  )
  again = json_text.number(json.loads(text))
  assert (
    math.isnan(again["a"])
    and again["b"] == value["b"]
    and math.isnan(again["c"]["d"])
    and again["text"] == "x"
  )
