"""`jaxlm probe --run DIR --probe sinks`: readings of a trained model on a text, printed and drawn."""

import pathlib

from jaxlm import json_text, outside
from jaxlm.commands.exits import command
from jaxlm.commands.flags import Parser, whole
from jaxlm.config import ConfigError, nearest

USAGE = """Reads activations of a run, or of a folder of `jaxlm convert`, and draws them. It changes nothing.

  jaxlm probe --run runs/tiny --probe sinks
  jaxlm probe --run runs/tiny --probe heads --text "Call me Ishmael." --out heads.svg
  jaxlm probe --run runs/tiny --probe attribution --method reagent --text "The captain said"
  jaxlm convert --from hf gpt2 --to weights/gpt2
  jaxlm probe --run weights/gpt2 --probe sinks --text "Call me Ishmael."

Without --text it reads rows of the run's own validation split. Probes: {probes}.
What they mean: docs/probes.md."""


@command("jaxlm probe")
def main(argv: list[str]) -> int:
  from jaxlm.analysis.attribution.base import METHODS
  from jaxlm.analysis.probes import PROBES

  parser = Parser(
    "jaxlm probe",
    description=USAGE.format(probes=", ".join(PROBES.all())),
    example="jaxlm probe --run runs/tiny --probe sinks",
  )
  parser.add_argument("--run", required=True, help="run folder, or folder of `jaxlm convert`")
  parser.add_argument(
    "--probe", required=True, help=f"one of: {', '.join(PROBES.all())}; or my_module:MyProbe"
  )
  parser.add_argument("--text", action="append", default=[], help="a text to read; repeat for rows")
  parser.add_argument("--rows", type=whole, default=8, help="rows of the validation split")
  parser.add_argument("--length", type=whole, default=64, help="first tokens of each row")
  parser.add_argument(
    "--method", default=None, help=f"of the probe attribution: {', '.join(METHODS.all())}"
  )
  parser.add_argument("--eps", type=float, default=None, help="of the probe sinks; default 0.3")
  parser.add_argument("--step", type=whole, default=None, help="checkpoint; default: the newest")
  parser.add_argument("--out", default=None, help="picture, .png or .svg; default: <probe>.png")
  parser.add_argument("--json", action="store_true", help="print one JSON object")
  args = parser.parse_args(argv)
  outside.trust([args.probe, args.method])  # the user's own word
  if not outside.is_target(args.probe) and args.probe not in PROBES.all():
    raise ConfigError(f"--probe={args.probe}: {nearest(args.probe, PROBES.all())}")
  for name in ("rows", "length"):
    if getattr(args, name) < 1:
      raise ConfigError(f"--{name}={getattr(args, name)}: at least 1")
  if pathlib.Path(args.out or "x.png").suffix not in (".png", ".svg"):
    raise ConfigError(f"--out={args.out}: a picture ends in .png or .svg")
  return _read(args)


def _read(args) -> int:
  from jaxlm.analysis.pictures import draw
  from jaxlm.analysis.probes import probe
  from jaxlm.checkpoint.opening import open_model

  fields = {}
  for name, of in (("method", "attribution"), ("eps", "sinks")):
    given = getattr(args, name)
    if given is None:
      continue
    if args.probe != of:
      raise ConfigError(f"--{name} belongs to --probe {of}; leave it out of --probe {args.probe}")
    fields[name] = {"kind": given} if name == "method" else given
  one = probe(args.probe, **fields)
  opened = open_model(args.run, step=args.step)
  batch, texts = batch_of(opened, args.text, args.rows, args.length)
  reading = one.read(opened, batch, texts)
  path = draw(reading, args.out or f"{args.probe}.png", title=f"{args.probe} of {opened.source}")
  if args.json:
    print(json_text.dumps({"numbers": reading.numbers, "tables": reading.tables}))
  else:
    show(reading)
    print(f"written: {path}")
  return 0


def batch_of(opened, given, rows: int, length: int):
  """(the batch, what its tokens spell) of texts, or of the run's validation split without any."""
  import numpy as np

  if given:
    if not all(given):
      raise ConfigError("--text is empty; give a text, or leave --text out")
    tokenizer = opened.tokenizer
    if tokenizer is None:
      raise ConfigError(
        "--text needs a tokenizer, and the data of this run are no text; leave --text out to read its "
        "validation split"
      )
    prompts = [tokenizer.prompt(text)[:length] for text in given]
    shortest = min(map(len, prompts))
    tokens = np.stack([p[:shortest] for p in prompts]).astype(np.int32)
    return {"tokens": tokens}, spelled(tokenizer, tokens)
  if opened.data is None:
    raise ConfigError("a weights folder has no data of its own; give --text")
  # Whole batches are read, so that any form of data can be probed.
  batch = next(iter(opened.data.build("validation", seed=0, repeat=False)))
  if "tokens" not in batch:
    return {name: x[:rows] for name, x in batch.items()}, ()
  names = ("tokens", "segment_ids", "positions")
  names += ("decoder_tokens",) if opened.config.scores == "target_sequence" else ()
  out = {name: np.asarray(batch[name])[:rows, :length] for name in names if name in batch}
  if all((out[name] == 1).all() for name in ("segment_ids",) if name in out):
    out = {name: x for name, x in out.items() if name not in ("segment_ids", "positions")}
  tokenizer = opened.tokenizer
  return out, () if tokenizer is None else spelled(tokenizer, out["tokens"])


def spelled(tokenizer, tokens_BT) -> list[list[str]]:
  """What each token spells, for people."""
  return [[visible(tokenizer.decode([int(t)])) for t in row] for row in tokens_BT]


def visible(text: str) -> str:
  """A text in which blanks can be seen; "·" if it is empty."""
  return text.replace("\n", "↵").replace(" ", "␣") or "·"


def show(reading) -> None:
  """The numbers and tables in the terminal."""
  from jaxlm.commands.tables import print_table

  for name, value in reading.numbers.items():
    print(f"{name}: {value:.4g}")
  for title, rows in reading.tables.items():
    print_table(
      list(rows[0]),
      [[f"{x:.4g}" if isinstance(x, float) else str(x) for x in row.values()] for row in rows],
      title=title,
    )
