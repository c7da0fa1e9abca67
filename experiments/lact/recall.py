"""Measures of memory: loss by position, and answers found, on any data that `build`s batches."""

from collections.abc import Callable, Mapping

import numpy as np

from jaxlm.experiments.table import Measured, Trained


def loss_by_position(
  edges: Mapping[str, tuple[float, float]], *, curve_points: int = 64
) -> Callable:
  """numbers: loss@name, nats per token over the positions between two fractions of the length.

  curves: loss.
  """

  def measure(trained: Trained, overrides_at) -> Measured:
    nll_T, weight_T = 0.0, 0.0
    for batch, score in _scored(_scorer(trained), trained):
      nll_T += -(score.log_prob_BT * batch["loss_weights"]).sum(0, dtype=np.float64)
      weight_T += batch["loss_weights"].sum(0, dtype=np.float64)
    T, numbers = len(nll_T), {}
    for name, (start, stop) in edges.items():
      part = slice(round(start * T), round(stop * T))
      numbers[f"loss@{name}"] = float(nll_T[part].sum() / weight_T[part].sum())
    starts = np.arange(0, T, -(-T // curve_points))
    curve = np.add.reduceat(nll_T, starts) / np.maximum(np.add.reduceat(weight_T, starts), 1e-9)
    return Measured(numbers, {}, {"loss": [round(float(x), 5) for x in curve]})

  return measure


def answers_found(tasks: Mapping[str, Mapping]) -> Callable:
  """accuracy@task: fraction of rows all of whose answer tokens are the most likely ones (equal to
  greedy decoding of
  the answer). tasks: name -> overrides of the data section."""

  def measure(trained: Trained, overrides_at) -> Measured:
    from jaxlm.config import ConfigError
    from jaxlm.experiments.runner import override

    numbers, notes, run = {}, {}, _scorer(trained, logits=True)
    for name, changes in tasks.items():
      try:
        config = override(trained.config, {f"data.{key}": value for key, value in changes.items()})
        right, count = 0, 0
        for batch, logits_BTV in _scored(run, trained._replace(config=config)):
          wrong_B = ((np.argmax(logits_BTV, -1) != batch["targets"]) & (batch["answer"] > 0)).any(1)
          real_B = batch["loss_weights"].sum(1) > 0
          right, count = right + int((~wrong_B & real_B).sum()), count + int(real_B.sum())
        numbers[f"accuracy@{name}"] = 100.0 * right / count
      except ConfigError as error:
        notes[f"accuracy@{name}"] = str(error)
    return Measured(numbers, notes, {})

  return measure


def _scorer(trained: Trained, logits: bool = False):
  """(params, batch) -> score or logits: one program for every batch of the same shape."""
  import jax

  from jaxlm.training.config import run_config

  model = run_config(trained.config).model.build()

  @jax.jit
  def run(params, batch):
    args = (batch["segment_ids"], batch["positions"])
    if logits:
      return model.apply({"params": params}, batch["tokens"], *args)
    return model.apply({"params": params}, batch["tokens"], batch["targets"], *args, method="score")

  return run


def _scored(run, trained: Trained):
  """(batch, what `run` makes of it) over one pass of the validation split."""
  import jax

  from jaxlm.training.config import run_config

  cfg = run_config(trained.config)
  for batch in cfg.data.build("validation", seed=cfg.seed, repeat=False):
    yield batch, jax.device_get(run(trained.params, batch))
