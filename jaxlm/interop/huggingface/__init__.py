"""Hugging Face checkpoints in and out.

  cfg = read_config(config_json)                     DecoderConfig; refuses what the decoder does not do
  params = import_params(config_json, state_dict)    our tree, layers stacked
  config_json, state_dict = export(cfg, params)      the way back, bit for bit
"""

import importlib
from collections.abc import Mapping
from typing import Any

from jaxlm.config import ConfigError, nearest
from jaxlm.interop.huggingface.fields import Fields

#: Name of the architecture in config.json -> where its `Architecture` is.
ARCHITECTURES = {
    "GPT2LMHeadModel": "jaxlm.interop.huggingface.gpt2:GPT2_LM",
    "LlamaForCausalLM": "jaxlm.interop.huggingface.llama:LLAMA",
    "MistralForCausalLM": "jaxlm.interop.huggingface.llama:MISTRAL",
    "Qwen3ForCausalLM": "jaxlm.interop.huggingface.llama:QWEN3",
    "Gemma2ForCausalLM": "jaxlm.interop.huggingface.llama:GEMMA2",
    "GPTNeoXForCausalLM": "jaxlm.interop.huggingface.gpt_neox:GPT_NEOX",
    "Mamba2ForCausalLM": "jaxlm.interop.huggingface.mamba2:MAMBA2_LM",
    "LaCTForCausalLM": "jaxlm.interop.lact:LACT_LM",
    "T5ForConditionalGeneration": "jaxlm.interop.mrt5:T5_V1_1",
    "MrT5ForConditionalGeneration": "jaxlm.interop.mrt5:MRT5",
    "HNet": "jaxlm.interop.hnet:HNET",
}
#: For files that name only their model type.
MODEL_TYPES = {
    "gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM",
    "qwen3": "Qwen3ForCausalLM", "gemma2": "Gemma2ForCausalLM", "gpt_neox": "GPTNeoXForCausalLM",
    "mamba2": "Mamba2ForCausalLM", "lact_swiglu": "LaCTForCausalLM",
    "t5": "T5ForConditionalGeneration", "mrt5": "MrT5ForConditionalGeneration",
}


def converter(name: str):
  """The converter of an architecture, by the name in config.json."""
  if name not in ARCHITECTURES:
    raise ConfigError(f"architecture {name!r} is not supported; {nearest(name, ARCHITECTURES)} "
                      f"(supported: {', '.join(ARCHITECTURES)})")
  module, attribute = ARCHITECTURES[name].split(":")
  return getattr(importlib.import_module(module), attribute)


def converter_of(config: Mapping[str, Any]):
  """The converter that a config.json asks for, by `architectures` or `model_type`; H-Net's by its `arch_layout`."""
  names = config.get("architectures") or []
  if not names and "arch_layout" in config:
    return converter("HNet")
  if len(names) > 1:
    raise ConfigError(f"config.json names several architectures: {names}")
  if names:
    return converter(names[0])
  kind = config.get("model_type")
  if kind not in MODEL_TYPES:
    raise ConfigError(f"config.json names no architecture that is supported (model_type {kind!r}; known: "
                      f"{', '.join(MODEL_TYPES)})")
  return converter(MODEL_TYPES[kind])


def read_config(config: Mapping[str, Any], *, seq_len: int | None = None, ignore=()):
  """DecoderConfig of a config.json. Every field is used, known to be irrelevant, named in `ignore`, or refused.

  seq_len: the length for which `dynamic` RoPE is fixed; default max_position_embeddings.
  """
  fields = Fields(config)
  cfg = converter_of(config).read(fields, seq_len)
  fields.done(ignore)
  return cfg


def import_params(config: Mapping[str, Any], state: Mapping, *, cfg=None, dtype=None) -> dict:
  """Our parameter tree of a state dict (name -> array). Missing, left-over and misshapen names raise WeightsError."""
  cfg = read_config(config) if cfg is None else cfg
  return converter_of(config).table(cfg).import_params(state, dtype)


def export(cfg, params, *, name: str | None = None, dtype=None, max_len: int = 2048) -> tuple[dict, dict]:
  """(config.json, state dict) of a decoder.

  name: the architecture; None takes the first that says exactly the same. Raises ConfigError, with the fields that
  it cannot express, when none does. max_len: written as the longest input where the model has no limit.
  """
  from jaxlm.interop.huggingface.compare import differences
  refusals = []
  for candidate in [name] if name else ARCHITECTURES:
    arch = converter(candidate)
    try:
      config = arch.write(cfg, getattr(cfg, "max_len", None) or max_len)
      named = {} if arch.bare else {"architectures": [arch.name], "model_type": arch.model_type}
      config |= named
      differ = differences(cfg, read_config(config))
    except (ConfigError, AttributeError, KeyError) as error:   # a field of another kind of norm, mlp or position
      refusals.append(f"{candidate}: {error}")
      continue
    if not differ:
      state = arch.table(cfg).export_params(params, dtype)
      return config | ({"dtype": str(next(iter(state.values())).dtype)} if named else {}), state
    refusals.append(f"{candidate}: " + "; ".join(differ))
  raise ConfigError("this model cannot be written as " + (name or "any supported architecture") + ":\n  "
                    + "\n  ".join(refusals))
