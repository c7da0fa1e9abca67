"""config.json files as published are read whole; what is unknown is listed at once.

(Sizes and fields are those on the hub.)
"""

import pytest

from jaxlm.config import ConfigError
from jaxlm.interop.huggingface import read_config

GENERATION = dict(
  bos_token_id=1,
  eos_token_id=2,
  use_cache=True,
  transformers_version="4.40.0",
  torch_dtype="bfloat16",
  initializer_range=0.02,
  attention_dropout=0.0,
)
GPT2 = dict(
  activation_function="gelu_new",
  architectures=["GPT2LMHeadModel"],
  attn_pdrop=0.1,
  bos_token_id=50256,
  embd_pdrop=0.1,
  eos_token_id=50256,
  initializer_range=0.02,
  layer_norm_epsilon=1e-05,
  model_type="gpt2",
  n_ctx=1024,
  n_positions=1024,
  resid_pdrop=0.1,
  summary_activation=None,
  summary_first_dropout=0.1,
  summary_proj_to_labels=True,
  summary_type="cls_index",
  summary_use_proj=True,
  vocab_size=50257,
  task_specific_params={"text-generation": {"do_sample": True, "max_length": 50}},
)
LLAMA = dict(
  architectures=["LlamaForCausalLM"], model_type="llama", hidden_act="silu", **GENERATION
)
PUBLISHED = {
  "gpt2": (GPT2 | dict(n_embd=768, n_head=12, n_layer=12), 12, 768),
  "gpt2-medium": (
    GPT2 | dict(n_embd=1024, n_head=16, n_layer=24, n_special=0, predict_special_tokens=True),
    24,
    1024,
  ),
  "gpt2-xl": (
    GPT2 | dict(n_embd=1600, n_head=25, n_layer=48, output_past=True) | dict(n_special=0),
    None,
    None,
  ),
  "distilgpt2": (
    GPT2
    | dict(
      _num_labels=1,
      id2label={"0": "LABEL_0"},
      label2id={"LABEL_0": 0},
      n_embd=768,
      n_head=12,
      n_layer=6,
    ),
    6,
    768,
  ),
  "SmolLM2-135M": (
    LLAMA
    | dict(
      attention_bias=False,
      hidden_size=576,
      intermediate_size=1536,
      is_llama_config=True,
      max_position_embeddings=8192,
      num_attention_heads=9,
      num_hidden_layers=30,
      num_key_value_heads=3,
      pretraining_tp=1,
      rms_norm_eps=1e-5,
      mlp_bias=False,
      rope_interleaved=False,
      rope_scaling=None,
      rope_theta=100000,
      tie_word_embeddings=True,
      vocab_size=49152,
      **{"transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}}},
    ),
    30,
    576,
  ),
  "llama-7b": (
    LLAMA
    | dict(
      hidden_size=4096,
      intermediate_size=11008,
      max_position_embeddings=2048,
      max_sequence_length=2048,
      num_attention_heads=32,
      num_hidden_layers=32,
      pad_token_id=0,
      rms_norm_eps=1e-06,
      tie_word_embeddings=False,
      vocab_size=32000,
    ),
    32,
    4096,
  ),
  "Llama-2-7b-hf": (
    LLAMA
    | dict(
      _name_or_path="meta-llama/Llama-2-7b-hf",
      hidden_size=4096,
      intermediate_size=11008,
      max_position_embeddings=4096,
      num_attention_heads=32,
      num_hidden_layers=32,
      num_key_value_heads=32,
      pretraining_tp=1,
      rms_norm_eps=1e-05,
      rope_scaling=None,
      tie_word_embeddings=False,
      vocab_size=32000,
    ),
    32,
    4096,
  ),
  "Llama-3.2-1B": (
    LLAMA
    | dict(
      attention_bias=False,
      head_dim=64,
      hidden_size=2048,
      intermediate_size=8192,
      max_position_embeddings=131072,
      mlp_bias=False,
      num_attention_heads=32,
      num_hidden_layers=16,
      num_key_value_heads=8,
      pretraining_tp=1,
      rms_norm_eps=1e-05,
      rope_scaling=dict(
        factor=32.0,
        high_freq_factor=4.0,
        low_freq_factor=1.0,
        original_max_position_embeddings=8192,
        rope_type="llama3",
      ),
      rope_theta=500000.0,
      tie_word_embeddings=True,
      vocab_size=128256,
    ),
    16,
    2048,
  ),
  "TinyLlama-1.1B": (
    LLAMA
    | dict(
      attention_bias=False,
      hidden_size=2048,
      intermediate_size=5632,
      max_position_embeddings=2048,
      num_attention_heads=32,
      num_hidden_layers=22,
      num_key_value_heads=4,
      pretraining_tp=1,
      rms_norm_eps=1e-05,
      rope_scaling=None,
      rope_theta=10000.0,
      tie_word_embeddings=False,
      vocab_size=32000,
    ),
    22,
    2048,
  ),
  "Mistral-7B-v0.1": (
    dict(
      architectures=["MistralForCausalLM"],
      model_type="mistral",
      hidden_act="silu",
      hidden_size=4096,
      intermediate_size=14336,
      max_position_embeddings=32768,
      num_attention_heads=32,
      num_hidden_layers=32,
      num_key_value_heads=8,
      rms_norm_eps=1e-05,
      rope_theta=10000.0,
      sliding_window=4096,
      tie_word_embeddings=False,
      vocab_size=32000,
      **GENERATION,
    ),
    32,
    4096,
  ),
  "Mistral-7B-v0.3": (
    dict(
      architectures=["MistralForCausalLM"],
      model_type="mistral",
      hidden_act="silu",
      hidden_size=4096,
      intermediate_size=14336,
      max_position_embeddings=32768,
      num_attention_heads=32,
      num_hidden_layers=32,
      num_key_value_heads=8,
      rms_norm_eps=1e-05,
      rope_theta=1000000.0,
      sliding_window=None,
      tie_word_embeddings=False,
      vocab_size=32768,
      **GENERATION,
    ),
    32,
    4096,
  ),
  "Qwen3-0.6B": (
    dict(
      architectures=["Qwen3ForCausalLM"],
      model_type="qwen3",
      attention_bias=False,
      head_dim=128,
      hidden_act="silu",
      hidden_size=1024,
      intermediate_size=3072,
      max_position_embeddings=40960,
      max_window_layers=28,
      num_attention_heads=16,
      num_hidden_layers=28,
      num_key_value_heads=8,
      rms_norm_eps=1e-06,
      rope_scaling=None,
      rope_theta=1000000,
      sliding_window=None,
      tie_word_embeddings=True,
      use_sliding_window=False,
      vocab_size=151936,
      **GENERATION,
    ),
    28,
    1024,
  ),
  "gemma-2-2b": (
    dict(
      architectures=["Gemma2ForCausalLM"],
      model_type="gemma2",
      attention_bias=False,
      attn_logit_softcapping=50.0,
      cache_implementation="hybrid",
      final_logit_softcapping=30.0,
      head_dim=256,
      hidden_act="gelu_pytorch_tanh",
      hidden_activation="gelu_pytorch_tanh",
      hidden_size=2304,
      intermediate_size=9216,
      max_position_embeddings=8192,
      num_attention_heads=8,
      num_hidden_layers=26,
      num_key_value_heads=4,
      pad_token_id=0,
      query_pre_attn_scalar=256,
      rms_norm_eps=1e-06,
      rope_theta=10000.0,
      sliding_window=4096,
      vocab_size=256000,
      **GENERATION,
    ),
    26,
    2304,
  ),
  "pythia-160m": (
    dict(
      architectures=["GPTNeoXForCausalLM"],
      model_type="gpt_neox",
      bos_token_id=0,
      eos_token_id=0,
      hidden_act="gelu",
      hidden_size=768,
      initializer_range=0.02,
      intermediate_size=3072,
      layer_norm_eps=1e-05,
      max_position_embeddings=2048,
      num_attention_heads=12,
      num_hidden_layers=12,
      rotary_emb_base=10000,
      rotary_pct=0.25,
      tie_word_embeddings=False,
      torch_dtype="float16",
      transformers_version="4.24.0",
      use_cache=True,
      use_parallel_residual=True,
      vocab_size=50304,
    ),
    12,
    768,
  ),
}


@pytest.mark.parametrize("name", [name for name in PUBLISHED if PUBLISHED[name][1]])
def test_a_published_config_is_read(name):
  config, layers, width = PUBLISHED[name]
  cfg = read_config(config)
  assert (cfg.num_layers, cfg.d_model, cfg.vocab_size) == (layers, width, config["vocab_size"])


def test_unknown_fields_are_listed_at_once_with_the_flags_that_ignore_them():
  config, _, _ = PUBLISHED["gpt2-xl"]
  extra = config | dict(output_past=True, secret_gate=3, n_hed=2)
  with pytest.raises(ConfigError) as error:
    read_config(extra)
  said = str(error.value)
  assert (
    all(repr(name) in said for name in ("n_hed", "output_past", "secret_gate"))
    and "did you mean 'n_head'" in said
  )
  assert "--ignore_field=n_hed --ignore_field=output_past --ignore_field=secret_gate" in said
  assert read_config(extra, ignore=("n_hed", "output_past", "secret_gate")).num_layers == 48


@pytest.mark.parametrize(
  "field, value, said",
  [
    ("rope_interleaved", True, "turn halves"),
    ("pretraining_tp", 2, "only 1"),
    ("quantization_config", {"bits": 4}, "quantization_config"),
  ],
)
def test_a_field_that_changes_the_model_is_refused_by_its_value(field, value, said):
  with pytest.raises(ConfigError, match=said):
    read_config(PUBLISHED["SmolLM2-135M"][0] | {field: value})


def test_an_architecture_that_is_not_read_says_why():
  with pytest.raises(ConfigError, match="PhiForCausalLM.*one norm is read by both"):
    read_config(dict(architectures=["PhiForCausalLM"], hidden_size=8))
