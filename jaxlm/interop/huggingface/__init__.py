"""Hugging Face checkpoints in and out.

cfg, params, notes = read_checkpoint(config_json, state_dict)    notes: sentences about what was
decided cfg = read_config(config_json)                     DecoderConfig; refuses what the decoder
does not do params = import_params(config_json, state_dict)    our tree, layers stacked; refuses a
head beside a tied embedding config_json, state_dict = export(cfg, params)      the way back, bit
for bit
"""

import importlib
from collections.abc import Mapping
from typing import Any

from jaxlm.config import ConfigError, nearest
from jaxlm.interop.huggingface.fields import Fields
from jaxlm.interop.huggingface.ties import settle

#: Name of the architecture in config.json -> where its `Architecture` is.
ARCHITECTURES = {
  "GPT2LMHeadModel": "jaxlm.interop.huggingface.gpt2:GPT2_LM",
  "LlamaForCausalLM": "jaxlm.interop.huggingface.llama:LLAMA",
  "MistralForCausalLM": "jaxlm.interop.huggingface.llama:MISTRAL",
  "Qwen2ForCausalLM": "jaxlm.interop.huggingface.llama:QWEN2",
  "Qwen3ForCausalLM": "jaxlm.interop.huggingface.llama:QWEN3",
  "GemmaForCausalLM": "jaxlm.interop.huggingface.llama:GEMMA",
  "Olmo2ForCausalLM": "jaxlm.interop.huggingface.llama:OLMO2",
  "Gemma2ForCausalLM": "jaxlm.interop.huggingface.llama:GEMMA2",
  "GPTNeoXForCausalLM": "jaxlm.interop.huggingface.gpt_neox:GPT_NEOX",
  "Mamba2ForCausalLM": "jaxlm.interop.huggingface.mamba2:MAMBA2_LM",
  "LaCTForCausalLM": "jaxlm.interop.lact:LACT_LM",
  "T5ForConditionalGeneration": "jaxlm.interop.mrt5:T5_V1_1",
  "MrT5ForConditionalGeneration": "jaxlm.interop.mrt5:MRT5",
  "HNet": "jaxlm.interop.hnet:HNET",
  "MambaLMHeadModel": "jaxlm.interop.mamba_ssm:MAMBA_SSM",
}
#: For files that name only their model type.
MODEL_TYPES = {
  "gpt2": "GPT2LMHeadModel",
  "llama": "LlamaForCausalLM",
  "mistral": "MistralForCausalLM",
  "qwen2": "Qwen2ForCausalLM",
  "gemma": "GemmaForCausalLM",
  "olmo2": "Olmo2ForCausalLM",
  "qwen3": "Qwen3ForCausalLM",
  "gemma2": "Gemma2ForCausalLM",
  "gpt_neox": "GPTNeoXForCausalLM",
  "mamba2": "Mamba2ForCausalLM",
  "lact_swiglu": "LaCTForCausalLM",
  "t5": "T5ForConditionalGeneration",
  "mrt5": "MrT5ForConditionalGeneration",
}
#: For releases that name neither: a field that only they have.
RELEASES = {"arch_layout": "HNet", "ssm_cfg": "MambaLMHeadModel"}
#: JSON has no infinity; transformers 5 writes {"__float__": "Infinity"}.
SPECIAL_FLOATS = {"Infinity": float("inf"), "-Infinity": float("-inf"), "NaN": float("nan")}


#: Architectures that people ask for and the decoder does not have, with what it would need.
NOT_READ = {
  "PhiForCausalLM": "one norm is read by both attention and MLP of a block, and the head has a bias",
  "Phi3ForCausalLM": "its projections are fused, and long contexts have a RoPE of their own (longrope)",
  "OlmoForCausalLM": "its norms have no weights",
  "MixtralForCausalLM": "it is a mixture of experts",
  "Qwen2MoeForCausalLM": "it is a mixture of experts",
  "FalconForCausalLM": "its norms and heads are laid out in several ways",
  "BloomForCausalLM": "its embedding has a norm",
  "MambaForCausalLM": "it is Mamba-1, with decays per channel and state",
  "BertForMaskedLM": "it is no causal model",
  "RobertaForMaskedLM": "it is no causal model",
  "MT5ForConditionalGeneration": "save it as T5ForConditionalGeneration: the networks are the same",
}


def converter(name: str):
  """The converter of an architecture, by the name in config.json."""
  if name in NOT_READ and name not in ARCHITECTURES:
    raise ConfigError(
      f"architecture {name!r} is not supported: {NOT_READ[name]} (supported: {', '.join(ARCHITECTURES)})"
    )
  if name not in ARCHITECTURES:
    raise ConfigError(f"architecture {name!r} is not supported; {nearest(name, ARCHITECTURES)}")
  module, attribute = ARCHITECTURES[name].split(":")
  return getattr(importlib.import_module(module), attribute)


def converter_of(config: Mapping[str, Any]):
  """The converter that a config.json asks for, by `architectures` or `model_type`; of releases
  without either by a field of their own."""
  names = config.get("architectures") or []
  if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
    raise ConfigError(f"config.json: architectures = {names!r}, wanted a list of names")
  if not names and "model_type" not in config:
    found = next((name for field, name in RELEASES.items() if field in config), None)
    if found is not None:
      return converter(found)
  if len(names) > 1:
    raise ConfigError(f"config.json names several architectures: {names}")
  if names:
    return converter(names[0])
  kind = config.get("model_type")
  if not isinstance(kind, str) or kind not in MODEL_TYPES:
    raise ConfigError(
      f"config.json names no architecture that is supported (model_type {kind!r}; known: "
      f"{', '.join(MODEL_TYPES)})"
    )
  return converter(MODEL_TYPES[kind])


def read_config(config: Mapping[str, Any], *, seq_len: int | None = None, ignore=()):
  """DecoderConfig of a config.json. Every field is used, known to be irrelevant, named in `ignore`,
  or refused.

  seq_len: the length for which `dynamic` RoPE is fixed; default max_position_embeddings.
  """
  config = _plain_floats(config)
  if not isinstance(config, Mapping):
    raise ConfigError(
      f"config.json holds a {type(config).__name__} where fields by name were wanted; compare it with the config.json of a "
      f"checkpoint that works"
    )
  quantised = config.get("quantization_config") or config.get("compression_config")
  if quantised and not {"quantization_config", "compression_config"} & set(ignore):
    method = quantised.get("quant_method", "unnamed") if isinstance(quantised, dict) else quantised
    raise ConfigError(
      f"config.json: 'quantization_config' says that the weights are quantised (method {method!r}): they mean "
      f"nothing without their scales, which are not read; dequantise the checkpoint with the library that made "
      f"it and save it again"
    )
  fields = Fields(config)
  try:
    cfg = converter_of(config).read(fields, seq_len)
  except ConfigError:
    raise
  except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
    raise ConfigError(
      f"config.json: a field has a value of another kind than this architecture computes with "
      f"({type(error).__name__}: {error}); compare it with the config.json of a checkpoint that works"
    ) from error
  fields.done(
    [
      *ignore,
      *(name for name in ("quantization_config", "compression_config") if not config.get(name)),
    ]
  )
  return cfg


def read_checkpoint(
  config: Mapping[str, Any], state: Mapping, *, seq_len: int | None = None, ignore=(), dtype=None
):
  """(model config, parameters, notes) of a whole checkpoint. Its head is what the file holds (see
  `ties`).

  notes: sentences for the user about what config.json and the file do not agree on.
  """
  cfg, arch = read_config(config, seq_len=seq_len, ignore=ignore), converter_of(config)
  cfg, state, notes = settle(arch, cfg, state)
  return cfg, arch.table(cfg).import_params(state, dtype), notes


def _plain_floats(value):
  if isinstance(value, Mapping):
    if set(value) == {"__float__"} and value["__float__"] in SPECIAL_FLOATS:
      return SPECIAL_FLOATS[value["__float__"]]
    return {key: _plain_floats(item) for key, item in value.items()}
  return [_plain_floats(item) for item in value] if isinstance(value, list) else value


def import_params(config: Mapping[str, Any], state: Mapping, *, cfg=None, dtype=None) -> dict:
  """Our parameter tree of a state dict (name -> array).

  Missing, left-over and misshapen names raise WeightsError.
  """
  cfg = read_config(config) if cfg is None else cfg
  return converter_of(config).table(cfg).import_params(state, dtype)


def export(
  cfg, params, *, name: str | None = None, dtype=None, max_len: int = 2048
) -> tuple[dict, dict]:
  """(config.json, state dict) of a decoder.

  name: the architecture; None takes the first that says exactly the same. Raises ConfigError, with
  the fields that it cannot express, when none does. max_len: written as the longest input where the
  model has no limit.
  """
  from jaxlm.interop.huggingface.compare import differences

  refusals: list[tuple[str, str]] = []
  for candidate in [name] if name else ARCHITECTURES:
    arch = converter(candidate)
    try:
      config = arch.write(cfg, cfg.max_len or max_len)
      named = {} if arch.bare else {"architectures": [arch.name], "model_type": arch.model_type}
      config |= named
      differ = differences(cfg, read_config(config))
    except (
      ConfigError,
      AttributeError,
      KeyError,
    ) as error:  # a field of another kind of norm, mlp or position
      refusals.append((candidate, str(error)))
      continue
    if not differ:
      state = arch.table(cfg).export_params(params, dtype)
      return config | ({"dtype": str(next(iter(state.values())).dtype)} if named else {}), state
    refusals.append((candidate, "; ".join(differ)))
  raise ConfigError(
    f"this model cannot be written as {name or 'any architecture of Hugging Face that is supported'}; without `hf` it becomes "
    f"a weights folder of jaxlm. Why not:\n  " + "\n  ".join(_by_reason(refusals))
  )


def _by_reason(refusals) -> list[str]:
  """One line per reason, with the architectures that it is of."""
  names: dict[str, list[str]] = {}
  for name, why in refusals:
    names.setdefault(why.replace(name, "this architecture"), []).append(name)
  return [f"{', '.join(of)}: {why}" for why, of in names.items()]
