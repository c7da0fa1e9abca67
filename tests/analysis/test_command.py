"""`jaxlm probe` prints and draws for a run of one's own, and says in one sentence what is wrong."""

import json

import jax
import numpy as np
import pytest
import small

from jaxlm.cli import main
from jaxlm.training.config import load_config, run_config

TINY = {"model.d_model": 16, "model.num_layers": 2, "model.unroll": 2, "model.mlp.d_ff": 16}


@pytest.fixture
def run(tmp_path, write_run):
  config = load_config("configs/attnsink/tiny.py", TINY | {"data.source": "mini:udhr/eng"})
  cfg = run_config(config)
  params = small.params_of(cfg.model)
  plain = json.loads(config.to_json())
  return write_run(tmp_path / "run", plain, {7: jax.tree.map(np.asarray, params)})


def test_every_probe_prints_and_draws(run, tmp_path, capsys):
  picture = tmp_path / "sinks.svg"
  argv = ["probe", "--run", str(run), "--probe", "sinks", "--rows", "2", "--length", "12"]
  assert main([*argv, "--eps", "0.2", "--out", str(picture)]) == 0
  said = capsys.readouterr().out
  assert "sink rate:" in said and "largest activations" in said and str(picture) in said
  assert picture.read_text().startswith("<?xml")
  argv = ["probe", "--run", str(run), "--probe", "attribution", "--text", "All human beings"]
  out = ["--method", "gradient_x_input", "--json", "--out", str(tmp_path / "a.png")]
  assert main([*argv, *out]) == 0
  found = json.loads(capsys.readouterr().out)
  assert [row["text"] for row in found["tables"]["attribution"]][1:4] == ["A", "l", "l"]
  total = sum(row["attribution"] for row in found["tables"]["attribution"])
  np.testing.assert_allclose(total, found["numbers"]["sum of attributions"], atol=1e-5)


@pytest.mark.parametrize(
  "change, sentence",
  [
    (["--probe", "sink"], "did you mean 'sinks'"),
    (["--probe", "heads", "--eps", "0.1"], "--eps belongs to --probe sinks"),
    (["--probe", "heads", "--method", "random"], "--method belongs to --probe attribution"),
    (["--probe", "attribution", "--method", "saliency"], "is not an attribution method"),
    (["--probe", "heads", "--rows", "0"], "at least 1"),
    (["--probe", "heads", "--out", "x.pdf"], "ends in .png or .svg"),
    (["--probe", "heads", "--run", "nowhere"], "it does not exist"),
  ],
)
def test_a_mistake_is_answered_in_one_sentence(change, sentence, capsys):
  argv = ["probe", *([] if "--run" in change else ["--run", "nowhere"]), *change]
  assert main(argv) != 0
  error = capsys.readouterr().err
  assert sentence in error and "Traceback" not in error, error
