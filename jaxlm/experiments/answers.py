"""How many answers of a task are right, whatever form the trained row has."""

import time
from collections.abc import Callable

import numpy as np

from jaxlm.evaluation.sequences import exact_match, token_accuracy
from jaxlm.experiments.table import Measured, Trained


def answers_right(num_rows: int, *, split: str = "test", **settings) -> Callable:
  """Measure: answers to the first `num_rows` problems of a split, with averaged parameters where
  the run kept them.

  numbers: exact_match and token_accuracy (means over problems; a place that is missing is wrong),
  tokens_per_pass and ms_per_token (one sequence's share of its batch; the compilation of the first
  batch left out). settings: fields of `Answering`, each a value or a function of the configuration.
  """

  def measure(trained: Trained, overrides_at) -> Measured:
    from jaxlm.checkpoint.opening import open_model
    from jaxlm.generation.answers import Answering
    from jaxlm.training.config import run_config

    cfg = run_config(trained.config)
    params = (
      trained.params
      if cfg.train.ema_decay is None
      else open_model(trained.workdir, ema=True).params
    )
    chosen = {k: v(cfg) if callable(v) else v for k, v in settings.items()}
    answering = Answering(max_len=cfg.data.seq_len, **chosen)
    problems = cfg.data.problems(split, seed=cfg.seed, number=num_rows)
    prompts, wanted = [p for p, _ in problems], [a for _, a in problems]
    lengths = [len(a) for a in wanted]

    def run(n):
      return answering.answer(
        cfg.model, params, cfg.data.form, cfg.data.special_tokens, prompts[:n], lengths[:n]
      )

    run(1)  # compiles
    start = time.perf_counter()
    found = run(len(prompts))
    seconds = time.perf_counter() - start
    numbers = scores(
      [f[len(p) :] for f, p in zip(found.sequences, prompts)], wanted, cfg.data.special_tokens.pad
    )
    numbers |= {
      "tokens_per_pass": found.tokens_per_pass,
      "ms_per_token": 1000 * seconds / max(found.new_tokens, 1),
    }
    return Measured(numbers, {}, {})

  return measure


def scores(found, wanted, pad: int) -> dict[str, float]:
  """exact_match and token_accuracy of answers of any lengths."""
  width = max(map(len, [*found, *wanted]))

  def wide(rows):
    return np.stack(
      [np.pad(np.asarray(r, np.int32), (0, width - len(r)), constant_values=pad) for r in rows]
    )

  wanted_BT = wide(wanted)
  return {
    "exact_match": exact_match(wide(found), wanted_BT),
    "token_accuracy": token_accuracy(wide(found), wanted_BT, wanted_BT != pad),
  }
