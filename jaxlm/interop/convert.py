"""`jaxlm convert`: Hugging Face checkpoints to jaxlm weights, and runs to Hugging Face checkpoints.

A jaxlm weights folder is `model.json` (the model's configuration) and `model.safetensors` (names are paths in the
parameter tree); see jaxlm.interop.weights. Nothing is written unless every name and shape has fitted.
"""

import argparse
import json
import pathlib
import sys

from jaxlm.config import ConfigError
from jaxlm.interop.huggingface.files import CheckpointFileError, read_json, read_weights, write_weights
from jaxlm.interop.huggingface.table import WeightsError

USAGE = """Weights of other libraries in and out.

  jaxlm convert --from hf DIR --to OUT                Hugging Face folder -> jaxlm weights folder
  jaxlm convert --from RUN_OR_WEIGHTS --to hf OUT     a run's newest checkpoint -> Hugging Face folder
  jaxlm convert --from RUN --to OUT                   a run's parameters -> jaxlm weights folder

A Hugging Face folder holds config.json and model.safetensors, pytorch_model.bin or an index of shards of either.
Architectures: GPT-2, Llama, Mistral, Qwen3, Gemma-2, GPT-NeoX, Mamba-2, LaCT, T5 and ByT5, MrT5; H-Net as released (its
JSON as config.json beside the .pt file)."""


def main(argv=None) -> int:
  parser = argparse.ArgumentParser("jaxlm convert", description=USAGE,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--from", dest="source", nargs="+", required=True, metavar=("[hf] DIR", ""))
  parser.add_argument("--to", dest="target", nargs="+", required=True, metavar=("[hf] DIR", ""))
  parser.add_argument("--dry-run", action="store_true", help="check everything and print the mapping, write nothing")
  parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of what is written; default: as read")
  parser.add_argument("--architecture", help="Hugging Face name to write; default: the one that fits")
  parser.add_argument("--step", type=int, help="checkpoint of a run; default: the newest")
  parser.add_argument("--ema", action="store_true", help="the average of a run's parameters")
  parser.add_argument("--seq-len", type=int, help="length for which `dynamic` RoPE is fixed, and the limit that is "
                      "written for a model without one")
  parser.add_argument("--ignore-field", action="append", default=[], metavar="NAME",
                      help="a field of config.json that you know to change nothing")
  parser.add_argument("--delete-gate", type=int, metavar="BLOCK", help="of a T5 that becomes an MrT5: a fresh gate before "
                      "this encoder block, and softmax1; what train.init_from then continues")
  args = parser.parse_args(argv)
  try:
    source, from_hf = _place(args.source, "--from")
    target, to_hf = _place(args.target, "--to")
    if from_hf and to_hf:
      raise ConfigError("both ends are Hugging Face folders: there is nothing to convert")
    if target.exists() and (not target.is_dir() or any(target.iterdir())) and not args.dry_run:
      raise ConfigError(f"{target} exists and is not an empty folder; choose another place")
    (_from_hf if from_hf else _to_hf if to_hf else _to_weights)(source, target, args)
  except (ConfigError, CheckpointFileError, WeightsError) as error:
    print(f"jaxlm convert: {error}", file=sys.stderr)
    return 2
  except OSError as error:
    print(f"jaxlm convert: {error.filename or target}: {error.strerror or error}", file=sys.stderr)
    return 2
  return 0


def _place(words: list[str], flag: str) -> tuple[pathlib.Path, bool]:
  """(folder, whether it is a Hugging Face one) of 'hf DIR' or 'DIR'."""
  if len(words) == 2 and words[0] == "hf":
    return pathlib.Path(words[1]), True
  if len(words) == 1 and words[0] != "hf":
    return pathlib.Path(words[0]), False
  raise ConfigError(f"{flag} {' '.join(words)}: wanted `{flag} hf DIR` for a Hugging Face folder or `{flag} DIR` for one "
                    f"of ours")


def _numpy_dtype(name: str | None):
  if name is None:
    return None
  import ml_dtypes
  import numpy as np
  return np.dtype(getattr(ml_dtypes, name) if name == "bfloat16" else name)


def _from_hf(source, target, args) -> None:
  from jaxlm.interop import huggingface, weights
  if args.step is not None or args.ema or args.architecture:
    raise ConfigError("--step, --ema and --architecture are for a run that is exported, not for `--from hf`")
  config = read_json(source / "config.json")
  cfg = huggingface.read_config(config, seq_len=args.seq_len, ignore=args.ignore_field)
  table = huggingface.converter_of(config).table(cfg)
  state = read_weights(source)
  params = table.import_params(state, _numpy_dtype(args.dtype))
  if args.delete_gate is not None:
    import dataclasses

    from jaxlm.interop.mrt5 import add_gate
    from jaxlm.layers.delete_gate import DeleteGateConfig
    if not hasattr(cfg, "reduction"):
      raise ConfigError("--delete-gate is for T5 and ByT5 checkpoints")
    cfg, params = add_gate(dataclasses.replace(cfg, softmax1=True), params, DeleteGateConfig(args.delete_gate))
  weights.check_params(cfg, params, str(source))
  _print_table(table)
  if not args.dry_run:
    files = weights.save(target, cfg, params, source=str(source))
    _print_done(params, files, target)


def _to_hf(source, target, args) -> None:
  from jaxlm.interop import huggingface, weights
  if args.ignore_field:
    raise ConfigError("--ignore-field is for the config.json of `--from hf`")
  cfg, params, where = weights.load_any(source, step=args.step, ema=args.ema)
  config, state = huggingface.export(cfg, params, name=args.architecture, dtype=_numpy_dtype(args.dtype),
                                     max_len=args.seq_len or 2048)
  print(f"{where} -> {huggingface.converter_of(config).name}")
  _print_table(huggingface.converter_of(config).table(huggingface.read_config(config)))
  if not args.dry_run:
    files = write_weights(target, state)
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    _print_done(params, [target / "config.json", *files], target)


def _to_weights(source, target, args) -> None:
  from jaxlm.interop import weights
  if args.ignore_field or args.architecture:
    raise ConfigError("--ignore-field and --architecture are for Hugging Face folders")
  cfg, params, where = weights.load_any(source, step=args.step, ema=args.ema)
  dtype = _numpy_dtype(args.dtype)
  if dtype is not None:
    import jax
    params = jax.tree.map(lambda x: x.astype(dtype), params)
  if not args.dry_run:
    _print_done(params, weights.save(target, cfg, params, source=where), target)


def _print_table(table) -> None:
  lines = table.lines()
  width = max(len(theirs) for theirs, _, _ in lines), max(len(shape) for _, shape, _ in lines)
  for theirs, shape, ours in lines:
    print(f"  {theirs:<{width[0]}}  {shape:<{width[1]}}  {ours}")


def _print_done(params, files, target) -> None:
  from jaxlm.interop.huggingface.table import flatten
  arrays = flatten(params).values()
  print(f"{sum(a.size for a in arrays):,} parameters in {len(arrays)} arrays: {target}/ "
        f"({', '.join(f.name for f in files)})")


if __name__ == "__main__":
  sys.exit(main())
