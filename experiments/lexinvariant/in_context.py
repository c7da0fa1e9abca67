"""Measure: LookUp and Permutation, asked of a character model that was never trained on them
(docs/specs/lexinvariant.md, 8).
"""

import string
from collections.abc import Callable, Sequence

import numpy as np

from jaxlm.experiments.table import Measured, Trained

ARROW, SEPARATOR, SYMBOLS = ">", ";", string.ascii_letters + string.digits


def reasoning(
  settings: Sequence | None = None, *, instances: int = 500, rows: int = 50
) -> Callable:
  """Percentages of `instances` answered: exact@name, every token of the answer; token@name, of its
  tokens. Names are lookup_K and permutation_N_E; exact@lookup, token@permutation and so on are
  means over settings.

  Greedy over the whole vocabulary with the right answer's tokens as context; one table per
  instance.
  """

  def measure(trained: Trained, overrides_at) -> Measured:
    import jax

    from jaxlm.data.lexinvariant_tasks import SETTINGS, LookUp, accuracy
    from jaxlm.models.score import lexicon_of
    from jaxlm.training.config import run_config

    cfg = run_config(trained.config)
    tokenizer, model = cfg.data.load_tokenizer(), cfg.model.build()
    symbols, arrow, separator = tokenizer.ids(SYMBOLS), *map(int, tokenizer.ids(ARROW + SEPARATOR))

    @jax.jit
    def best(params, batch):
      logits_BTV = model.apply(
        {"params": params}, batch["tokens"], **lexicon_of(cfg.model, batch, train=False)
      )
      return logits_BTV.argmax(-1)

    numbers, means = {}, {}
    for i, task in enumerate(SETTINGS if settings is None else settings):
      rng = np.random.default_rng([cfg.seed, i])
      prompts = task.draw(symbols, instances, rng, arrow=arrow, separator=separator)
      whole = np.concatenate([prompts.prompt, prompts.answer], axis=1)
      seeds = rng.integers(0, 2**32, (instances, 2), dtype=np.uint32)
      found = [
        np.asarray(
          best(
            trained.params,
            {"tokens": whole[a : a + rows, :-1], "sequence_seeds": seeds[a : a + rows]},
          )
        )
        for a in range(0, instances, rows)
      ]
      got = accuracy(np.concatenate(found)[:, -prompts.answer.shape[1] :], prompts.answer)
      kind = "lookup" if isinstance(task, LookUp) else "permutation"
      name = (
        f"lookup_{task.num_pairs}"
        if kind == "lookup"
        else f"permutation_{task.length}_{task.num_examples}"
      )
      for key, value in (("exact", got["exact_match"]), ("token", got["token_accuracy"])):
        numbers[f"{key}@{name}"] = 100 * value
        means.setdefault(f"{key}@{kind}", []).append(100 * value)
    numbers |= {key: float(np.mean(values)) for key, values in means.items()}
    return Measured(numbers, {}, {})

  return measure
