"""`jaxlm convert`: Hugging Face checkpoints to jaxlm weights, and runs to Hugging Face checkpoints.

A jaxlm weights folder is `model.json` (the model's configuration) and `model.safetensors` (names
are paths in the parameter tree); see jaxlm.checkpoint.weights_folder. Beside them lie the
tokenizer's files and the token ids of the source (jaxlm.interop.companions). Nothing is written
unless every name and shape has fitted.
"""

import json
import sys

from jaxlm.checkpoint.copies import written_whole
from jaxlm.checkpoint.locations import folder_path
from jaxlm.checkpoint.trees import flatten, unflatten
from jaxlm.checkpoint.weight_files import read_json, read_weights, write_weights
from jaxlm.commands.exits import command
from jaxlm.commands.flags import Parser, whole
from jaxlm.config import ConfigError
from jaxlm.interop import companions
from jaxlm.interop.huggingface.dtypes import cast

DEFAULT_LENGTH = 2048  # written as the longest input of a model without one

USAGE = """Weights of other libraries in and out.

  jaxlm convert --from hf DIR --to OUT                Hugging Face folder -> jaxlm weights folder
  jaxlm convert --from RUN_OR_WEIGHTS --to hf OUT     a run's newest checkpoint -> Hugging Face folder
  jaxlm convert --from RUN --to OUT                   a run's parameters -> jaxlm weights folder

A Hugging Face folder holds config.json and model.safetensors, pytorch_model.bin or an index of shards of either.
Architectures: GPT-2, Llama, Mistral, Qwen2, Qwen3, Gemma, Gemma-2, OLMo-2, GPT-NeoX, Mamba-2, LaCT, T5 and ByT5, MrT5; H-Net as released (its
JSON as config.json beside the .pt file); Mamba-2 as released by mamba_ssm (read only)."""


@command("jaxlm convert")
def main(argv: list[str]) -> int:
  parser = Parser(
    "jaxlm convert", description=USAGE, example="jaxlm convert --from hf DIR --to weights/DIR"
  )
  parser.add_argument("--from", dest="source", nargs="+", required=True, metavar=("[hf] DIR", ""))
  parser.add_argument("--to", dest="target", nargs="+", required=True, metavar=("[hf] DIR", ""))
  parser.add_argument(
    "--dry_run", action="store_true", help="check everything and print the mapping, write nothing"
  )
  parser.add_argument(
    "--dtype",
    choices=("float32", "bfloat16", "float16"),
    help="of what is written; default: as read",
  )
  parser.add_argument(
    "--architecture", help="Hugging Face name to write; default: the one that fits"
  )
  parser.add_argument("--step", type=whole, help="checkpoint of a run; default: the newest")
  parser.add_argument("--ema", action="store_true", help="the average of a run's parameters")
  parser.add_argument(
    "--seq_len",
    type=whole,
    help="length for which `dynamic` RoPE is fixed, and the limit that is "
    "written for a model without one",
  )
  parser.add_argument(
    "--ignore_field",
    action="append",
    default=[],
    metavar="NAME",
    help="a field of config.json that you know to change nothing",
  )
  parser.add_argument(
    "--delete_gate",
    type=whole,
    metavar="BLOCK",
    help="of a T5 that becomes an MrT5: a fresh gate before "
    "this encoder block, and softmax1; what train.init_from then continues",
  )
  args = parser.parse_args(argv)
  source, from_hf = _place(args.source, "--from")
  target, to_hf = _place(args.target, "--to")
  if from_hf and to_hf:
    raise ConfigError("both ends are Hugging Face folders: there is nothing to convert")
  if target.exists() and (not target.is_dir() or any(target.iterdir())) and not args.dry_run:
    raise ConfigError(f"{target} exists and is not an empty folder; choose another place")
  (_from_hf if from_hf else _to_hf if to_hf else _to_weights)(source, target, args)
  return 0


def _place(words: list[str], flag: str):
  """(folder, whether it is a Hugging Face one) of 'hf DIR' or 'DIR'."""
  if len(words) == 2 and words[0] == "hf":
    return folder_path(words[1]), True
  if len(words) == 1 and words[0] != "hf":
    return folder_path(words[0]), False
  raise ConfigError(
    f"{flag} {' '.join(words)}: wanted `{flag} hf DIR` for a Hugging Face folder or `{flag} DIR` for one "
    f"of ours"
  )


def _numpy_dtype(name: str | None):
  if name is None:
    return None
  import ml_dtypes
  import numpy as np

  return np.dtype(getattr(ml_dtypes, name) if name == "bfloat16" else name)


def _from_hf(source, target, args) -> None:
  from jaxlm.checkpoint import weights_folder
  from jaxlm.interop import huggingface
  from jaxlm.interop.huggingface.rope import fixed_length

  if args.step is not None or args.ema or args.architecture:
    raise ConfigError(
      "--step, --ema and --architecture are for a run that is exported, not for `--from hf`"
    )
  if not source.exists():
    raise ConfigError(
      f"{source} does not exist, and jaxlm downloads nothing: fetch the model first, for example with "
      f"`huggingface-cli download NAME --local-dir={source.name}`"
    )
  config = read_json(source / "config.json")
  if isinstance(config, dict) and {"model", "objective"} <= config.keys():
    raise ConfigError(
      f"{source} is a run folder of jaxlm, not a Hugging Face folder: leave out 'hf' to convert it (--from {source}); "
      f"to train on from its weights, write --config.train.init_from={source}"
    )
  cfg, params, notes = huggingface.read_checkpoint(
    config,
    read_weights(source),
    seq_len=args.seq_len,
    ignore=args.ignore_field,
    dtype=_numpy_dtype(args.dtype),
  )
  table = huggingface.converter_of(config).table(cfg)
  if args.delete_gate is not None:
    import dataclasses

    from jaxlm.interop.mrt5 import add_gate
    from jaxlm.layers.delete_gate import DeleteGateConfig
    from jaxlm.models.encoder_decoder import EncoderDecoderConfig

    if not isinstance(cfg, EncoderDecoderConfig):
      raise ConfigError("--delete_gate is for T5 and ByT5 checkpoints")
    cfg, params = add_gate(
      dataclasses.replace(cfg, softmax1=True), params, DeleteGateConfig(args.delete_gate)
    )
  weights_folder.check_params(cfg, params, str(source))
  _print_table(table)
  if (length := fixed_length(config, args.seq_len)) is not None:
    notes = [
      *notes,
      f"the RoPE of this model is dynamic: it is fixed here as it is for inputs of {length} tokens, and longer ones would "
      f"be computed otherwise by the library; for another length give --seq_len",
    ]
  for note in notes:
    print(f"note: {note}")
  if not args.dry_run:
    with written_whole(target) as here:
      files = weights_folder.save(here, cfg, params, source=str(source))
      files += [companions.keep_config(config, here), *companions.copy_files(source, here)]
    _print_done(params, files, target)


def _to_hf(source, target, args) -> None:
  from jaxlm.checkpoint.opening import open_model
  from jaxlm.interop import huggingface

  if args.ignore_field:
    raise ConfigError("--ignore_field is for the config.json of `--from hf`")
  opened = open_model(source, step=args.step, ema=args.ema, as_stored=True)
  cfg, params = opened.config, opened.params
  origin = companions.source_of(source, opened.run)
  kept = companions.kept_config(origin)
  max_len = args.seq_len or companions.longest_input(kept)
  config, state = huggingface.export(
    cfg,
    params,
    name=args.architecture,
    dtype=_numpy_dtype(args.dtype),
    max_len=max_len or DEFAULT_LENGTH,
  )
  arch = huggingface.converter_of(config)
  print(f"{opened.source} -> {arch.name}")
  _print_table(arch.table(huggingface.read_config(config)))
  config = companions.written_back(config, kept, arch)
  for note in _not_written(config, kept, arch, cfg, max_len):
    print(f"note: {note}")
  if not args.dry_run:
    with written_whole(target) as here:
      files = write_weights(here, state)
      (here / "config.json").write_text(json.dumps(config, indent=2) + "\n")
      beside = companions.copy_files(origin, here) if origin is not None else []
      beside += [
        file for file in companions.copy_run_tokenizer(opened.run, here) if file not in beside
      ]
      tokenizer = companions.holds_tokenizer(here)
    if not tokenizer:
      print(
        f"note: no tokenizer is written: {origin or source} holds none; copy its files to {target}"
      )
    _print_done(params, [here / "config.json", *files, *beside], target)


def _not_written(config, kept, arch, cfg, max_len) -> list[str]:
  """Sentences about what config.json does not say or guesses."""
  notes = []
  if not arch.bare and not any(
    config.get(name) is not None for name in ("bos_token_id", "eos_token_id")
  ):
    notes.append(
      "config.json names no bos_token_id and no eos_token_id, because the source keeps none: a library that reads it "
      "takes its own defaults; write the tokenizer's ids into it"
    )
  lost = [
    name for name in companions.TOKEN_IDS if kept.get(name) is not None and name not in config
  ]
  if lost:
    notes.append(f"{', '.join(lost)}: the config.json of {arch.name} has no place for them")
  if (
    max_len is None
    and cfg.max_len is None
    and config.get("max_position_embeddings") == DEFAULT_LENGTH
  ):
    notes.append(
      f"max_position_embeddings = {DEFAULT_LENGTH} is a guess, the model has no limit; --seq_len says another"
    )
  return notes


def _to_weights(source, target, args) -> None:
  from jaxlm.checkpoint import weights_folder
  from jaxlm.checkpoint.opening import open_model

  if args.ignore_field or args.architecture:
    raise ConfigError("--ignore_field and --architecture are for Hugging Face folders")
  opened = open_model(source, step=args.step, ema=args.ema, as_stored=True)
  params = opened.params
  dtype = _numpy_dtype(args.dtype)
  if dtype is not None:
    params = unflatten({name: cast(name, value, dtype) for name, value in flatten(params).items()})
  if not args.dry_run:
    with written_whole(target) as here:
      files, origin = (
        weights_folder.save(here, opened.config, params, source=opened.source),
        companions.source_of(source, opened.run),
      )
      if origin is not None:
        kept = companions.kept_config(origin)
        files += ([companions.keep_config(kept, here)] if kept else []) + companions.copy_files(
          origin, here
        )
    _print_done(params, files, target)


def _print_table(table) -> None:
  lines = table.lines()
  width = max(len(theirs) for theirs, _, _ in lines), max(len(shape) for _, shape, _ in lines)
  for theirs, shape, ours in lines:
    print(f"  {theirs:<{width[0]}}  {shape:<{width[1]}}  {ours}")


def _print_done(params, files, target) -> None:
  arrays = flatten(params).values()
  print(
    f"{sum(a.size for a in arrays):,} parameters in {len(arrays)} arrays: {target}/ "
    f"({', '.join(f.name for f in files)})"
  )


if __name__ == "__main__":
  sys.exit(main())
