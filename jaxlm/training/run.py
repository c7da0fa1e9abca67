"""A run is a folder.

config.json    the resolved configuration; the same folder with another one is refused
run.json       revision, versions, device, command of each start
metrics.jsonl, events/, curves.png; tracker.json where train.tracker names a service
checkpoints/   state, data position, note
lock.json      who writes here now, if anybody does
result.json    the end: step, last metrics, newest checkpoint, whether it is finished or why not
"""

import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Mapping
from typing import Any

import jax

from jaxlm.checkpoint.errors import CheckpointError
from jaxlm.checkpoint.json_files import write_json
from jaxlm.checkpoint.local_steps import LocalSteps, check_local
from jaxlm.checkpoint.locations import folder_path
from jaxlm.checkpoint.opening import check_initial, initial_params
from jaxlm.checkpoint.steps import Checkpoints
from jaxlm.config import ConfigError
from jaxlm.data.pipeline import example
from jaxlm.evaluation.flops import traced_flops, train_flops_per_token
from jaxlm.kernels.choices import recorded, summary
from jaxlm.parallel.agree import from_first
from jaxlm.parallel.chips import peak_flops
from jaxlm.parallel.cpu import keep_memory
from jaxlm.parallel.mesh import MeshConfig, make_mesh
from jaxlm.parallel.place import batch_sharding, host_rows, placer
from jaxlm.parallel.rules import unsharded
from jaxlm.parallel.start import require_same, several
from jaxlm.training.compilation_cache import CompilationCache, keep_programs
from jaxlm.training.config import RunConfig, check, configured, resolved
from jaxlm.training.evaluating import EvaluationSplit, check_evaluation, evaluate
from jaxlm.training.frozen import frozen_record, of_frozen, open_frozen, recorded_in
from jaxlm.training.goodput import Goodput
from jaxlm.training.loop import BucketOverflow, NonFinite, StopSignal, run_steps, written
from jaxlm.training.metric_names import explained
from jaxlm.training.metrics import Writer, read
from jaxlm.training.progress import Display, count, duration
from jaxlm.training.provenance import revision
from jaxlm.training.run_folder import OpenFolder, lost_checkpoints, open_folder, starts_of
from jaxlm.training.same_run import of_command, of_data
from jaxlm.training.step import Program, build_program
from jaxlm.training.tracker import Tracker
from jaxlm.training.tracker import check as check_tracker
from jaxlm.training.watchdog import Watchdog


@dataclasses.dataclass(frozen=True)
class Result:
  """params: as trained. metrics: the last training and evaluation numbers. stopped: the signal that
  ended it early.
  """

  step: int
  metrics: dict[str, float]
  workdir: str
  params: Any
  ema: Any = None
  stopped: str | None = None

  @property
  def finished(self) -> bool:
    return self.stopped is None

  @property
  def exit_code(self) -> int:
    """0, or 128 + the number of the signal that ended it."""
    return 0 if self.stopped is None else 128 + signal.Signals[self.stopped]


class Stopped(KeyboardInterrupt):
  """A signal has ended a run, and so what the run was a part of. code: the exit code."""

  def __init__(self, result: Result):
    super().__init__(f"stopped by {result.stopped}; the same command continues")
    self.code = result.exit_code


def train(
  config,
  workdir,
  overrides: Mapping[str, Any] | None = None,
  *,
  new: bool = False,
  quiet: bool = False,
  take_over: bool = False,
) -> Result:
  """Trains to train.steps, or resumes: the same call again continues where the folder's newest
  checkpoint is.

  config: 'path.py', 'path.py:argument', a ConfigDict or a mapping. overrides: {'dotted.key':
  value}.
  new: refuse a folder that holds a run already. take_over: also a folder whose lock another process
  holds that is dead.
  """
  cfg = configured(config, overrides)
  keep_memory()
  if several():
    require_same(of_command(cfg, workdir, revision(), {"new": new, "take_over": take_over}))
  devices = jax.devices()
  if cfg.train.debug:
    if jax.process_count() > 1:
      raise ConfigError(
        f"train.debug runs on one device, and this is a run of {jax.process_count()} processes; start one"
      )
    cfg, devices = dataclasses.replace(cfg, mesh=MeshConfig()), devices[:1]
  if cfg.model.dtype == "float64" and not jax.config.read("jax_enable_x64"):
    raise ConfigError(
      "model.dtype = 'float64': JAX makes float32 of it unless JAX_ENABLE_X64=1 is set; set it, or choose float32"
    )
  check(cfg, len(devices))
  check_tracker(cfg.train.tracker)
  if cfg.train.local.folder is not None:
    check_local(cfg.train.local.folder, jax.process_count())
  if cfg.train.init_from is not None and not (folder_path(workdir) / "checkpoints").is_dir():
    check_initial(cfg.train.init_from)
  cache = keep_programs(workdir)
  with (
    open_folder(workdir, cfg, new=new, take_over=take_over) as opened,
    jax.debug_nans(cfg.train.debug),
  ):
    return _train(cfg, make_mesh(cfg.mesh, devices), opened, cache, quiet)


def _train(
  cfg: RunConfig, mesh, opened: OpenFolder, cache: CompilationCache, quiet: bool
) -> Result:
  folder = opened.folder
  first = jax.process_index() == 0
  index, hosts = host_rows(mesh)
  dataset = cfg.data.build(
    "train", seed=cfg.seed, process_index=index, process_count=hosts, repeat=True
  )
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((x.shape[0] * hosts, *x.shape[1:]), x.dtype), example(dataset)
  )
  iterator, place = iter(dataset), placer(mesh)
  recorded = frozen_record(cfg, recorded_in(folder))
  if several():
    owner = opened.lock and opened.lock.token
    require_same(of_data(iterator, shapes, folder, owner) | of_frozen(recorded))
  check_evaluation(cfg, hosts)
  models, frozen = open_frozen(cfg, mesh, recorded)
  program = build_program(cfg, mesh, shapes, frozen=models)
  peak_tokens = peak_tokens_per_s(cfg, mesh, models)
  had_checkpoints = from_first((folder / "checkpoints").exists())
  with (
    program.context(),
    StopSignal() as stop,
    Watchdog(cfg.train.hang, f"process {jax.process_index()} of {jax.process_count()}") as watchdog,
    Checkpoints(
      folder / "checkpoints",
      keep_last=cfg.train.keep_last,
      keep_every=cfg.train.keep_every,
      asynchronous=not cfg.train.debug,
    ) as saved,
    local_steps(cfg, folder, mesh) as local,
  ):
    lines, read_note, bucket = [], {}, cfg.objective.first_bucket(len(program.buckets))
    steps, near = saved.steps(), None if local is None else local.newest()
    restored = None
    if near is not None and near > max(steps, default=0):
      restored = local.restore(near, program.state, iterator)
    if isinstance(restored, tuple):
      state, read_note, lines = restored
      bucket = read_note["bucket"]
    elif steps:
      state, read_note, lines = saved.restore(program.state, iterator)
      bucket = read_note["bucket"]
    else:
      lost = from_first(lost_checkpoints(folder, cfg.train.save_every, had_checkpoints))
      if lost:
        if (
          first and not had_checkpoints
        ):  # else this attempt would have made it so that the next one passes
          with contextlib.suppress(OSError):
            (folder / "checkpoints").rmdir()
        raise ConfigError(lost)
      state = begin(program)
    if isinstance(restored, str):
      lines = [restored, *lines]
    step = int(state.step)
    display = Display(cfg.train.steps, step, quiet=quiet or not first)
    tracker = (
      Tracker(cfg.train.tracker, folder, resolved(cfg)) if first and cfg.train.tracker else None
    )
    writer = Writer(folder, step, tracker) if first else None
    for line in [cache.warning, *opened.lines, *lines, *opening_lines(program, folder, step)]:
      if line:
        display.say(line)
    if step < cfg.train.steps:
      display.say(implementations(program, shapes, bucket, frozen))
    goodput = Goodput.of_run(starts_of(folder) if first else [], read_note)
    report = Report(program, display, writer, index, hosts, peak_tokens, frozen, goodput)
    same = {"config": resolved(cfg), "revision": revision(), "hosts": hosts}
    if recorded:
      same["frozen"] = recorded

    def note(bucket):
      return same | {"bucket": bucket, "productive_s": round(goodput.productive_s, 3)}

    def on_step(step, state, bucket) -> bool:
      if cache.folder and (line := cache.line()):
        display.say(line)
      save = cfg.train.save_every and step % cfg.train.save_every == 0
      if save and not int(
        state.skipped_in_row
      ):  # what makes steps fail takes no good checkpoint's place
        watchdog.unusual("saving")
        opened.check()
        if writer:  # a checkpoint's metrics are there when the checkpoint is
          writer.upload()
        saved.save(step, state, iterator, note(bucket))
      near = local is not None and not save and step % cfg.train.local.every == 0
      if near and not int(state.skipped_in_row):
        watchdog.unusual("saving on the hosts")
        local.save(step, state, iterator, note(bucket))
      evaluate = cfg.eval.every and step % cfg.eval.every == 0 and step != cfg.train.steps
      if evaluate:
        watchdog.unusual("evaluating")
        report.evaluation(step, state, place, bucket)
      return bool(save or near or evaluate)

    try:
      state, bucket, early = run_steps(
        program,
        state,
        iterator,
        place,
        bucket=bucket,
        on_log=report.log,
        on_step=on_step,
        stop=stop,
        profile_folder=folder / "profile",
        watchdog=watchdog,
        frozen=frozen,
      )
      watchdog.unusual("saving and evaluating at the end")
      step = int(state.step)
      opened.check()
      saved.save(step, state, iterator, note(bucket), rotate=not int(state.skipped_in_row))
      if not early and not from_first(evaluated(folder, step)):
        report.evaluation(step, state, place, bucket)
      saved.wait()
    except (NonFinite, BucketOverflow, FloatingPointError) as error:
      with contextlib.suppress(CheckpointError):
        saved.wait()
      newest = max(saved.steps(), default=None)
      error.args = (
        f"{str(error).rstrip('.')}. "
        + (f"The newest checkpoint is of step {newest}." if newest else "No checkpoint was saved."),
      )
      if first:
        write_json(
          folder / "result.json",
          {
            "step": report.step,
            "finished": False,
            "stopped": None,
            "failed": str(error),
            "skipped": getattr(error, "skipped", None),
            "saved": newest,
            "metrics": report.last,
          },
        )
      raise
    finally:
      display.close()
      if writer:
        writer.close()
    last = last_metrics(folder, step) | report.last
    skipped = int(state.skipped)
    failed = None if early else too_many_skipped(skipped, step, cfg.train.max_skipped_fraction)
    if first:
      write_json(
        folder / "result.json",
        {
          "step": step,
          "finished": not early and failed is None,
          "stopped": stop.received if early else None,
          "failed": failed,
          "skipped": skipped,
          "saved": step,
          "metrics": last,
        },
      )
    if failed:
      raise NonFinite(failed)
    display.say(
      f"stopped by {stop.received} at step {step}, saved; the same command continues"
      if early
      else f"finished {step} steps in {duration(time.perf_counter() - report.start)}; everything is in {folder}"
    )
    return Result(
      step, last, str(folder), state.params, state.ema, stop.received if early else None
    )


def local_steps(cfg: RunConfig, folder, mesh):
  """A context with the checkpoints on the hosts, or with None."""
  if cfg.train.local.folder is None:
    return contextlib.nullcontext()
  return LocalSteps(cfg.train.local.folder, folder, mesh)


def too_many_skipped(skipped: int, steps: int, limit: float) -> str | None:
  """Why a run that took all its steps has failed nevertheless, or None."""
  if skipped <= limit * steps:
    return None
  return (
    f"{skipped} of {steps} steps were skipped, because their loss, gradient or update was not finite (limit "
    f"train.max_skipped_fraction = {limit}); the parameters are what the others made of them. Lower "
    f"optimizer.learning_rate or lengthen schedule.warmup_steps; --config.train.debug=True stops at the operation "
    f"that makes the first NaN."
  )


def begin(program: Program):
  """The state of a new run: initialised, or with the parameters that train.init_from holds."""
  state, source = program.init(), program.cfg.train.init_from
  if source is None:
    return state
  params = initial_params(source, program.state.params)
  ema = (
    None
    if state.ema is None
    else jax.tree.map(lambda e, p: p.astype(e.dtype) + 0, state.ema, params)
  )
  return dataclasses.replace(state, params=params, ema=ema)


def flops_per_token(cfg: RunConfig) -> float:
  """Model FLOPs of one token of data.seq_len, forward and backward: as objective or model count
  them, or by parameters.
  """
  counted = cfg.objective.train_flops_per_token(cfg.model, cfg.data.seq_len)
  return flops_of(cfg.model, cfg.data) if counted is None else counted


def flops_of(model, data) -> float:
  """FLOPs of one token, forward and backward, as the model's config counts them, or by parameters."""
  counted = model.train_flops_per_token(data.seq_len)
  if counted is not None:
    return counted
  if model.flops_from_trace:
    batch = {name: jax.ShapeDtypeStruct(*field) for name, field in data.batch_fields.items()}
    return traced_flops(model, batch) / (data.batch_size * data.seq_len)
  return train_flops_per_token(model, data.seq_len)


def peak_tokens_per_s(
  cfg: RunConfig, mesh, frozen: Mapping[str, Any] | None = None
) -> float | None:
  """Tokens per second at the devices' peak FLOP/s; None for devices whose peak is not known.

  Call it outside the mesh. frozen: {name: model config}: their forward passes count too.
  """
  peak = peak_flops(mesh.devices.flat[0].device_kind)
  if not peak:
    return None
  forward = sum(flops_of(model, cfg.data) / 3 for model in (frozen or {}).values())
  return peak * mesh.size / (flops_per_token(cfg) + forward)


class Report:
  """Turns what the step measured into what is written and shown; keeps the last of each number."""

  def __init__(
    self,
    program: Program,
    display: Display,
    writer: Writer | None,
    index: int,
    hosts: int,
    peak_tokens: float | None,
    frozen: Mapping[str, Any],
    goodput: Goodput,
  ):
    self.frozen, self.goodput = frozen, goodput
    self.program, self.display, self.writer = program, display, writer
    self.split = EvaluationSplit(program.cfg, index, hosts)
    self.cfg, self.last, self.step, self.start = program.cfg, {}, None, time.perf_counter()
    self.explained = False
    self.tokens = self.cfg.data.batch_size * self.cfg.data.seq_len
    self.peak_tokens = peak_tokens

  def log(
    self, step: int, values: dict[str, float], seconds: float | None, productive_s: float
  ) -> None:
    values, self.goodput.here = written(values), productive_s
    if seconds is not None:
      values |= {"tokens_per_s": self.tokens / seconds, "step_s": seconds}
      values["goodput"] = self.goodput.fraction()
      if self.peak_tokens:
        values["mfu"] = values["tokens_per_s"] / self.peak_tokens
    if self.step is None and (line := above_uniform(self.cfg, step, values.get("loss"))):
      self.display.say(line)
    self.step = step
    self._write(step, values)
    left = None if seconds is None else (self.cfg.train.steps - step) * seconds
    self.display.update(step, values, left)

  def evaluation(self, step: int, state, place, bucket: int) -> None:
    params = state.params if state.ema is None else state.ema
    values = evaluate(self.program, params, state.objective, place, self.split, bucket, self.frozen)
    if values:
      self._write(step, values)
      self.display.say(f"step {step}  " + "  ".join(f"{k} {v:.4g}" for k, v in values.items()))
      if not self.explained:
        for name, text in explained(values):
          self.display.say(f"  {name}: {text}")
      self.explained = True

  def _write(self, step: int, values: dict[str, float]) -> None:
    self.last |= values
    if self.writer:
      self.writer.write(step, values)


def opening_lines(program: Program, folder, step: int) -> list[str]:
  """What is about to run, on what, and what is not sharded although there is a mesh."""
  num_params = sum(leaf.size for leaf in jax.tree.leaves(program.state.params))
  devices = program.mesh.devices
  sizes = ", ".join(f"{name} {size}" for name, size in program.mesh.shape.items() if size > 1)
  lines = [
    f"{folder}: {count(num_params)} parameters on {devices.size} x {devices.flat[0].device_kind}"
    + (f" ({sizes})" if sizes else "")
    + (f", resuming from step {step}" if step else "")
  ]
  shardings = jax.tree.map(lambda leaf: leaf.sharding, program.state.params)
  for name, num_bytes in unsharded(program.state.params, shardings):
    lines.append(f"parameter {name} ({count(num_bytes)}B) is held in full by every device")
  return lines


def implementations(program: Program, shapes, bucket: int, frozen) -> str:
  """The line that says which implementation each op of the train step takes.

  The trace that it needs is the one that the first step then uses.
  """
  place = batch_sharding(program.mesh)
  batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes)
  with recorded() as choices:
    program.trace(batch, bucket, frozen)
  return f"implementations: {summary(choices) or 'no op of jaxlm.kernels'}"


def above_uniform(cfg: RunConfig, step: int, loss: float | None) -> str:
  """A line where a run's first logged loss is above that of a uniform guess; '' elsewhere."""
  vocab = getattr(cfg.model, "vocab_size", None)
  if cfg.model.scores != "next_token" or not vocab or loss is None or step > cfg.train.log_every:
    return ""
  if not loss > math.log(vocab):
    return ""
  return (
    f"step {step}: loss {loss:.2f} is above ln {vocab} = {math.log(vocab):.2f}, that of a uniform guess: the logits that a new "
    "model begins with are not uniform, and this is the mean over the first steps. It falls below within some tens of "
    "steps; if it does not, lower optimizer.learning_rate or lengthen schedule.warmup_steps"
  )


def evaluated(folder, step: int) -> bool:
  """Whether the evaluation at this step is written already: a finished run that is started again
  only answers.
  """
  return any(r["step"] == step and any(k.startswith("eval/") for k in r) for r in read(folder))


def last_metrics(folder, step: int) -> dict[str, float]:
  """The newest value of each number written up to a step: what a finished run answers when it is
  asked again.
  """
  last = {}
  for record in read(folder):
    if record["step"] <= step:
      last |= {k: v for k, v in record.items() if k != "step"}
  return last
