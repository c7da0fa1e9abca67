"""The loop: feeds the step, and looks at its results only at log steps.

The device never waits for the host.
"""

import collections
import itertools
import os
import signal
import threading
import time

import jax
import numpy as np

from jaxlm.objectives.base import Pair
from jaxlm.parallel.agree import gather
from jaxlm.training.first_nan import located
from jaxlm.training.mirror import Mirror
from jaxlm.training.progress import Rate
from jaxlm.training.watchdog import Watchdog

#: Steps the host may be ahead of the device: enough to hide it, few enough to bound the batches
#: held in memory.
MAX_AHEAD = 8


class NonFinite(RuntimeError):
  """Too many steps were skipped, in a row or of all. skipped: how many in the whole run, None: not
  known.
  """

  skipped: int | None = None


class BucketOverflow(RuntimeError):
  """The largest bucket of the objective is too small for a batch."""


class StopSignal:
  """First SIGTERM, SIGHUP or SIGINT: `received` is its name and the loop ends after this step. A
  second Ctrl-C aborts.

  A SIGHUP that the process was told to ignore (`nohup`) is ignored.
  """

  SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)
  )

  def __init__(self):
    self.received, self.previous = None, {}

  def __enter__(self):
    if threading.current_thread() is threading.main_thread():
      self.previous = {
        s: signal.signal(s, self._handle)
        for s in self.SIGNALS
        if signal.getsignal(s) != signal.SIG_IGN
      }
    return self

  def __exit__(self, *_):
    for number, handler in self.previous.items():
      signal.signal(number, handler)

  def _handle(self, number, frame):
    if self.received and number == signal.SIGINT:
      raise KeyboardInterrupt
    self.received = signal.Signals(number).name
    # Not print: the signal may have come in the middle of one. A step can take long, the first one
    # compiles.
    try:
      os.write(2, f"\n{self.received}: ends after this step and saves; Ctrl-C aborts\n".encode())
    except (
      OSError
    ):  # the terminal is gone: what is printed from now on goes nowhere, rather than into an error
      null = os.open(os.devnull, os.O_WRONLY)
      for stream in (1, 2):
        os.dup2(null, stream)

  def agreed(self, step: int, log_every: int) -> bool:
    """Whether to stop: with several processes all of them or none, asked at log steps only."""
    if jax.process_count() == 1:
      return self.received is not None
    if step % log_every:
      return False
    told = [name for name in gather(self.received) if name]
    if told and self.received is None:
      self.received = told[0]
    return bool(told)


def run_steps(
  program,
  state,
  batches,
  place,
  *,
  bucket: int,
  on_log,
  on_step,
  stop: StopSignal,
  profile_folder,
  watchdog: Watchdog,
  frozen=None,
):
  """Trains from state.step to train.steps. Returns (state, bucket index, stopped early).

  batches: host batches. on_log(step, metrics as means, seconds per step or None, seconds of all
  steps so far); on_step(step, state, bucket) -> whether it took time that is not training (saving,
  evaluating). watchdog: is told of every step. frozen: as `Program.frozen`, with numbers; None
  where there is none.
  """
  cfg, step = program.cfg, int(state.step)
  pending, flight, rate, profile = (
    [],
    collections.deque(),
    None,
    Profile(cfg.train.profile, profile_folder),
  )
  used = set()  # buckets that are compiled
  watchdog.unusual(f"step {step + 1}, which compiles,")
  while step < cfg.train.steps:
    profile.before(step, state)
    batch, compiled, start = place(next(batches)), len(used), time.perf_counter()
    try:
      state, metrics, bucket = one_step(program, state, batch, bucket, used, frozen, watchdog)
    except FloatingPointError as error:  # only train.debug raises it
      raise located(
        error, step + 1, lambda: one_step(program, state, batch, bucket, used, frozen)
      ) from error
    step += 1
    if (
      rate is None or len(used) > compiled
    ):  # it has compiled; its time says nothing about the next
      jax.block_until_ready(metrics)
      if rate is None:
        rate = Rate()
      else:
        rate.pause(time.perf_counter() - start)
    else:
      rate.num_steps += 1
    if profile.mirror:
      watchdog.unusual("writing the profile")
    profile.after(step, state)
    pending.append(metrics)
    flight.append(metrics["loss"].sum)
    if len(flight) > MAX_AHEAD or cfg.train.debug:
      flight.popleft().block_until_ready()
    if step % cfg.train.log_every == 0 or step == cfg.train.steps:
      values = means(pending)
      on_log(step, values, rate.lap(), rate.total)
      pending = []
      try:
        guard(values, step, cfg.train)
      except NonFinite as error:
        error.skipped = int(state.skipped)
        raise
    start = time.perf_counter()
    if on_step(step, state, bucket):
      rate.pause(time.perf_counter() - start)
    watchdog.step(step + 1)
    if stop.agreed(step, cfg.train.log_every):
      break
  profile.close()
  if pending:
    on_log(step, means(pending), rate.lap(), rate.total)
  return state, bucket, step < cfg.train.steps


def one_step(
  program, state, batch, bucket: int, used: set[int], frozen=None, watchdog: Watchdog | None = None
):
  """(state, metrics, next bucket index); a step that overflowed its bucket is done again in a
  larger one, and `redone` says how often. used: gets the buckets that were run. frozen: as
  `Program.frozen`, with numbers; None where there is none."""
  if not program.buckets or not program.cfg.objective.bucketed_training:
    state, metrics, _ = program.step(state, batch, frozen)
    return state, metrics, bucket
  for attempt in itertools.count():
    if bucket not in used and watchdog is not None:
      watchdog.unusual(f"a step in bucket {program.buckets[bucket]}, which compiles,")
    used.add(bucket)
    state, metrics, fitted = program.step(state, batch, frozen, bucket=program.buckets[bucket])
    overflow, following = map(float, jax.device_get(fitted))
    following = int(following)
    if overflow <= 0:
      return state, metrics | {"redone": Pair(np.float32(attempt), np.float32(1))}, following
    if bucket == len(program.buckets) - 1:
      raise BucketOverflow(
        f"the largest bucket {program.buckets[bucket]} of the objective overflows at step "
        f"{int(state.step)}; give it a larger one (objective.capacities), or choose another "
        f"objective.overflow"
      )
    bucket = max(bucket + 1, following)


def means(pending: list[dict[str, Pair]]) -> dict[str, float]:
  """Weighted means over the steps since the last log. Skipped and empty steps count in `skipped`
  and `empty` and nowhere else."""
  values = jax.device_get(pending)

  def total(name):
    return float(sum(v[name].sum for v in values if name in v))

  good = [
    v for v in values if not any(v[name].sum for name in ("skipped", "empty") if name in v)
  ] or values
  out = {}
  for name in values[-1]:
    pairs = [v[name] for v in good]
    out[name] = float(
      sum(np.float64(p.sum) for p in pairs) / max(sum(np.float64(p.weight) for p in pairs), 1e-9)
    )
  out |= {name: total(name) for name in ("skipped", "empty", "bad_update", "spike")}
  out["skipped_in_row"] = max(float(v["skipped_in_row"].sum) for v in values)
  return out


def written(values: dict[str, float]) -> dict[str, float]:
  """What is written of `means`: without what only `guard` reads, and counts of what is rare only
  where it happened.
  """
  return {
    k: v
    for k, v in values.items()
    if k not in ("skipped_in_row", "bad_update") and (v or k not in ("empty", "spike"))
  }


def guard(values: dict[str, float], step: int, train) -> None:
  """Raises NonFinite when the limit of skipped steps in a row is reached. train: its TrainConfig."""
  if values["skipped_in_row"] < train.max_skipped:
    return
  row, limit = (
    f"step {step}: {values['skipped_in_row']:.0f} steps in a row",
    f"limit train.max_skipped = {train.max_skipped}",
  )
  if values["spike"]:
    raise NonFinite(
      f"{row} were skipped, among them losses above train.spike_factor = {train.spike_factor} times their "
      f"median ({limit}); parameters are those before them. Lower optimizer.learning_rate or raise "
      f"train.spike_factor."
    )
  if values["bad_update"]:
    raise NonFinite(
      f"{row} without a finite update of the parameters and the optimizer's state, though loss and gradient are finite "
      f"({limit}); parameters are those before them. Lower optimizer.learning_rate, or raise optimizer.eps."
    )
  raise NonFinite(
    f"{row} without a finite loss and gradient ({limit}); parameters are those before them. Lower "
    f"optimizer.learning_rate or lengthen schedule.warmup_steps; --config.train.debug=True stops at the operation that "
    f"makes the first NaN."
  )


class Profile:
  """An XProf trace of steps first..last of each process, if asked for."""

  def __init__(self, steps, folder):
    self.steps, self.folder, self.mirror = steps, folder, None

  def before(self, step, state):
    if self.steps and step == self.steps[0]:
      jax.block_until_ready(state)
      self.mirror = Mirror(self.folder)
      jax.profiler.start_trace(str(self.mirror.local))

  def after(self, step, state):
    if self.mirror and step > self.steps[1]:
      jax.block_until_ready(state)
      self.close()

  def close(self):
    if self.mirror:
      jax.profiler.stop_trace()
      self.mirror.close()
      self.mirror = None
