"""T5, ByT5 and MrT5 checkpoints through `jaxlm convert`: both ways, names and fields strict."""

import json
import pathlib

import numpy as np
import pytest

from jaxlm.checkpoint import weights_folder
from jaxlm.checkpoint.weight_files import read_weights, write_weights
from jaxlm.interop import convert, huggingface
from jaxlm.interop.golden.case import Case
from jaxlm.interop.mrt5 import ALIASES

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "mrt5"
THEIRS = (
  "vocab_size d_model d_ff num_heads d_kv num_layers num_decoder_layers relative_attention_num_buckets "
  "relative_attention_max_distance feed_forward_proj tie_word_embeddings layer_norm_epsilon dropout_rate is_encoder_decoder "
  "use_softmax1 has_absolute_position_embeddings max_position_embeddings delete_gate_layer sigmoid_mask_scale "
  "deletion_threshold deletion_type gate_layer_norm use_gumbel_noise"
).split()


def checkpoint(folder, name: str, architecture: str, **more):
  """A folder as the library writes it: aliases stored too."""
  case = Case(GOLDEN / f"{name}.npz")
  state = case.group("param")
  write_weights(folder, state | {alias: state["shared.weight"] for alias in ALIASES})
  config = (
    {k: case.config[k] for k in THEIRS if k in case.config}
    | {"architectures": [architecture]}
    | more
  )
  (folder / "config.json").write_text(json.dumps(config))
  return folder


@pytest.mark.parametrize(
  "name, architecture",
  [("hf_t5_v1_1", "T5ForConditionalGeneration"), ("mrt5_hard", "MrT5ForConditionalGeneration")],
)
def test_there_and_back_is_the_same_checkpoint_bit_for_bit(tmp_path, capsys, name, architecture):
  theirs = checkpoint(tmp_path / "hf", name, architecture)
  assert convert.main(["--from", "hf", str(theirs), "--to", str(tmp_path / "ours")]) == 0
  assert convert.main(["--from", str(tmp_path / "ours"), "--to", "hf", str(tmp_path / "back")]) == 0
  assert architecture in capsys.readouterr().out
  want, got = read_weights(theirs), read_weights(tmp_path / "back")
  assert set(got) == set(want) - set(ALIASES)
  assert all(want[k].tobytes() == got[k].tobytes() for k in got)
  again = json.loads((tmp_path / "back" / "config.json").read_text())
  assert huggingface.read_config(again) == weights_folder.load(tmp_path / "ours")[0]


def test_what_does_not_fit_is_named(tmp_path, capsys):
  folder = checkpoint(
    tmp_path / "hf", "mrt5_hard", "MrT5ForConditionalGeneration", train_language="en"
  )

  def go(*more):
    return convert.main(["--from", "hf", str(folder), "--to", str(tmp_path / "ours"), *more])

  assert go() == 2 and "'train_language'" in capsys.readouterr().err
  state = {k: np.asarray(v) for k, v in read_weights(folder).items()}
  state["encoder.block.2.delete_gate.extra"] = state.pop(
    "encoder.block.2.delete_gate.feed_forward.bias"
  )
  write_weights(folder, state)
  assert go("--ignore-field", "train_language") == 2
  said = capsys.readouterr().err
  assert (
    "missing encoder.block.2.delete_gate.feed_forward.bias" in said
    and "left over encoder.block.2.delete_gate.extra" in said
  )


def test_a_byt5_checkpoint_becomes_an_mrt5_to_continue(tmp_path):
  folder = checkpoint(tmp_path / "hf", "hf_t5_v1_1", "T5ForConditionalGeneration")
  assert (
    convert.main(
      ["--from", "hf", str(folder), "--to", str(tmp_path / "ours"), "--delete-gate", "1"]
    )
    == 0
  )
  model, params = weights_folder.load(tmp_path / "ours")
  assert model.softmax1 and model.reduction.layer == 1
  q = read_weights(folder)["encoder.block.1.layer.0.SelfAttention.q.weight"]
  np.testing.assert_array_equal(
    params["encoder_back"]["attention"]["w_q"][0].reshape(q.shape[1], -1).T, q
  )
