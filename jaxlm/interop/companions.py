"""What a checkpoint folder holds beside its weights: the tokenizer, token ids, the longest input,
fields of training.

A weights folder keeps all of it: the tokenizer's files under their own names, config.json as
`source_config.json`. An export writes it back beside the weights. A run keeps none of it; the
weights folder that it began with does (`train.init_from`), and its `data.tokenizer.path` may name a
tokenizer.
"""

import json
from collections.abc import Mapping

from jaxlm.checkpoint.copies import copy_file
from jaxlm.checkpoint.locations import folder_path
from jaxlm.checkpoint.weight_files import read_json
from jaxlm.checkpoint.weights_folder import is_weights_folder
from jaxlm.interop.huggingface.fields import IRRELEVANT

SOURCE_CONFIG = "source_config.json"
#: Files that libraries read beside the weights, copied as they are.
FILES = (
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "vocab.json",
  "merges.txt",
  "encoder.json",
  "vocab.bpe",
  "vocab.txt",
  "spiece.model",
  "tokenizer.model",
  "sentencepiece.bpe.model",
  "chat_template.jinja",
  "chat_template.json",
  "generation_config.json",
)
TOKEN_IDS = (
  "bos_token_id",
  "eos_token_id",
  "pad_token_id",
  "sep_token_id",
  "cls_token_id",
  "decoder_start_token_id",
)
#: Written by the export itself, or said by the weights.
OF_THE_FILE = {
  "architectures",
  "model_type",
  "dtype",
  "torch_dtype",
  "transformers_version",
  "_name_or_path",
  "name_or_path",
  "auto_map",
}


def source_of(folder, run: Mapping):
  """The weights folder whose companions belong to the weights of this one: itself, or what a run
  began with.
  """
  folder = folder_path(folder)
  if is_weights_folder(folder):
    return folder
  begun = (run.get("train") or {}).get("init_from")
  begun = folder_path(begun) if begun else None
  return begun if begun is not None and (begun / "model.json").is_file() else None


def copy_files(source, target) -> list:
  """Copies the tokenizer's files and generation_config.json. Returns the copies."""
  source, target = folder_path(source), folder_path(target)
  found = [name for name in FILES if (source / name).is_file()]
  target.mkdir(parents=True, exist_ok=True)
  return [copy_file(source / name, target / name) for name in found]


def copy_run_tokenizer(run: Mapping, target) -> list:
  """Copies the tokenizer's files that a run's `data.tokenizer.path` names, which the run's weights
  go with.
  """
  tokenizer = (run.get("data") or {}).get("tokenizer")
  path = tokenizer.get("path") if isinstance(tokenizer, dict) else None
  path = folder_path(path) if path else None
  if path is None or not path.exists():
    return []
  return (
    copy_files(path, target)
    if path.is_dir()
    else [copy_file(path, folder_path(target) / "tokenizer.json")]
  )


def holds_tokenizer(folder) -> bool:
  return any(
    (folder_path(folder) / name).is_file()
    for name in FILES
    if name not in ("generation_config.json", "chat_template.jinja", "chat_template.json")
  )


def keep_config(config: Mapping, target):
  path = folder_path(target) / SOURCE_CONFIG
  path.write_text(json.dumps(config, indent=2) + "\n")
  return path


def kept_config(source) -> dict:
  """The config.json that a weights folder was made from; empty if it was made from a run."""
  path = None if source is None else folder_path(source) / SOURCE_CONFIG
  return read_json(path) if path is not None and path.is_file() else {}


def longest_input(kept: Mapping) -> int | None:
  value = kept.get("max_position_embeddings")
  return value if isinstance(value, int) and value > 0 else None


def written_back(config: Mapping, kept: Mapping, architecture) -> dict:
  """config.json of an export, with the fields of the source that say nothing about the computation."""
  if architecture.bare:
    return dict(config)
  same = kept.get("architectures") == config.get("architectures") or (
    "architectures" not in kept and kept.get("model_type") == config.get("model_type")
  )
  names = (set(IRRELEVANT) | set(architecture.kept)) - OF_THE_FILE if same else set(TOKEN_IDS)
  ids = {
    name: kept[name] for name in TOKEN_IDS if name in kept
  }  # theirs, not the architecture's defaults
  return {name: value for name, value in kept.items() if name in names} | dict(config) | ids
