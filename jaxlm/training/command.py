"""`jaxlm train --config=configs/x.py --workdir=runs/x [--config.train.steps=100] [--new]`."""

import argparse
import logging
import pathlib
import sys
import traceback

from jaxlm.config import ConfigError

EPILOG = """\
--config=FILE.py[:ARG]        a file with get_config(ARG)
--config.KEY.SUBKEY=VALUE     override one value; --config.model.position=rope changes a kind, and a number picks
                              an entry of a list: --config.model.stages.0.d_ff=256
A work folder that holds this run already is resumed. Ctrl-C or SIGTERM saves and ends; a second Ctrl-C aborts.
Several hosts run the same command; tpu/README.md says how they find each other."""


def main(argv: list[str]) -> int:
  from jaxlm.training.config import parse_flags

  parser = argparse.ArgumentParser(prog="jaxlm train", epilog=EPILOG, allow_abbrev=False,
                                   description="Train a model, or resume its run.",
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", required=True, help="the run's folder")
  parser.add_argument("--new", action="store_true", help="refuse a folder that holds a run, rather than resume it")
  parser.add_argument("--quiet", action="store_true", help="no progress")
  try:
    spec, overrides, rest = parse_flags(argv)
    args = parser.parse_args(rest)
    if spec is None:
      raise ConfigError("no configuration; give --config=configs/carope/tiny.py, say")
    return run(spec, overrides, args)
  except ConfigError as error:
    return _failed(error, 2)


def _failed(error, code: int) -> int:
  from jaxlm.parallel.start import finish

  print(f"jaxlm train: {error}", file=sys.stderr)
  return finish(code)


def _is_ours(error: Exception) -> bool:
  """Whether it was raised by a line of this library."""
  frames = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
  return bool(frames) and pathlib.Path(__file__).parents[1] in pathlib.Path(frames[-1]).parents


def run(spec, overrides, args) -> int:
  """0 finished, or stopped by a signal and saved; 1 the run failed, and says why."""
  import absl.logging

  from jaxlm.parallel.start import ProcessLost, explained, finish, start
  from jaxlm.training.checkpoints import CheckpointError
  from jaxlm.training.loop import BucketOverflow, NonFinite
  from jaxlm.training.run import train

  # Orbax and its event loop log the traceback of a failed write five times before it is raised; once is enough.
  absl.logging.set_verbosity(absl.logging.FATAL)
  logging.getLogger("asyncio").setLevel(logging.CRITICAL)
  try:
    start()
    train(spec, args.workdir, overrides, new=args.new, quiet=args.quiet)
  except (ConfigError, ProcessLost) as error:
    return _failed(error, 2 if isinstance(error, ConfigError) else 1)
  except KeyboardInterrupt:
    return _failed("aborted; the same command resumes from the newest checkpoint", 130)
  except Exception as error:
    other = explained(error)    # a failure here may be the echo of one elsewhere
    if other:
      return _failed(other, 1)
    if isinstance(error, (NonFinite, BucketOverflow, CheckpointError)):
      return _failed(error, 1)
    if isinstance(error, NotImplementedError) and _is_ours(error):     # a kernel that was named and cannot be
      return _failed(error, 1)
    if isinstance(error, FloatingPointError):    # only train.debug raises it
      return _failed(str(error).splitlines()[0], 1)
    if "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower():
      return _failed(f"out of memory: {str(error).splitlines()[0][:300]}\nRaise train.accumulation (smaller "
                     f"micro-batches), set model.remat or model.loss_chunk, or shard over more devices (mesh.fsdp).", 1)
    traceback.print_exc()
    return finish(1)
  return finish(0)
