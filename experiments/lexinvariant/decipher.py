"""Measure: how much of a cipher a frozen character model's states give away."""

from collections.abc import Callable

import numpy as np

from jaxlm.experiments.table import Measured, Trained

CIPHERS = ("full", "partial")


def deciphered(
  *, steps: Callable[[dict], int] | None = None, split: str = "validation"
) -> Callable:
  """Trains a token and a key probe per cipher on the train split, and counts on `split`, as
  percentages.

  numbers, for c in full (every character moves) and partial (letters do): token@c over all
  positions, token_last@c over the last quarter; key@c and weighted@c, of the symbols seen in the
  whole window; common@c, what the commonest symbol would give. curves: token@c by position. steps:
  of probe training, from the resolved configuration; default 10,000.
  """

  def measure(trained: Trained, overrides_at) -> Measured:
    from jaxlm.evaluation.probes import Probing, ciphered, probe_accuracy, train_probes
    from jaxlm.training.config import run_config

    cfg = run_config(trained.config)
    characters = cfg.data.load_tokenizer().characters
    T, V = cfg.data.seq_len, cfg.model.vocab_size
    num_batches = max(1, (cfg.eval.num_tokens or 2**16) // (T * cfg.data.batch_size))
    numbers, curves = {}, {}
    for c in CIPHERS:
      probing = Probing(
        partial=c == "partial", **({} if steps is None else {"steps": steps(trained.config)})
      )
      rng = np.random.default_rng([cfg.seed, CIPHERS.index(c)])

      def texts(split, repeat):
        return ciphered(
          cfg.data.build(split, seed=(cfg.seed + 1) % 2**32, repeat=repeat),
          characters,
          V,
          rng,
          probing.partial,
        )

      probes = train_probes(
        cfg.model, trained.params, texts("train", True), probing, rng, seed=cfg.seed
      )
      held_out = (batch for batch, _ in zip(texts(split, False), range(num_batches)))
      found = probe_accuracy(cfg.model, trained.params, probes, held_out, (T - 1,))
      token_T = 100 * found["token_T"]
      numbers |= {
        f"token@{c}": token_T.mean(),
        f"token_last@{c}": token_T[-(T // 4) :].mean(),
        f"key@{c}": 100 * found["key_M"][0],
        f"weighted@{c}": 100 * found["weighted_M"][0],
        f"common@{c}": 100 * found["common"],
      }
      curves[f"token@{c}"] = [round(float(x), 3) for x in token_T]
    return Measured({k: float(v) for k, v in numbers.items()}, {}, curves)

  return measure
