"""A trained model against the best possible predictor of its source. Axes: N texts, T time."""

import math
from collections.abc import Callable

import numpy as np

from jaxlm.experiments.table import Measured, Trained

MIXTURE_NUMBERS = 2**24     # (texts, positions, ciphers) at a time: 128 MiB


def above_exact_mixture(*, stretches: int = 8, rows: int = 64) -> Callable:
  """Measure of models of `data.kind = "bigram"` on ciphered texts of the validation split, in nats per symbol.

  numbers: loss, of the model; exact, of Bayes over all ciphers; source, of who knows the cipher; excess = loss - exact,
  excess@first and excess@last, over the first and the last eighth of positions; lowest, the least excess of any
  `stretches` equal parts of the positions, in standard errors over texts: from above means no less than about -2.
  curves: loss, exact, source by position.
  An evaluate_from row may change train.steps (to a step that was saved) and eval.num_tables.
  """

  def measure(trained: Trained, overrides_at) -> Measured:
    from jaxlm.evaluation.bayes_mixture import mixture
    from jaxlm.experiments.runner import override
    from jaxlm.training.checkpoints import restore_params
    from jaxlm.training.config import run_config

    cfg, params = run_config(override(trained.config, overrides_at(1))), trained.params
    if cfg.train.steps != trained.config["train"]["steps"]:
      params = restore_params(trained.workdir, step=cfg.train.steps)[0]
    texts, source = cfg.data.examples("validation", cfg.seed), cfg.data.source
    whole = lambda tokens: np.concatenate([tokens["tokens"], tokens["targets"][:, -1:]], axis=1)
    # The first symbol is nobody's target.
    ciphered_NT = whole(texts)
    at_once = max(1, MIXTURE_NUMBERS // (ciphered_NT.shape[1] * math.factorial(cfg.data.num_symbols)))
    exact_NT = -np.concatenate([mixture(source, ciphered_NT[i:i + at_once]).log_prob_NT[:, 1:]
                                for i in range(0, len(ciphered_NT), at_once)])
    source_NT = -source.log_prob(texts["plain"])[:, 1:]
    loss_NT = _losses(cfg, params, texts, rows)
    excess_NT = loss_NT - exact_NT
    T = excess_NT.shape[1]
    parts = [part.mean(axis=1) for part in np.array_split(excess_NT, stretches, axis=1)]
    numbers = {"loss": loss_NT.mean(), "exact": exact_NT.mean(), "source": source_NT.mean(), "excess": excess_NT.mean(),
               "excess@first": excess_NT[:, :T // 8].mean(), "excess@last": excess_NT[:, -(T // 8):].mean(),
               "lowest": min(part.mean() / (part.std(ddof=1) / len(part)**0.5) for part in parts)}
    curve = lambda x_NT: [round(float(x), 5) for x in x_NT.mean(axis=0)]
    return Measured({k: float(v) for k, v in numbers.items()}, {},
                    {"loss": curve(loss_NT), "exact": curve(exact_NT), "source": curve(source_NT)})

  return measure


def _losses(cfg, params, texts, rows: int):
  """float64 (N, T)."""
  import functools

  import jax

  from jaxlm.evaluation.tables import averaged_log_prob

  run = jax.jit(functools.partial(averaged_log_prob, cfg.model, num_tables=cfg.eval.num_tables))
  batches = [{k: v[i:i + rows] for k, v in texts.items() if k != "plain"} for i in range(0, len(texts["tokens"]), rows)]
  return -np.concatenate([np.asarray(run(params, batch), np.float64) for batch in batches])
