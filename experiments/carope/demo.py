"""`make demo`: trains a small CARoPE model and its RoPE twin on two novels, compares them beyond
their training length.

  python experiments/carope/demo.py [--workdir runs/demo] [--steps N]

Every call makes a new folder; nothing is resumed. About two minutes on 2 CPU cores.
"""

import argparse
import logging
import pathlib
import shlex
import sys
import time

from jaxlm.config import ConfigError
from jaxlm.experiments import Column, Figure, Row, Scale, Table, figure, measures, report, runner
from jaxlm.training.config import run_config

CONFIG = "configs/carope/demo.py"
PROMPT = "The captain "

TABLE = Table(
  name="demo",
  title="Bits per byte of held-out chapters",
  rows=[
    Row("rope", CONFIG, {"model.position": "rope"}, label="RoPE"),
    Row("carope", CONFIG, {"model.position": "carope"}, label="CARoPE"),
  ],
  columns=[
    Column("train length", "bpb@1x", 3),
    Column("2x", "bpb@2x", 3),
    Column("4x", "bpb@4x", 3),
    Column("perplexity at 4x", "ppl@4x", 2),
  ],
  scales={"demo": Scale("")},
  measure=measures.perplexity_at((1, 2, 4)),
  claims={
    "beyond the training length CARoPE loses less than RoPE": lambda t: (
      t["rope", "4x"]
      - t["rope", "train length"]
      - (t["carope", "4x"] - t["carope", "train length"])
    )
  },
  figure=Figure(
    "loss@4x",
    "Loss by position, trained to the dashed line",
    "position (bytes)",
    "loss (nats per byte)",
    smooth=16,
    marks=lambda config: {config["data"]["seq_len"]: "training length"},
  ),
)


def sample(workdir: pathlib.Path, row: str, num_tokens: int, seed: int = 0) -> str:
  """Text continued from PROMPT by a finished row, temperature 0.7, nucleus 0.95."""
  from jaxlm.checkpoint.opening import open_model
  from jaxlm.generation import Sampling, engine_for

  opened = open_model(runner.folder(workdir, "", row, 0))
  config, params = opened.run, opened.params
  cfg = run_config(config)
  tokenizer = cfg.data.load_tokenizer()
  engine = engine_for(cfg.model, sampling=Sampling(temperature=0.7, top_p=0.95))
  prompt = tokenizer.prompt(PROMPT).tolist()
  [tokens] = engine.generate(params, [prompt], num_tokens, seed=seed).sequences
  return tokenizer.decode(tokens[1:].tolist())


def closing(workdir: pathlib.Path, length: int, steps: int) -> str:
  """What the texts can be expected to be, and three commands to go on with."""
  program = pathlib.Path(sys.executable).with_name("jaxlm")
  if program.is_relative_to(pathlib.Path.cwd()):
    program = program.relative_to(pathlib.Path.cwd())
  run = shlex.quote(str(runner.folder(workdir, "", "carope", 0)))
  mine = shlex.quote(str(workdir / "mine"))
  return (
    f"A byte model of {steps:,} steps spells frequent words and puts blanks between them; sentences that mean something are not\n"
    "to be expected of it. What the demo shows is the table: beyond the training length RoPE loses more than CARoPE.\n\n"
    "Go on: at eight times the training length; with another prompt; on your own text (here the pages of this repository):\n\n"
    f"{program} eval --run {run} --lengths={length},{8 * length}\n"
    f"{program} generate --run {run} --prompt 'It was' --max_new_tokens 200\n"
    f"{program} train --config={CONFIG} --config.data.source='text:docs/**/*.md' --workdir={mine}"
  )


def main(argv=None) -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--workdir", default="runs/demo", help="a new folder is made in it")
  parser.add_argument("--steps", type=int, default=None, help="training steps of each model")
  args = parser.parse_args(argv)
  logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax warns about what a reader leaves unread
  start = time.time()
  workdir = pathlib.Path(args.workdir) / time.strftime("%Y%m%d-%H%M%S")
  try:
    overrides = {} if args.steps is None else {"train.steps": args.steps}
    config = runner.resolve(TABLE, TABLE.row("carope"), Scale("", overrides=overrides), "", 0)
    run_config(config)
    workdir.mkdir(parents=True)
  except (ConfigError, FileExistsError) as error:
    print(error, file=sys.stderr)
    return 2
  length, steps = config["data"]["seq_len"], config["train"]["steps"]
  note = (
    f"{config['model']['num_layers']} layers of width {config['model']['d_model']}, {length} bytes, "
    f"{steps:,} steps of {config['data']['batch_size'] * length:,} bytes each"
  )
  table = Table(**{**TABLE.__dict__, "scales": {"demo": Scale(note, overrides=overrides)}})

  failed = runner.run_rows(table, "demo", rows=["rope", "carope"], seeds=[0], workdir=workdir)
  if failed:
    print(
      "\n".join(f"{row}: {message}" for (_, row, _), message in failed.items()), file=sys.stderr
    )
    return 1
  results = runner.results(table, "demo", workdir)
  picture = figure.draw(table, results, workdir / "demo.png")
  summary = report.summarise(table, "demo", results, failed, runner.provenance())
  pages = report.write(table, summary, workdir / "demo")
  print()
  report.show(table, summary)
  for row in ("carope", "rope"):
    print(f"\n{table.row(row).label} continues {PROMPT!r} to 3 times its training length:\n")
    print(sample(workdir, row, 3 * length - len(PROMPT)))
  print(
    f"\nTable {pages[0]}, figure {picture}, runs with checkpoints and curves in {workdir}; "
    f"{time.time() - start:.0f} s in all.\n\n{closing(workdir, length, steps)}"
  )
  return 0


if __name__ == "__main__":
  sys.exit(main())
