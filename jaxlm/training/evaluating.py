"""The evaluation inside a run: whether it can be done, and doing it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxlm.config import ConfigError
from jaxlm.evaluation.perplexity import at_length, evaluate_lengths
from jaxlm.parallel.agree import from_first
from jaxlm.training.config import RunConfig
from jaxlm.training.loop import BucketOverflow
from jaxlm.training.step import Program


def check_evaluation(cfg: RunConfig, hosts: int) -> None:
  """Refuses an evaluation that would fail once the model is trained.

  Of its split only the start is read.
  """
  refused = None
  if cfg.eval.lengths and cfg.model.scores != "next_token":
    raise ConfigError(
      f"eval.lengths = {cfg.eval.lengths}: the perplexity at a length is of models of the next token, and "
      f"this one scores {cfg.model.scores}; leave eval.lengths out"
    )
  if jax.process_index() == 0:
    try:
      for data in (cfg.data, *(at_length(cfg.data, length, hosts) for length in cfg.eval.lengths)):
        batches = data.build(
          cfg.eval.split, seed=cfg.seed, process_index=0, process_count=hosts, repeat=False
        )
        if not any(np.any(batch["loss_weights"]) for batch in batches):
          refused = (
            f"eval.split = {cfg.eval.split!r} has no target to score at length {data.seq_len}, so that the run "
            f"could not be evaluated; choose another split or more text"
            + (", or a shorter length in eval.lengths" if data is not cfg.data else "")
          )
          break
    except ConfigError as error:
      refused = str(error) if "eval" in str(error) else f"eval.split = {cfg.eval.split!r}: {error}"
  refused = from_first(refused)
  if refused:
    raise ConfigError(refused)


@dataclasses.dataclass(frozen=True)
class EvaluationSplit:
  """The batches of eval.split for host `index` of `hosts`, built when they are first asked for."""

  cfg: RunConfig
  index: int
  hosts: int
  _built: dict = dataclasses.field(default_factory=dict)

  def of(self, data):
    """One pass over the split, as `data` (the run's, or that at another length) cuts it."""
    key = data.seq_len, data.batch_size
    if key not in self._built:
      self._built[key] = data.build(
        self.cfg.eval.split,
        seed=self.cfg.seed,
        process_index=self.index,
        process_count=self.hosts,
        repeat=False,
      )
    return self._built[key]


def evaluate(
  program: Program,
  params,
  objective_state,
  place,
  split: EvaluationSplit,
  bucket: int,
  frozen: Mapping[str, Any] | None = None,
) -> dict[str, float]:
  """{'eval/loss': ...}: the objective on the evaluation split, and perplexity at each of
  eval.lengths.
  """
  cfg, totals, tokens = program.cfg, {}, 0
  rows = cfg.data.batch_size // split.hosts
  if program.buckets and not cfg.objective.bucketed_training:
    bucket = 0  # training says nothing about it: up from the smallest
  for batch in split.of(cfg.data):
    here = jax.tree.leaves(batch)[0].shape[0]
    if here < rows:  # the last batch is filled up with rows that weigh nothing
      batch = {k: np.concatenate([v, np.repeat(v[-1:], rows - here, 0)]) for k, v in batch.items()}
      batch["loss_weights"] = batch["loss_weights"] * (np.arange(rows) < here)[:, None].astype(
        np.float32
      )
    metrics, bucket = _eval_batch(program, params, place(batch), objective_state, bucket, frozen)
    for name, pair in metrics.items():
      total = totals.get(name, (0.0, 0.0))
      totals[name] = (total[0] + float(pair.sum), total[1] + float(pair.weight))
    tokens += cfg.data.batch_size * cfg.data.seq_len
    if cfg.eval.num_tokens is not None and tokens >= cfg.eval.num_tokens:
      break
  values = {f"eval/{name}": total / max(weight, 1e-9) for name, (total, weight) in totals.items()}
  if cfg.eval.lengths:
    for found in evaluate_lengths(
      cfg.model,
      params,
      cfg.data,
      cfg.eval.lengths,
      split=cfg.eval.split,
      num_tokens=cfg.eval.num_tokens,
      seed=cfg.seed,
      process_index=split.index,
      process_count=split.hosts,
      place=place,
      num_tables=cfg.eval.num_tables,
      build=split.of,
    ):
      if found.tokens:
        values[f"eval/perplexity@{found.length}"] = found.perplexity
  return values


def _eval_batch(program: Program, params, batch, objective_state, bucket: int, frozen):
  while True:
    chosen = program.buckets[bucket] if program.buckets else None
    metrics, fitted = jax.device_get(
      program.evaluate(params, batch, objective_state, frozen, bucket=chosen)
    )
    if fitted is None or fitted.overflow <= 0:
      return metrics, bucket
    last = len(program.buckets) - 1
    if bucket == last:
      raise BucketOverflow(
        f"the largest bucket {chosen} of the objective overflows in evaluation; give it a larger one "
        f"(objective.capacities)"
      )
    bucket = max(bucket + 1, int(fitted.bucket))
