"""Official LaCT arrays and checkpoints: golden values and gradients, names there and back, refused
configurations.
"""

import pathlib

import jax
import numpy as np
import pytest

from jaxlm.config import ConfigError
from jaxlm.interop import huggingface
from jaxlm.interop.golden.case import Case
from jaxlm.interop.verify import verify

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
CONFIG = dict(
  model_type="lact_swiglu",
  hidden_size=48,
  num_hidden_layers=2,
  num_attn_heads=4,
  num_lact_heads=2,
  lact_chunk_size=8,
  window_size=8,
  w0_w2_low_rank=4,
  intermediate_size=80,
  vocab_size=97,
  use_muon=True,
)


@pytest.mark.slow  # compiling whole models takes minutes on two cores
@pytest.mark.parametrize(
  "path",
  sorted([*(GOLDEN / "lact").glob("*.npz"), *(GOLDEN / "mixers").glob("*.npz")]),
  ids=lambda p: p.stem,
)
def test_outputs_and_gradients_are_the_official_ones(path):
  row = verify(path)
  assert row.passed, (row.message, [c for c in row.comparisons if not c.passed])
  if (row.system, row.kind) in {("lact", "op"), ("lact", "layer"), ("lact", "language_model")}:
    assert any(
      c.key.startswith("streaming") for c in row.comparisons
    )  # equals the parallel form: part of every case


def test_a_checkpoint_survives_the_way_there_and_back():
  state = Case(GOLDEN / "lact" / "lm_momentum.npz").group("param")
  hf = CONFIG | dict(use_muon=False)
  cfg = huggingface.read_config(hf)
  written, back = huggingface.export(cfg, huggingface.import_params(hf, state))
  assert written["architectures"] == ["LaCTForCausalLM"]
  assert huggingface.read_config(written) == cfg
  assert set(back) == set(state) and all(np.array_equal(back[name], state[name]) for name in state)


def test_the_released_3b_momentum_file_is_refused_with_its_reason():
  with pytest.raises(ConfigError, match="heads and layers|heads and 25 layers|exchanged"):
    huggingface.read_config(CONFIG | dict(hidden_size=3072, num_attn_heads=25))


def test_the_size_of_the_760m_model_is_the_papers():
  cfg = huggingface.read_config(
    CONFIG
    | dict(
      hidden_size=1536,
      num_hidden_layers=24,
      num_attn_heads=24,
      num_lact_heads=4,
      w0_w2_low_rank=32,
      vocab_size=32000,
      intermediate_size=4096,
      lact_chunk_size=2048,
      window_size=2048,
    )
  )
  shapes = jax.eval_shape(cfg.build().init, jax.random.key(0), np.zeros((1, 8), np.int32))
  count = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(shapes))
  assert abs(count / 1e6 - 797.6) < 0.1  # docs/specs/lact.md, section 4
