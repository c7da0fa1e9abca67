"""Hugging Face decoders: golden parity, round trips, and what is refused."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from jaxlm.checkpoint import weights_folder
from jaxlm.checkpoint.errors import CheckpointFileError, WeightsError
from jaxlm.checkpoint.trees import flatten, unflatten
from jaxlm.config import ConfigError
from jaxlm.interop import huggingface
from jaxlm.interop.golden.case import Case
from jaxlm.interop.golden.decoder import NOT_THEIRS
from jaxlm.interop.huggingface.compare import differences
from jaxlm.interop.verify import verify
from jaxlm.layers.attention import AttentionConfig
from jaxlm.layers.mixer import PatternConfig
from jaxlm.layers.positions.rope import YaRN
from jaxlm.models.decoder import DecoderConfig

GOLDEN = sorted((pathlib.Path(__file__).parents[1] / "golden" / "decoder").glob("*.npz"))
LLAMA = dict(
  architectures=["LlamaForCausalLM"],
  vocab_size=11,
  hidden_size=8,
  intermediate_size=12,
  num_hidden_layers=2,
  num_attention_heads=2,
  num_key_value_heads=1,
  max_position_embeddings=16,
)


def library_config(case):
  hf = {k: v for k, v in case.config.items() if k not in NOT_THEIRS}
  return hf | {"architectures": [case.config["architecture"]]}


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_logits_hidden_states_gradients_and_greedy_decoding_match_the_library(path):
  row = verify(path)
  assert row.passed, [row.message, *(c for c in row.comparisons if not c.passed)]
  assert not row.skipped and not row.unread
  assert {"out/logits", "out/loss", "out/greedy"} <= {c.key for c in row.comparisons}


def test_a_perturbed_weight_fails(tmp_path):
  """The check sees one weight of one layer moved by a hundredth."""
  case = Case(next(p for p in GOLDEN if p.stem == "llama"))
  arrays = {
    k: v for k, v in case.arrays.items() if k != "in/prompt" and "greedy" not in k
  }  # no decoding: faster
  name = "param/model.layers.1.self_attn.k_proj.weight"
  arrays[name] = arrays[name].copy()
  arrays[name][3, 5] += 0.01
  np.savez(tmp_path / "x.npz", config=json.dumps(case.config), **arrays)
  row = verify(tmp_path / "x.npz")
  failed = {c.key for c in row.comparisons if not c.passed}
  assert (
    not row.passed
    and "out/logits" in failed
    and "out/hidden_2" in failed
    and "out/hidden_1" not in failed
  )


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_the_round_trip_gives_the_same_bits_names_and_configuration(path):
  case = Case(path)
  hf, state = library_config(case), case.group("param")
  cfg = huggingface.read_config(hf)
  params = huggingface.import_params(hf, state)
  weights_folder.check_params(cfg, params, "the import")
  config, back = huggingface.export(cfg, params, name=case.config["architecture"], max_len=64)
  assert set(back) == set(state)
  assert all(
    back[k].dtype == state[k].dtype and back[k].tobytes() == state[k].tobytes() for k in state
  )
  assert differences(cfg, huggingface.read_config(json.loads(json.dumps(config)))) == []


def test_without_a_name_the_export_finds_an_architecture_that_says_the_same():
  cfg = huggingface.read_config(LLAMA)
  params = unflatten(
    {k: np.zeros(s, np.float32) for k, s in weights_folder.expected_shapes(cfg).items()}
  )
  assert huggingface.export(cfg, params)[0]["architectures"] == ["LlamaForCausalLM"]
  windowed = dataclasses.replace(cfg, mixer=dataclasses.replace(cfg.mixer, window=4))
  assert huggingface.export(windowed, params)[0]["architectures"] == ["MistralForCausalLM"]
  with pytest.raises(ConfigError, match=r"mixer.0.window = 4, it would become None"):
    huggingface.export(windowed, params, name="LlamaForCausalLM")
  softmax1 = dataclasses.replace(cfg, mixer=dataclasses.replace(cfg.mixer, softmax1=True))
  with pytest.raises(ConfigError, match="softmax1 = True") as refused:
    huggingface.export(softmax1, params)
  head, *reasons = str(refused.value).splitlines()
  assert "weights folder" in head and len(reasons) < len(huggingface.ARCHITECTURES)
  named = [name for line in reasons for name in line.partition(": ")[0].strip().split(", ")]
  assert sorted(named) == sorted(huggingface.ARCHITECTURES)


def test_a_wrong_name_and_a_wrong_shape_are_both_named():
  cfg = huggingface.read_config(LLAMA)
  table = huggingface.converter_of(LLAMA).table(cfg)
  state = {
    n: np.zeros(r.their_shape(table.sizes), np.float32) for r in table.rules for n in r.names(2)
  }
  state["model.layers.1.mlp.gate_prj.weight"] = state.pop("model.layers.1.mlp.gate_proj.weight")
  state["model.norm.weight"] = np.zeros(9, np.float32)
  with pytest.raises(WeightsError) as error:
    huggingface.import_params(LLAMA, state)
  assert (
    "missing model.layers.1.mlp.gate_proj.weight (is it model.layers.1.mlp.gate_prj.weight?)"
    in str(error.value)
  )
  assert "model.norm.weight has shape (9,), wanted (8,) = (d 8)" in str(error.value)


@pytest.mark.parametrize(
  "change, sentence",
  [
    (dict(architectures=["BertModel"]), "'BertModel' is not supported"),
    (dict(architectures=[], model_type="bert"), "model_type 'bert'"),
    (dict(hidden_act="xielu"), "hidden_act = 'xielu'"),
    (dict(rope_parameters={"rope_type": "longrope", "factor": 2.0}), "rope_type = 'longrope'"),
    (dict(rope_parameters={"rope_type": "linear"}), "factor = None"),
    (dict(rope_parameters={"rope_type": "yarn", "factor": 2.0, "beta_fats": 3}), "'beta_fats'"),
    (dict(rope_parameters={"rope_theta": 1e4, "partial_rotary_factor": 0.5}), "turns whole heads"),
    (dict(num_attention_heads=3), "not divisible"),
    (dict(num_key_value_heads=3), "num_kv_heads = 3"),
    (dict(pretraining_tp=2), "pretraining_tp"),
    (dict(sliding_window=5), "'sliding_window' = 5 is unknown for this architecture"),
    (dict(quantization_config={"bits": 4}), "'quantization_config'"),
    (dict(hidden_size="8"), "hidden_size = '8'"),
    (
      dict(architectures=["Qwen3ForCausalLM"], layer_types=["full_attention"]),
      "wanted one for each",
    ),
    (
      dict(architectures=["Qwen3ForCausalLM"], layer_types=["full_attention", "chunked_attention"]),
      "chunked_attention",
    ),
    (
      dict(architectures=["Qwen3ForCausalLM"], layer_types=["full_attention", "sliding_attention"]),
      "no window",
    ),
    (dict(architectures=["Gemma2ForCausalLM"], use_bidirectional_attention=True), "causal"),
  ],
  ids=str,
)
def test_what_the_decoder_does_not_do_is_refused_with_a_sentence(change, sentence):
  with pytest.raises(ConfigError, match=sentence.replace("(", r"\(")):
    huggingface.read_config(LLAMA | change)


def test_a_field_that_the_user_vouches_for_is_let_through():
  config = LLAMA | {"new_field": 1}
  with pytest.raises(ConfigError, match="'new_field'"):
    huggingface.read_config(config)
  assert huggingface.read_config(config, ignore=["new_field"]) == huggingface.read_config(LLAMA)


def test_yarn_fields_become_ours():
  rope = {
    "rope_type": "yarn",
    "factor": 8.0,
    "original_max_position_embeddings": 4,
    "beta_fast": 5,
    "beta_slow": 2,
    "mscale": 0.7,
    "mscale_all_dim": 0.3,
    "truncate": False,
  }
  got = huggingface.read_config(LLAMA | {"rope_parameters": rope}).position.scaling
  factor = (0.07 * np.log(8) + 1) / (0.03 * np.log(8) + 1)  # the library's get_mscale, twice
  assert got == YaRN(8.0, 4, 5.0, 2.0, pytest.approx(factor), False)
  explicit = huggingface.read_config(LLAMA | {"rope_parameters": rope | {"attention_factor": 1.5}})
  assert explicit.position.scaling.attention_factor == 1.5


def test_old_and_new_spellings_of_rope_mean_the_same():
  old = huggingface.read_config(
    LLAMA | {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
  )
  new = huggingface.read_config(
    LLAMA | {"rope_parameters": {"rope_theta": 500.0, "rope_type": "linear", "factor": 2.0}}
  )
  assert old == new and new.position.theta == 500.0


def test_layer_types_become_the_shortest_pattern():
  config = LLAMA | dict(
    architectures=["Qwen3ForCausalLM"],
    head_dim=4,
    num_hidden_layers=5,
    sliding_window=3,
    use_sliding_window=True,
    layer_types=["sliding_attention", "full_attention"] * 2 + ["sliding_attention"],
  )
  cfg = huggingface.read_config(config)
  assert isinstance(cfg.mixer, PatternConfig) and cfg.period == 2
  assert [m.window for m in cfg.mixers] == [3, None, 3, None, 3]
  alike = huggingface.read_config(config | {"layer_types": ["full_attention"] * 5})
  assert isinstance(alike.mixer, AttentionConfig)


def test_old_names_and_mask_buffers_of_gpt2_files_are_understood():
  case = Case(next(p for p in GOLDEN if p.stem == "gpt2"))
  state = case.group("param")
  old = {k.removeprefix("transformer."): v for k, v in state.items()}
  old |= {"h.0.attn.bias": np.ones((1, 1, 4, 4)), "lm_head.weight": state["transformer.wte.weight"]}
  want, got = (flatten(huggingface.import_params(library_config(case), s)) for s in (state, old))
  assert want.keys() == got.keys() and all(np.array_equal(want[k], got[k]) for k in want)


def test_a_weights_folder_rebuilds_the_model(tmp_path):
  case = Case(next(p for p in GOLDEN if p.stem == "gemma2_softcap"))
  hf = library_config(case)
  cfg, params = huggingface.read_config(hf), huggingface.import_params(hf, case.group("param"))
  weights_folder.save(tmp_path / "w", cfg, params)
  again, loaded = weights_folder.load(tmp_path / "w")
  assert isinstance(again, DecoderConfig) and again == cfg
  a, b = flatten(params), flatten(loaded)
  assert a.keys() == b.keys() and all(a[k].tobytes() == b[k].tobytes() for k in a)
  document = json.loads((tmp_path / "w" / "model.json").read_text())
  document["model"]["d_model"] = 40
  (tmp_path / "w" / "model.json").write_text(json.dumps(document))
  with pytest.raises(CheckpointFileError, match="is not as it was written"):
    weights_folder.load(tmp_path / "w")
  document = {"format": document["format"], "version": 1, "model": document["model"]}
  (tmp_path / "w" / "model.json").write_text(json.dumps(document))
  with pytest.raises(WeightsError, match="final_norm/scale has shape"):
    weights_folder.load(tmp_path / "w")
