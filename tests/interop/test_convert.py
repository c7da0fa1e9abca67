"""`jaxlm convert`: there and back, from runs too, and what it refuses without a traceback."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

from jaxlm.checkpoint import weights_folder
from jaxlm.checkpoint.model_json import tagged
from jaxlm.checkpoint.trees import flatten, unflatten
from jaxlm.checkpoint.weight_files import read_weights, write_weights
from jaxlm.interop import convert, huggingface
from jaxlm.interop.golden.case import Case
from jaxlm.interop.golden.decoder import NOT_THEIRS
from jaxlm.layers.routers import SpaceBoundaries

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "decoder"


@pytest.fixture
def checkpoint(tmp_path):
  """A Hugging Face folder as the library writes it."""
  case = Case(GOLDEN / "llama_yarn_tied.npz")
  folder = tmp_path / "hf"
  write_weights(folder, case.group("param"))
  config = {k: v for k, v in case.config.items() if k not in NOT_THEIRS}
  config |= {
    "architectures": [case.config["architecture"]],
    "model_type": "llama",
    "torch_dtype": "float32",
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "use_cache": True,
    "transformers_version": "5.0.0",
  }
  (folder / "config.json").write_text(json.dumps(config))
  return folder


HNET = dict(
  arch_layout=["m2", ["T1m1", ["T2"], "m1T1"], "m1"],
  d_model=[32, 32, 64],
  d_intermediate=[0, 100, 256],
  vocab_size=256,
  ssm_cfg=dict(d_conv=4, expand=2, d_state=[8, 8, 16], chunk_size=256),
  attn_cfg=dict(num_heads=[4, 4, 4], rotary_emb_dim=[4, 4, 8], window_size=[7, 7, -1]),
  tie_embeddings=False,
)


def refused(capsys, *argv) -> str:
  assert convert.main([*map(str, argv)]) == 2
  captured = capsys.readouterr()
  assert "Traceback" not in captured.err
  return captured.err


def test_there_and_back_is_the_same_checkpoint_bit_for_bit(checkpoint, tmp_path, capsys):
  assert convert.main(["--from", "hf", str(checkpoint), "--to", str(tmp_path / "ours")]) == 0
  assert (
    convert.main(
      ["--from", str(tmp_path / "ours"), "--to", "hf", str(tmp_path / "back"), "--seq-len", "64"]
    )
    == 0
  )
  assert "LlamaForCausalLM" in capsys.readouterr().out
  want, got = read_weights(checkpoint), read_weights(tmp_path / "back")
  assert set(want) == set(got) and all(want[k].tobytes() == got[k].tobytes() for k in want)
  config = json.loads((tmp_path / "back" / "config.json").read_text())
  assert config["rope_parameters"]["factor"] == 4.0 and config["max_position_embeddings"] == 64
  model, params = weights_folder.load(tmp_path / "ours")
  assert model == huggingface.read_config(json.loads((checkpoint / "config.json").read_text()))
  assert params["blocks"]["mixer"]["w_q"].shape == (2, 32, 4, 8)


def test_an_hnet_is_written_as_it_is_released_and_read_back(tmp_path, capsys):
  torch = pytest.importorskip("torch")
  model = huggingface.read_config(HNET)
  draw = np.random.default_rng(0).normal
  params = unflatten(
    {
      k: draw(size=shape).astype(np.float32)
      for k, shape in weights_folder.expected_shapes(model).items()
    }
  )
  weights_folder.save(tmp_path / "ours", model, params)
  assert convert.main(["--from", str(tmp_path / "ours"), "--to", "hf", str(tmp_path / "out")]) == 0
  assert (
    json.loads((tmp_path / "out" / "config.json").read_text()) == HNET
  )  # the release's reader takes no other field
  state = dict(read_weights(tmp_path / "out"))
  assert state["backbone.main_network.main_network.pad_dimension"].shape == (32,)
  assert state["backbone.main_network.encoder.layers.0.mlp.fc1.weight"].shape == (
    256,
    32,
  )  # 100 rounded up, twice
  (tmp_path / "out" / "model.safetensors").unlink()
  torch.save({k: torch.tensor(v) for k, v in state.items()}, tmp_path / "out" / "hnet.pt")
  assert convert.main(["--from", "hf", str(tmp_path / "out"), "--to", str(tmp_path / "back")]) == 0
  again, back = weights_folder.load(tmp_path / "back")
  assert again == model
  for name, value in flatten(back).items():
    np.testing.assert_array_equal(value, flatten(params)[name])
  weights_folder.save(
    tmp_path / "space",
    dataclasses.replace(
      model,
      stages=(dataclasses.replace(model.stages[0], router=SpaceBoundaries()), *model.stages[1:]),
    ),
    {k: v for k, v in params.items()}
    | {"backbone": {k: v for k, v in params["backbone"].items() if k != "router"}},
  )
  assert "stages.0.router" in refused(
    capsys, "--from", tmp_path / "space", "--to", "hf", tmp_path / "no"
  )
  (tmp_path / "out" / "config.json").write_text(json.dumps(HNET | {"mystery": 1}))
  assert "'mystery'" in refused(capsys, "--from", "hf", tmp_path / "out", "--to", tmp_path / "no")


def test_a_dry_run_prints_the_mapping_and_writes_nothing(checkpoint, tmp_path, capsys):
  assert (
    convert.main(["--from", "hf", str(checkpoint), "--to", str(tmp_path / "ours"), "--dry-run"])
    == 0
  )
  out = capsys.readouterr().out.splitlines()
  line = next(line.split() for line in out if "q_proj" in line)
  assert (
    line[0] == "model.layers.{layer}.self_attn.q_proj.weight" and line[-1] == "blocks/mixer/w_q"
  )
  assert not (tmp_path / "ours").exists()


def test_dtype_is_that_of_what_is_written(checkpoint, tmp_path):
  assert (
    convert.main(
      ["--from", "hf", str(checkpoint), "--to", str(tmp_path / "b"), "--dtype", "bfloat16"]
    )
    == 0
  )
  assert {str(a.dtype) for a in read_weights(tmp_path / "b").values()} == {"bfloat16"}


def test_the_newest_and_a_named_step_of_a_run_are_exported(checkpoint, tmp_path, capsys, write_run):
  hf = json.loads((checkpoint / "config.json").read_text())
  model, params = (
    huggingface.read_config(hf),
    huggingface.import_params(hf, read_weights(checkpoint)),
  )
  run = write_run(
    tmp_path / "run",
    {"seed": 0, "model": {"kind": "decoder"} | tagged(model)},
    {step: jax.tree.map(lambda v, step=step: step * v, params) for step in (1, 2)},
  )
  assert convert.main(["--from", str(run), "--to", "hf", str(tmp_path / "new")]) == 0
  assert convert.main(["--from", str(run), "--to", "hf", str(tmp_path / "old"), "--step", "1"]) == 0
  want = read_weights(checkpoint)
  for folder, step in (("old", 1), ("new", 2)):
    got = read_weights(tmp_path / folder)
    assert set(got) == set(want) and all(np.array_equal(got[k], step * want[k]) for k in want)
  assert "steps: 1, 2" in refused(capsys, "--from", run, "--to", tmp_path / "x", "--step", 7)
  assert "ema_decay" in refused(capsys, "--from", run, "--to", tmp_path / "x", "--ema")


def test_wrong_input_is_answered_with_a_sentence(checkpoint, tmp_path, capsys):
  out = tmp_path / "out"
  assert "jaxlm downloads nothing" in refused(
    capsys, "--from", "hf", tmp_path / "nowhere", "--to", out
  )
  assert "config.json does not exist" in refused(capsys, "--from", "hf", tmp_path, "--to", out)
  assert "neither a run folder" in refused(capsys, "--from", checkpoint, "--to", out)
  assert "nothing to convert" in refused(capsys, "--from", "hf", checkpoint, "--to", "hf", out)
  assert "wanted `--from hf DIR`" in refused(capsys, "--from", "HF", checkpoint, "--to", out)
  assert "not an empty folder" in refused(capsys, "--from", "hf", checkpoint, "--to", checkpoint)
  assert "--ema" in refused(capsys, "--from", "hf", checkpoint, "--to", out, "--ema")
  config = json.loads((checkpoint / "config.json").read_text())
  (checkpoint / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
  assert "left over model.layers.1." in refused(capsys, "--from", "hf", checkpoint, "--to", out)
  (checkpoint / "config.json").write_text(json.dumps(config | {"mystery": 1}))
  assert "'mystery'" in refused(capsys, "--from", "hf", checkpoint, "--to", out)
  assert (
    convert.main(["--from", "hf", str(checkpoint), "--to", str(out), "--ignore-field", "mystery"])
    == 0
  )
  (out / "model.json").write_text("{")
  assert "model.json is not JSON" in refused(capsys, "--from", out, "--to", "hf", tmp_path / "z")
