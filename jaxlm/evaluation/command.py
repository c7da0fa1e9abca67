"""`jaxlm eval --run DIR`: perplexity, bits per byte and loss by position of a run's newest
checkpoint.
"""

import logging
from collections.abc import Sequence

from jaxlm import json_text
from jaxlm.commands.exits import command
from jaxlm.commands.flags import CONFIG, Parser, parse_flags, whole
from jaxlm.commands.tables import print_table
from jaxlm.config import ConfigError

USAGE = """Perplexity, bits per byte and loss by position of a trained run, at any lengths.

  jaxlm eval --run runs/carope --lengths=512,1024,2048
  jaxlm eval --run runs/rope --lengths=1024 --config.model.position.scaling='{"kind": "ntk", "factor": 2.0}'

Every length scores the same text. A length that the model cannot read is answered with the reason, not a number.
A model that does not predict the next token (insertion, masked diffusion, encoder-decoder, view synthesis) is measured by
its objective on the split, as while it was trained."""


EPILOG = """\
--config.KEY=VALUE changes the run's configuration for this evaluation; --config=FILE replaces it,
and is asked for with a weights folder, which has only its model."""


@command("jaxlm eval")
def main(argv: list[str]) -> int:
  parser = Parser(
    "jaxlm eval",
    description=USAGE,
    epilog=EPILOG,
    others=CONFIG,
    bare="--run",
    example="jaxlm eval --run runs/tiny --lengths=128,256",
  )
  parser.add_argument(
    "--run", required=True, help="run folder, or weights folder of `jaxlm convert`"
  )
  parser.add_argument("--step", type=whole, default=None, help="checkpoint; default: the newest")
  parser.add_argument(
    "--ema", action="store_true", help="the average of the parameters instead of the last ones"
  )
  parser.add_argument(
    "--lengths", default=None, help="comma-separated tokens; default: the training length"
  )
  parser.add_argument(
    "--split", default="validation", help="train, validation (the default) or test"
  )
  parser.add_argument(
    "--num_tokens", type=whole, default=None, help="score the first so many tokens; default: all"
  )
  parser.add_argument(
    "--tables",
    type=whole,
    default=None,
    help="lexinvariant models: tables averaged per sequence; default: eval.num_tables of the run, 1",
  )
  parser.add_argument("--by_position", action="store_true", help="loss at each position too")
  parser.add_argument("--json", action="store_true", help="one JSON object on standard output")

  from jaxlm.training.saved_config import config_of

  spec, overrides, rest = parse_flags(argv)
  args = parser.parse_args(rest)
  logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax warns about what a reader leaves unread
  cfg = config_of(args.run, spec, overrides)
  if args.num_tokens is not None and args.num_tokens < 1:
    raise ConfigError(
      f"--num_tokens={args.num_tokens}: wanted 1 or more; leave it out for the whole split"
    )
  if args.tables is not None and args.tables < 1:
    raise ConfigError(f"--tables={args.tables}: wanted 1 or more")

  if cfg.model.scores != "next_token":
    return _by_objective(cfg, args)
  lengths = _lengths(args.lengths, cfg.data.seq_len)
  evaluations, step = evaluate_run(
    cfg,
    args.run,
    lengths,
    split=args.split,
    num_tokens=args.num_tokens,
    step=args.step,
    ema=args.ema,
    num_tables=args.tables or cfg.eval.num_tables,
  )
  if args.json:
    out = [e.to_json(by_position=args.by_position) for e in evaluations]
    print(
      json_text.dumps(
        {
          "run": args.run,
          "step": step,
          "split": args.split,
          "tables": args.tables or cfg.eval.num_tables,
          "lengths": out,
        }
      )
    )
  else:
    _show(args, evaluations, step)
  return 0


def evaluate_run(
  cfg,
  folder: str,
  lengths: Sequence[int],
  *,
  split="validation",
  num_tokens=None,
  step=None,
  ema=False,
  num_tables=1,
):
  """([Evaluation], step) of a run folder's checkpoint under the configuration `cfg`, on all
  devices.
  """
  from jaxlm.checkpoint.opening import open_model
  from jaxlm.evaluation.perplexity import evaluate_lengths
  from jaxlm.parallel.mesh import make_mesh
  from jaxlm.parallel.place import host_rows, placer
  from jaxlm.parallel.rules import sharding_context

  if cfg.model.scores != "next_token":
    raise ConfigError(
      f"`jaxlm eval` measures models of the next token by position; {type(cfg.model).__name__} is evaluated by its objective: "
      f"`jaxlm train` with the same folder writes eval/loss and eval/accuracy at its end"
    )
  mesh = make_mesh(cfg.mesh)
  opened = open_model(folder, model=cfg.model, mesh=mesh, step=step, ema=ema)
  index, count = host_rows(mesh)
  with sharding_context(mesh):
    return evaluate_lengths(
      cfg.model,
      opened.params,
      cfg.data,
      lengths,
      split=split,
      num_tokens=num_tokens,
      place=placer(mesh),
      process_index=index,
      process_count=count,
      num_tables=num_tables,
    ), opened.step


def evaluate_objective(
  cfg, folder: str, *, split="validation", num_tokens=None, step=None, ema=False
):
  """({name: number}, step): the objective of a run folder's checkpoint on a split, on all devices.

  What depends on the state that the objective carries through training (`objective`, `alpha`) is left
  out.
  """
  import dataclasses

  import jax

  from jaxlm.checkpoint.opening import open_model
  from jaxlm.data.pipeline import example
  from jaxlm.parallel.mesh import make_mesh
  from jaxlm.parallel.place import host_rows, placer
  from jaxlm.training.evaluating import EvaluationSplit, evaluate
  from jaxlm.training.step import build_program

  cfg = dataclasses.replace(
    cfg, eval=dataclasses.replace(cfg.eval, split=split, num_tokens=num_tokens, lengths=())
  )
  mesh = make_mesh(cfg.mesh)
  index, hosts = host_rows(mesh)
  batches = EvaluationSplit(cfg, index, hosts)
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((cfg.data.batch_size, *x.shape[1:]), x.dtype),
    example(batches.of(cfg.data)),
  )
  program = build_program(cfg, mesh, shapes)
  opened = open_model(folder, model=cfg.model, mesh=mesh, step=step, ema=ema)
  state = cfg.objective.init_state()
  with program.context():
    found = evaluate(program, opened.params, state, placer(mesh), batches, 0)
  carried = ("objective", "alpha") if jax.tree.leaves(state) else ()
  found = {name.removeprefix("eval/"): value for name, value in found.items()}
  return {name: v for name, v in found.items() if name not in carried}, opened.step


def _by_objective(cfg, args) -> int:
  """`jaxlm eval` of a model that scores something else than the next token."""
  from jaxlm.training.metric_names import meaning

  for flag, given in (
    ("--lengths", args.lengths),
    ("--tables", args.tables),
    ("--by_position", args.by_position or None),
  ):
    if given is not None:
      raise ConfigError(
        f"{flag}: loss by position and length is of models of the next token, and {type(cfg.model).__name__} scores "
        f"{cfg.model.scores}; leave it out"
      )
  found, step = evaluate_objective(
    cfg, args.run, split=args.split, num_tokens=args.num_tokens, step=args.step, ema=args.ema
  )
  if args.json:
    print(json_text.dumps({"run": args.run, "step": step, "split": args.split, "metrics": found}))
    return 0
  print_table(
    ("name", "value", "what it is"),
    [[name, f"{value:.4f}", meaning(name)] for name, value in found.items()],
    words=("what it is",),
    title=", ".join([args.run, *([] if step is None else [f"step {step}"]), args.split]),
  )
  return 0


def _lengths(text: str | None, default: int) -> list[int]:
  try:
    lengths = [default] if text is None else [whole(part) for part in text.split(",")]
  except ValueError:
    raise ConfigError(f"--lengths={text}: wanted token counts like 512,1024") from None
  if min(lengths) < 1:
    raise ConfigError(f"--lengths={text}: a length is at least 1")
  return lengths


def _show(args, evaluations, step: int | None) -> None:
  rows = []
  for e in evaluations:
    cells = [
      f"{e.loss:.4f}",
      f"{e.perplexity:.3f}",
      f"{e.bits_per_byte:.4f}" if e.target_bytes else "",
    ]
    rows.append(
      [
        str(e.length),
        f"{e.tokens:,.0f}" if e.tokens else "",
        *(["n/a", "n/a", "n/a"] if e.note else cells),
      ]
    )
  print_table(
    ("length", "tokens", "loss, nats/token", "perplexity", "bits per byte"),
    rows,
    title=", ".join([args.run, *([] if step is None else [f"step {step}"]), args.split]),
  )
  for e in evaluations:
    if e.note:
      print(f"{e.length}: {e.note}")
    elif args.by_position:
      print(f"loss by position at {e.length}: " + " ".join(f"{x:.3f}" for x in e.loss_by_position))
