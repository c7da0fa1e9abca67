"""A trained model against the best possible predictor of its source. Axes: N texts, T time, V
symbols.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from jaxlm.experiments.table import Measured, Trained

MIXTURE_NUMBERS = 2**24  # (texts, positions, ciphers) at a time: 128 MiB


def above_exact_mixture(
  *, stretches: int = 8, rows: int = 64, probe_texts: int = 2048, probe_steps: int = 1000
) -> Callable:
  """Measure of models of `data.kind = "bigram"` on ciphered texts of the validation split, in nats
  per symbol.

  numbers: loss, of the model; exact, of Bayes over all ciphers; source, of who knows the cipher;
  excess = loss - exact, excess@first and excess@last, over the first and the last eighth of
  positions; lowest, the least excess of any `stretches` equal parts of the positions, in standard
  errors over texts: from above means no less than about -2.
  deciphered and probed: per cent of symbols whose plain symbol the exact posterior, or a token
  probe of the model's states trained for probe_steps, names once it has seen them; over the last
  eighth.
  curves: loss, exact, source by position.
  An evaluate_from row may change train.steps (to a step that was saved) and eval.num_tables.
  """

  def measure(trained: Trained, overrides_at) -> Measured:
    from jaxlm.checkpoint.opening import open_model
    from jaxlm.experiments.runner import override
    from jaxlm.training.config import run_config

    cfg, params = run_config(override(trained.config, overrides_at(1))), trained.params
    if cfg.train.steps != trained.config["train"]["steps"]:
      params = open_model(trained.workdir, step=cfg.train.steps).params
    texts = cfg.data.examples("validation", cfg.seed)
    exact_NT, right_NT = _exact(cfg.data, texts)
    source_NT = -cfg.data.source.log_prob(texts["plain"])[:, 1:]
    loss_NT = _losses(cfg, params, texts, rows)
    excess_NT = loss_NT - exact_NT
    last = slice(-(excess_NT.shape[1] // 8), None)
    parts = [part.mean(axis=1) for part in np.array_split(excess_NT, stretches, axis=1)]
    numbers = {
      "loss": loss_NT.mean(),
      "exact": exact_NT.mean(),
      "source": source_NT.mean(),
      "excess": excess_NT.mean(),
      "excess@first": excess_NT[:, : excess_NT.shape[1] // 8].mean(),
      "excess@last": excess_NT[:, last].mean(),
      "lowest": min(part.mean() / (part.std(ddof=1) / len(part) ** 0.5) for part in parts),
      "deciphered": 100 * right_NT[:, last].mean(),
      "probed": 100 * _probed(cfg, params, texts, probe_texts, probe_steps, rows)[last].mean(),
    }

    def curve(x_NT):
      return [round(float(x), 5) for x in x_NT.mean(axis=0)]

    return Measured(
      {k: float(v) for k, v in numbers.items()},
      {},
      {"loss": curve(loss_NT), "exact": curve(exact_NT), "source": curve(source_NT)},
    )

  return measure


def _exact(data, texts):
  """(-log p'(target) (N, T); whether the posterior after x_<=t deciphers x_t, bool (N, T))."""
  from jaxlm.evaluation.bayes_mixture import mixture

  ciphered_NT = np.concatenate([texts["tokens"], texts["targets"][:, -1:]], axis=1)
  at_once = max(1, MIXTURE_NUMBERS // (ciphered_NT.shape[1] * math.factorial(data.num_symbols)))
  nll, right = [], []
  for i in range(0, len(ciphered_NT), at_once):
    here_NT = ciphered_NT[i : i + at_once]
    found = mixture(data.source, here_NT)
    of_symbol_NTV = np.take_along_axis(found.decipher(), here_NT[..., None, None], axis=2)[:, :, 0]
    nll.append(-found.log_prob_NT[:, 1:])  # the first symbol is nobody's target
    right.append((of_symbol_NTV.argmax(-1) == texts["plain"][i : i + at_once])[:, :-1])
  return np.concatenate(nll), np.concatenate(right)


def _losses(cfg, params, texts, rows: int):
  """float64 (N, T)."""
  import functools

  import jax

  from jaxlm.evaluation.tables import averaged_log_prob

  run = jax.jit(functools.partial(averaged_log_prob, cfg.model, num_tables=cfg.eval.num_tables))
  return -np.concatenate(
    [
      np.asarray(run(params, _batch(texts, slice(i, i + rows))), np.float64)
      for i in range(0, len(texts["tokens"]), rows)
    ]
  )


def _batch(texts, chosen) -> dict:
  """What a model reads of some texts."""
  return {k: v[chosen] for k, v in texts.items() if k not in ("plain", "cipher")}


def _probed(cfg, params, texts, num_texts: int, steps: int, rows: int):
  """Accuracy of a token probe by position, float64 (T,)."""
  from jaxlm.data.ciphers import inverse
  from jaxlm.evaluation.probes import Probing, probe_accuracy, train_probes

  rng = np.random.default_rng([cfg.seed, 1])

  def known(texts, chosen):
    return _batch(texts, chosen) | {
      "plain": texts["plain"][chosen, :-1],
      "decipher": inverse(texts["cipher"][chosen]),
    }

  seen = dataclasses.replace(cfg.data, rows=num_texts).examples("train", cfg.seed)

  def batches():
    while True:
      fresh = rng.integers(0, 2**32, (cfg.data.batch_size, 2), dtype=np.uint32)
      yield known(seen, rng.integers(0, num_texts, cfg.data.batch_size)) | {"sequence_seeds": fresh}

  probes = train_probes(cfg.model, params, batches(), Probing(steps=steps), rng, seed=cfg.seed)
  held_out = (known(texts, slice(i, i + rows)) for i in range(0, len(texts["tokens"]), rows))
  return probe_accuracy(cfg.model, params, probes, held_out, (cfg.data.seq_len - 1,))["token_T"]
