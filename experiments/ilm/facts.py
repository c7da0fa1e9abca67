"""How many answers that are sets of facts are right, whatever form the trained row has."""

from collections.abc import Callable

import numpy as np

from jaxlm.experiments.table import Measured, Trained


def facts_right(num_rows: int, *, split: str = "test", **settings) -> Callable:
  """Measure: exact (the whole answer in the data's order), set_equal and iou (whatever the order),
  means over the first `num_rows` problems of a split. Facts are consecutive triples behind BOS.
  settings: of `Answering`.
  """

  def measure(trained: Trained, overrides_at) -> Measured:
    from jaxlm.checkpoint.opening import open_model
    from jaxlm.evaluation.sequences import set_scores, triples
    from jaxlm.generation.answers import Answering
    from jaxlm.training.config import run_config

    cfg = run_config(trained.config)
    params = (
      trained.params
      if cfg.train.ema_decay is None
      else open_model(trained.workdir, ema=True).params
    )
    problems = cfg.data.problems(split, seed=cfg.seed, number=num_rows)
    prompts, wanted = zip(*problems)
    found = (
      Answering(max_len=cfg.data.seq_len, **settings)
      .answer(
        cfg.model, params, cfg.data.form, cfg.data.special_tokens, prompts, [len(a) for a in wanted]
      )
      .sequences
    )
    exact = np.mean([np.array_equal(f[len(p) :], a) for f, p, a in zip(found, prompts, wanted)])
    bos = cfg.data.special_tokens.bos
    iou, equal = set_scores(
      [triples(f, bos) for f in found], [triples([*p, *a], bos) for p, a in zip(prompts, wanted)]
    )
    return Measured({"exact": float(exact), "set_equal": equal, "iou": iou}, {}, {})

  return measure
