"""Noise on text, after the protocol of the Byte Latent Transformer: what a byte model should shrug
off.
"""

import random
from collections.abc import Callable


def ant_speak(text: str, rng: random.Random) -> str:
  """A L L  C A P I T A L S,  S P A C E D."""
  return " ".join(text.upper())


def drop(text: str, rng: random.Random) -> str:
  """One character in ten is missing."""
  return "".join(c for c in text if rng.random() >= 0.1)


def random_case(text: str, rng: random.Random) -> str:
  """EVeRy cHaRaCTer iS eITheR."""
  return "".join(c.upper() if rng.random() < 0.5 else c.lower() for c in text)


def repeat(text: str, rng: random.Random) -> str:
  """One character in five stands up to four times more."""
  return "".join(c * (1 + rng.randint(1, 4)) if rng.random() < 0.2 else c for c in text)


def upper_case(text: str, rng: random.Random) -> str:
  """ALL CAPITALS."""
  return text.upper()


PERTURBATIONS: dict[str, Callable[[str, random.Random], str]] = {
  "AntSpeak": ant_speak,
  "Drop": drop,
  "RandomCase": random_case,
  "Repeat": repeat,
  "UpperCase": upper_case,
}


def bits_under_noise(*, num_chars: int = 16_384):
  """Measure: bits per byte of the validation text clean and under each perturbation, each in
  windows of the training length; `mean`: over the perturbations; `loss`: mean minus clean, in bits
  per byte."""

  def measure(trained, overrides_at):
    import jax
    import numpy as np

    from jaxlm.data.sources import open_corpus
    from jaxlm.experiments.table import Measured
    from jaxlm.training.config import run_config

    cfg = run_config(trained.config)
    tokenizer, module, T = cfg.data.load_tokenizer(), cfg.model.build(), cfg.data.seq_len
    documents = open_corpus(cfg.data.source).documents("validation")
    text = b"\n".join(documents).decode("utf-8", "ignore")[:num_chars]
    score = jax.jit(
      lambda x, y: module.apply({"params": trained.params}, x, y, method="score").log_prob_BT
    )

    def bits_per_byte(noisy: str) -> float:
      [(ids, num_bytes)] = tokenizer.encode_counted([noisy])
      ids = np.asarray(ids, np.int32)
      rows = len(ids) // (T + 1)
      rows_BT = ids[: rows * (T + 1)].reshape(rows, T + 1)
      log_prob = np.asarray(score(rows_BT[:, :-1], rows_BT[:, 1:]))
      scored = num_bytes[: rows * (T + 1)].reshape(rows, T + 1)[:, 1:].sum()
      return float(-log_prob.sum() / np.log(2) / scored)

    numbers = {"clean": bits_per_byte(text)}
    numbers |= {
      name: bits_per_byte(noise(text, random.Random(0))) for name, noise in PERTURBATIONS.items()
    }
    numbers["mean"] = float(np.mean([numbers[name] for name in PERTURBATIONS]))
    numbers["loss"] = numbers["mean"] - numbers["clean"]
    return Measured(numbers, {}, {})

  return measure
