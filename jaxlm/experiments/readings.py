"""Measures that probe trained decoders: sinks, norms, losses under edits.

Axes: B batch, T time.
"""

from collections.abc import Callable, Mapping

import numpy as np

from jaxlm.experiments.table import Measured, Trained


def opened(trained: Trained, step: int | None = None):
  """The row's model as `jaxlm.open_model` returns it, at a saved step or at the end."""
  from jaxlm.checkpoint.opening import Opened, open_model
  from jaxlm.training.config import run_config

  if step is not None:
    return open_model(trained.workdir, step=step)
  cfg = run_config(trained.config)
  return Opened(cfg.model, trained.params, trained.workdir, run=trained.config)


def saved_steps(config: Mapping) -> list[int]:
  """The steps whose checkpoints are kept for good."""
  every, steps = config["train"]["keep_every"], config["train"]["steps"]
  return list(range(every, steps + 1, every))


def validation(data, rows: int, split: str = "validation") -> dict[str, np.ndarray]:
  """The first `rows` rows of a split as one batch."""
  parts, count = [], 0
  for batch in data.build(split, seed=0, repeat=False):
    parts.append(batch)
    count += len(next(iter(batch.values())))
    if count >= rows:
      break
  return {name: np.concatenate([p[name] for p in parts])[:rows] for name in parts[0]}


def losses(model, batch, changes=None) -> np.ndarray:
  """-log p(target), float64 (B, T), nats, with the activations changed as `changes` says."""
  import jax
  import jax.numpy as jnp

  from jaxlm.analysis.opened import intervene

  out = intervene(model, {"tokens": batch["tokens"]}, changes or {})["output"]
  log_p = jax.nn.log_softmax(jnp.asarray(out, jnp.float32))
  picked = jnp.take_along_axis(log_p, jnp.asarray(batch["targets"])[..., None], axis=-1)[..., 0]
  return -np.asarray(picked, np.float64)


def mean_loss(nll_BT, batch, start: int = 0) -> float:
  """Over targets with weight, at positions from `start` on."""
  w_BT = np.asarray(batch["loss_weights"], np.float64).copy()
  w_BT[:, :start] = 0
  return float((nll_BT * w_BT).sum() / w_BT.sum())


def sinks(
  *, rows: int = 100, length: int = 64, start: int = 16, eps: float = 0.3, curve: bool = True
) -> Callable:
  """Sink rate (per cent) and what goes with it, over `rows` rows of `length` validation tokens.

  numbers: loss, nats per token from position `start` on, where every mask sees enough; sink, the
  sink rate of the first key; strongest, the key position with the largest rate; slot, the mean
  weight of a learned slot; intermediate, sinks behind the first key per row; ratio, the largest of
  max |x| / median |x| over layers; cosine, mean cosine of a state with the row's first, over the
  layers but the last. curves: sink, by saved step.
  """

  def measure(trained: Trained, overrides_at) -> Measured:
    from jaxlm.analysis.opened import observe
    from jaxlm.analysis.probes import probe
    from jaxlm.analysis.sinks import cosine_to_first

    model = opened(trained)
    batch = {name: x[:, :length] for name, x in validation(model.data, rows).items()}
    tokens = {"tokens": batch["tokens"]}
    one = probe("sinks", eps=eps)
    read = one.read(model, tokens).numbers
    resid = observe(model, tokens, "resid")["resid"]
    numbers = {
      "loss": mean_loss(losses(model, batch), batch, start),
      "sink": 100 * read["sink rate"],
      "strongest": read["strongest key"],
      "slot": read["slot"],
      "intermediate": read["intermediate sinks"],
      "ratio": read["largest activation / median"],
      "cosine": float(np.mean([cosine_to_first(x).mean() for x in resid[:-1]])),
    }
    steps = saved_steps(trained.config) if curve else []
    of_step = [one.read(opened(trained, s), tokens).numbers["sink rate"] for s in steps]
    return Measured(numbers, {}, {"sink": [100 * x for x in of_step]} if curve else {})

  return measure
