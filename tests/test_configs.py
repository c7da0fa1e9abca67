"""Every file under configs/ is a run that can be meant, and the named ones have their papers'
sizes.
"""

import pathlib

import pytest

from jaxlm.evaluation.flops import num_params
from jaxlm.training.config import check, load_config, resolved, run_config

CONFIGS = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("*/*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_config_builds_survives_its_round_trip_and_runs_on_one_device(path):
  config = load_config(str(path))
  assert config.is_locked
  cfg = run_config(config)
  check(cfg, 1)
  assert run_config(resolved(cfg)) == cfg
  assert (
    f"--config=configs/{path.parent.name}/{path.stem}.py" in path.read_text()
  )  # the command that runs it


@pytest.mark.parametrize(
  "name, millions",
  [
    # docs/specs/carope.md section 6: 44M and 124M with a learned table or none; CARoPE adds D H + H
    # per layer (0.09 %)
    ("carope/paper_tiny.py", 44.7),
    ("carope/paper_small.py", 123.8),
    ("decoder/gpt2_small.py", 124.5),
    ("decoder/llama_1b.py", 1236),
    ("decoder/llama_8b.py", 8030),
  ],
)
def test_the_named_sizes_are_the_published_ones(name, millions):
  cfg = run_config(load_config(str(CONFIGS[0].parents[1] / name)))
  assert abs(num_params(cfg.model) / 1e6 - millions) < 0.005 * millions


@pytest.mark.parametrize(
  "name, sequences", [("carope/paper_tiny.py", 1024), ("decoder/gpt2_small.py:1024", 512)]
)
def test_half_a_million_tokens_a_step(name, sequences):
  cfg = run_config(load_config(str(CONFIGS[0].parents[1] / name)))
  assert cfg.data.batch_size == sequences and cfg.data.batch_size * cfg.data.seq_len == 524_288
