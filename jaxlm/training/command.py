"""`jaxlm train --config=configs/x.py --workdir=runs/x [--config.train.steps=100] [--new] [--take_over]`."""

import logging
import pathlib
import traceback

from jaxlm.commands.exits import (
  FAILED,
  INTERRUPTED,
  PATH_ERRORS,
  WRONG,
  caused_by,
  command,
  ending,
  explain,
  no_device,
  no_right,
  refuse,
)
from jaxlm.commands.flags import CONFIG, Parser, parse_flags
from jaxlm.config import ALIASES, ConfigError
from jaxlm.paths import denied

EPILOG = """\
--config=FILE.py[:ARG]        a file with get_config(ARG)
--config.KEY.SUBKEY=VALUE     override one value; --config.model.position=rope changes a kind, and a number picks
                              an entry of a list: --config.model.stages.0.d_ff=256
A work folder that holds this run already is resumed; one that another process writes to is refused.
Ctrl-C, SIGTERM and SIGHUP save and end with code 130, 143, 129; a second Ctrl-C aborts. Code 75: another
process of the run was lost; 76: it hung (train.hang.ends). After these the same command resumes.
SIGUSR1 prints the stack of every thread, and the run goes on.
Several hosts run the same command; tpu/README.md says how they find each other."""


@command("jaxlm train")
def main(argv: list[str]) -> int:

  spec, overrides, rest = parse_flags(argv)
  parser = Parser(
    "jaxlm train",
    epilog=EPILOG,
    others=CONFIG,
    bare="--config" if spec is None else "",
    keys=key_of_flag,
    description="Train a model, or resume its run.",
    example="jaxlm train --config=configs/carope/tiny.py --workdir=runs/tiny",
  )
  parser.add_argument("--workdir", required=True, help="the run's folder")
  parser.add_argument(
    "--new", action="store_true", help="refuse a folder that holds a run, rather than resume it"
  )
  parser.add_argument(
    "--take_over",
    action="store_true",
    help="take a folder whose lock.json names a process that is dead and cannot be asked",
  )
  parser.add_argument("--quiet", action="store_true", help="no progress")
  args = parser.parse_args(rest)
  if spec is None:
    raise ConfigError("no configuration; give --config=configs/carope/tiny.py, say")
  return run(spec, overrides, args)


#: Keys that people write as flags, with their sections.
FLAGS = {
  "steps": "train.steps",
  "save_every": "train.save_every",
  "log_every": "train.log_every",
  "init_from": "train.init_from",
  "accumulation": "train.accumulation",
  "learning_rate": "optimizer.learning_rate",
  "weight_decay": "optimizer.weight_decay",
  "clip_norm": "optimizer.clip_norm",
  "warmup_steps": "schedule.warmup_steps",
  "batch_size": "data.batch_size",
  "seq_len": "data.seq_len",
  "source": "data.source",
  "data": "data.source",
  "d_model": "model.d_model",
  "num_layers": "model.num_layers",
  "dtype": "model.dtype",
  "position": "model.position",
  "mixer": "model.mixer",
  "vocab_size": "model.vocab_size",
  "seed": "seed",
}


def key_of_flag(name: str) -> str | None:
  """'train.steps' of 'steps' or 'max_steps'; None where no key is meant."""
  name = name.replace("-", "_")
  section, _, last = name.rpartition(".")
  if section in ("model", "data", "train", "optimizer", "schedule", "objective", "eval", "mesh"):
    return name
  return FLAGS.get(ALIASES.get(name, name))


def _failed(error, code: int) -> int:
  from jaxlm.parallel.start import finish

  return finish(refuse("jaxlm train", error, code))


def _is_ours(error: Exception) -> bool:
  """Whether it was raised by a line of this library."""
  frames = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
  return bool(frames) and pathlib.Path(__file__).parents[1] in pathlib.Path(frames[-1]).parents


def run(spec, overrides, args) -> int:
  """The exit code; the other processes of the run are told of a failure."""
  import absl.logging

  from jaxlm.checkpoint.errors import CheckpointError
  from jaxlm.parallel.rollcall import LOST
  from jaxlm.parallel.start import ProcessLost, explained, finish, start
  from jaxlm.training.loop import BucketOverflow, NonFinite
  from jaxlm.training.run import train
  from jaxlm.training.run_lock import LockLost
  from jaxlm.training.watchdog import stacks_on_request

  # Orbax and its event loop log the traceback of a failed write five times before it is raised;
  # once is enough.
  absl.logging.set_verbosity(absl.logging.FATAL)
  logging.getLogger("asyncio").setLevel(logging.CRITICAL)
  try:
    stacks_on_request()
    start()
    result = train(
      spec, args.workdir, overrides, new=args.new, quiet=args.quiet, take_over=args.take_over
    )
  except (ConfigError, ProcessLost) as error:
    return _failed(error, WRONG if isinstance(error, ConfigError) else LOST)
  except KeyboardInterrupt:
    return _failed("aborted; the same command resumes from the newest checkpoint", INTERRUPTED)
  except Exception as error:
    if caused_by(error, KeyboardInterrupt):  # a library has met it, and made its own of it
      return _failed("aborted; the same command resumes from the newest checkpoint", INTERRUPTED)
    other = explained(error)  # a failure here may be the echo of one elsewhere
    if other:
      return _failed(other, LOST)
    if isinstance(error, (NonFinite, BucketOverflow, CheckpointError, LockLost)):
      return _failed(error, 1)
    if isinstance(error, NotImplementedError) and _is_ours(
      error
    ):  # a kernel that was named and cannot be
      return _failed(error, 1)
    if absent := no_device(error):
      return _failed(absent, WRONG)
    if isinstance(error, FloatingPointError):  # only train.debug raises it
      return _failed(str(error).splitlines()[0], 1)
    if "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower():
      return _failed(
        f"out of memory: {str(error).splitlines()[0][:300]}\nRaise train.accumulation (smaller "
        f"micro-batches), set model.remat or model.loss_chunk, or shard over more devices (mesh.fsdp).",
        1,
      )
    if isinstance(error, BrokenPipeError):  # nobody reads what is printed
      return finish(ending("jaxlm train", error))
    if denied(error):
      return _failed(no_right(error), WRONG)
    if isinstance(error, OSError):
      return _failed(explain(error), WRONG if error.errno in PATH_ERRORS else FAILED)
    traceback.print_exc()
    return finish(FAILED)
  return finish(result.exit_code, together=True)
