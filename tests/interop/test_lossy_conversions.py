"""What a conversion would lose is kept, said or refused: heads, number types, token ids,
tokenizers, longest inputs.
"""

import json
import pathlib

import ml_dtypes
import numpy as np
import pytest

from jaxlm.checkpoint import weights_folder
from jaxlm.checkpoint.errors import WeightsError
from jaxlm.checkpoint.model_json import tagged
from jaxlm.checkpoint.trees import flatten
from jaxlm.checkpoint.weight_files import read_weights, write_weights
from jaxlm.config import ConfigError
from jaxlm.interop import convert, huggingface
from jaxlm.interop.golden.case import Case
from jaxlm.interop.golden.decoder import NOT_THEIRS

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
LLAMA = GOLDEN / "decoder" / "llama.npz"
TOKENIZER = {
  "tokenizer.json": "{}",
  "tokenizer_config.json": '{"tokenizer_class": "LlamaTokenizer"}',
  "special_tokens_map.json": "{}",
  "generation_config.json": '{"eos_token_id": [2, 5]}',
}


def checkpoint(folder, path=LLAMA, *, change=None, **more):
  """A folder as the library writes it, with its tokenizer. change: arrays put in place of the
  stored ones.
  """
  case = Case(path)
  config = {k: v for k, v in case.config.items() if k not in NOT_THEIRS}
  config |= {
    "architectures": [case.config["architecture"]],
    "bos_token_id": 3,
    "eos_token_id": [2, 5],
    "pad_token_id": 0,
    "initializer_range": 0.02,
    "transformers_version": "5.0.0",
  } | more
  write_weights(folder, case.group("param") | (change or {}))
  (folder / "config.json").write_text(json.dumps(config))
  for name, text in TOKENIZER.items():
    (folder / name).write_text(text)
  return folder


def run(*argv) -> int:
  return convert.main([*map(str, argv)])


# -- heads beside tied tables
# -----------------------------------------------------------------------------------------

TIED = {
  "gpt2": ("transformer.wte.weight", True),
  "llama_yarn_tied": ("model.embed_tokens.weight", True),
  "gemma2_softcap": ("model.embed_tokens.weight", True),
  "llama": ("model.embed_tokens.weight", False),
  "qwen3_qknorm": ("model.embed_tokens.weight", False),
  "gpt_neox_partial_rotary": ("gpt_neox.embed_in.weight", False),
  "mamba2_two_groups": ("backbone.embeddings.weight", False),
}


@pytest.mark.parametrize("name", TIED)
def test_every_family_keeps_a_head_of_its_own_says_so_and_writes_it_back(tmp_path, capsys, name):
  table, stored_tied = TIED[name]
  state = Case(GOLDEN / "decoder" / f"{name}.npz").group("param")
  head = state[table] + 1 if stored_tied else state["lm_head.weight"]
  folder = checkpoint(
    tmp_path / "hf",
    GOLDEN / "decoder" / f"{name}.npz",
    change={"lm_head.weight": head},
    tie_word_embeddings=True,
  )
  config = json.loads((folder / "config.json").read_text())
  with pytest.raises(WeightsError, match=f"lm_head.weight differs from {table}"):
    huggingface.import_params(config, read_weights(folder))
  assert run("--from", "hf", folder, "--to", tmp_path / "ours") == 0
  assert f"note: lm_head.weight differs from {table}" in capsys.readouterr().out
  model, params = weights_folder.load(tmp_path / "ours")
  assert not model.tie_embeddings
  np.testing.assert_array_equal(params["head"]["w_out"], head)
  assert run("--from", tmp_path / "ours", "--to", "hf", tmp_path / "back") == 0
  np.testing.assert_array_equal(read_weights(tmp_path / "back")["lm_head.weight"], head)
  assert json.loads((tmp_path / "back" / "config.json").read_text())["tie_word_embeddings"] is False


@pytest.mark.parametrize("name", ["gpt2", "llama_yarn_tied"])
def test_a_table_under_the_heads_name_alone_is_the_table(tmp_path, name):
  table, _ = TIED[name]
  folder = checkpoint(tmp_path / "hf", GOLDEN / "decoder" / f"{name}.npz")
  state = dict(read_weights(folder))
  config = json.loads((folder / "config.json").read_text())
  _, want, _ = huggingface.read_checkpoint(config, state)
  state["lm_head.weight"] = state.pop(table)
  cfg, got, notes = huggingface.read_checkpoint(config, state)
  assert cfg.tie_embeddings and table in notes[0]
  np.testing.assert_array_equal(got["embed"]["embedding"], want["embed"]["embedding"])


def write_safetensors(path, state):
  """By hand: safetensors.numpy writes no float8."""
  names = {"float32": "F32", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}
  header, data = {}, b""
  for name, array in state.items():
    header[name] = {
      "dtype": names[str(array.dtype)],
      "shape": array.shape,
      "data_offsets": [len(data), len(data) + array.nbytes],
    }
    data += array.tobytes()
  text = json.dumps(header).encode()
  path.write_bytes(len(text).to_bytes(8, "little") + text + data)


# -- number types
# -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["int8", "uint8", "float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("kind", ["safetensors", "torch"])
def test_quantised_arrays_are_refused_with_a_sentence(tmp_path, capsys, dtype, kind):
  folder = checkpoint(tmp_path / "hf")
  state, name = dict(read_weights(folder)), "model.layers.0.mlp.up_proj.weight"
  if kind == "torch":
    torch = pytest.importorskip("torch")
    state = {k: torch.tensor(v) for k, v in state.items()}
    torch.save(state | {name: state[name].to(getattr(torch, dtype))}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
  elif dtype.startswith("float8"):
    write_safetensors(
      folder / "model.safetensors", state | {name: state[name].astype(getattr(ml_dtypes, dtype))}
    )
  else:
    write_weights(folder, state | {name: state[name].astype(dtype)})
  assert run("--from", "hf", folder, "--to", tmp_path / "ours") == 2
  said = capsys.readouterr().err
  assert f"{name} is {dtype}" in said and "dequantise" in said and not (tmp_path / "ours").exists()


def test_scales_beside_weights_are_named_as_what_they_are(tmp_path, capsys):
  folder = checkpoint(
    tmp_path / "hf", change={"model.layers.0.mlp.up_proj.weight_scale": np.ones(1, np.float32)}
  )
  assert run("--from", "hf", folder, "--to", tmp_path / "ours") == 2
  assert (
    "the checkpoint is quantised (it holds model.layers.0.mlp.up_proj.weight_scale"
    in capsys.readouterr().err
  )


def test_a_quantisation_in_config_json_is_refused_and_null_is_none(tmp_path):
  config = json.loads((checkpoint(tmp_path / "hf") / "config.json").read_text())
  with pytest.raises(ConfigError, match="'bitsandbytes'.*dequantise"):
    huggingface.read_config(
      config | {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    )
  assert huggingface.read_config(config | {"quantization_config": None}) == huggingface.read_config(
    config
  )


def test_a_number_that_float16_cannot_hold_is_refused(tmp_path, capsys):
  folder = checkpoint(tmp_path / "hf", change={"model.norm.weight": np.full(32, 7e4, np.float32)})
  assert run("--from", "hf", folder, "--to", tmp_path / "half", "--dtype", "float16") == 2
  assert "7e+04" in (said := capsys.readouterr().err) and "bfloat16" in said
  assert run("--from", "hf", folder, "--to", tmp_path / "brain", "--dtype", "bfloat16") == 0
  assert run("--from", "hf", folder, "--to", tmp_path / "ours") == 0
  assert run("--from", tmp_path / "ours", "--to", "hf", tmp_path / "out", "--dtype", "float16") == 2
  assert run("--from", tmp_path / "ours", "--to", tmp_path / "again", "--dtype", "float16") == 2


# -- what lies beside the weights
# -------------------------------------------------------------------------------------


def test_token_ids_tokenizer_and_longest_input_survive_the_way_there_and_back(tmp_path, capsys):
  folder = checkpoint(tmp_path / "hf", max_position_embeddings=77)
  assert run("--from", "hf", folder, "--to", tmp_path / "ours") == 0
  assert "tokenizer.json" in capsys.readouterr().out
  assert run("--from", tmp_path / "ours", "--to", tmp_path / "half", "--dtype", "bfloat16") == 0
  for source in ("ours", "half"):
    back = tmp_path / f"back-{source}"
    assert run("--from", tmp_path / source, "--to", "hf", back) == 0
    config = json.loads((back / "config.json").read_text())
    want = {
      "bos_token_id": 3,
      "eos_token_id": [2, 5],
      "pad_token_id": 0,
      "max_position_embeddings": 77,
      "initializer_range": 0.02,
    }
    assert {key: config[key] for key in want} == want
    assert (
      config["dtype"] == ("float32" if source == "ours" else "bfloat16")
      and "transformers_version" not in config
    )
    assert {name: (back / name).read_text() for name in TOKENIZER} == TOKENIZER
  assert "note" not in capsys.readouterr().out
  assert run("--from", tmp_path / "ours", "--to", "hf", tmp_path / "longer", "--seq-len", 99) == 0
  assert (
    json.loads((tmp_path / "longer" / "config.json").read_text())["max_position_embeddings"] == 99
  )


def test_a_run_takes_them_from_the_folder_that_it_began_with_and_says_what_is_missing_otherwise(
  tmp_path, capsys, write_run
):
  assert run("--from", "hf", checkpoint(tmp_path / "hf"), "--to", tmp_path / "ours") == 0
  model, params = weights_folder.load(tmp_path / "ours")
  for name, train in (("begun", {"init_from": str(tmp_path / "ours")}), ("fresh", {})):
    folder = write_run(
      tmp_path / name, {"model": {"kind": "decoder"} | tagged(model), "train": train}, {1: params}
    )
    capsys.readouterr()
    assert run("--from", folder, "--to", "hf", tmp_path / f"{name}-hf") == 0
    out, config = (
      capsys.readouterr().out,
      json.loads((tmp_path / f"{name}-hf" / "config.json").read_text()),
    )
    if name == "begun":
      assert (
        config["eos_token_id"] == [2, 5]
        and (tmp_path / "begun-hf" / "tokenizer.json").is_file()
        and "note" not in out
      )
    else:
      assert "eos_token_id" not in config
      for said in (
        "no bos_token_id and no eos_token_id",
        "no tokenizer is written",
        "max_position_embeddings = 2048 is a guess",
      ):
        assert said in out


def test_a_runs_own_tokenizer_file_goes_with_its_weights(tmp_path, write_run):
  assert run("--from", "hf", checkpoint(tmp_path / "hf"), "--to", tmp_path / "ours") == 0
  model, params = weights_folder.load(tmp_path / "ours")
  (tmp_path / "own.json").write_text('{"own": 1}')
  folder = write_run(
    tmp_path / "run",
    {
      "model": {"kind": "decoder"} | tagged(model),
      "data": {"tokenizer": {"kind": "bpe", "path": str(tmp_path / "own.json")}},
    },
    {1: params},
  )
  assert run("--from", folder, "--to", "hf", tmp_path / "out") == 0
  assert (tmp_path / "out" / "tokenizer.json").read_text() == '{"own": 1}'


def test_an_export_under_another_name_keeps_the_token_ids_only(tmp_path):
  assert run("--from", "hf", checkpoint(tmp_path / "hf"), "--to", tmp_path / "ours") == 0
  assert (
    run(
      "--from",
      tmp_path / "ours",
      "--to",
      "hf",
      tmp_path / "mistral",
      "--architecture",
      "MistralForCausalLM",
    )
    == 0
  )
  config = json.loads((tmp_path / "mistral" / "config.json").read_text())
  assert config["eos_token_id"] == [2, 5] and "initializer_range" not in config


def test_weights_are_the_same_bits_there_and_back(tmp_path):
  folder = checkpoint(tmp_path / "hf")
  assert run("--from", "hf", folder, "--to", tmp_path / "ours") == 0
  assert run("--from", tmp_path / "ours", "--to", "hf", tmp_path / "back") == 0
  want, got = read_weights(folder), read_weights(tmp_path / "back")
  assert {k: v.tobytes() for k, v in got.items()} == {k: v.tobytes() for k, v in want.items()}
  assert all(
    a.dtype == np.float32 for a in flatten(weights_folder.load(tmp_path / "ours")[1]).values()
  )
