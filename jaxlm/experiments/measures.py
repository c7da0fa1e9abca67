"""What is measured on a trained row. A measure is made here and named in a table."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from jaxlm.experiments.table import Measured, Trained


def perplexity_at(
  multiples: Sequence[int] = (1, 2, 4), *, split: str = "validation", curve_points: int = 512
) -> Callable:
  """Perplexity at multiples of the training length, over the same text (`eval.num_tokens` of the
  split, None: all).

  numbers, for each multiple m: ppl@mx, loss@mx (nats per token), bpb@mx (bits per byte) and, beyond
  the training length L, tail@mx: perplexity of the positions from L on alone. curves: loss@mx, nats
  per token by position, mean over bins where there are more than `curve_points`. A length that the
  model refuses becomes a note.
  """

  def measure(trained: Trained, overrides_at) -> Measured:
    from jaxlm.evaluation.perplexity import evaluate_lengths
    from jaxlm.experiments.runner import override
    from jaxlm.training.config import run_config

    numbers, notes, curves = {}, {}, {}
    train_len = trained.config["data"]["seq_len"]
    longest = train_len * max(multiples)
    num_tokens = trained.config["eval"]["num_tokens"]
    num_tokens = None if num_tokens is None else max(num_tokens // longest, 1) * longest
    for m in multiples:
      cfg = run_config(override(trained.config, overrides_at(m)))
      [e] = evaluate_lengths(
        cfg.model, trained.params, cfg.data, [train_len * m], split=split, num_tokens=num_tokens
      )
      if e.note:
        notes |= {f"{key}@{m}x": e.note for key in ("ppl", "loss", "bpb", "tail")}
        continue
      numbers |= {f"ppl@{m}x": e.perplexity, f"loss@{m}x": e.loss}
      if e.target_bytes:
        numbers[f"bpb@{m}x"] = e.bits_per_byte
      if m > 1:
        numbers[f"tail@{m}x"] = float(np.exp(e.loss_between(train_len, train_len * m)))
      curves[f"loss@{m}x"] = _bins(e.nll_T, e.weight_T, curve_points)
    return Measured(numbers, notes, curves)

  return measure


def loss_in(
  parts: Mapping[str, tuple[float, float]], *, split: str = "validation", curve_points: int = 512
) -> Callable:
  """Perplexity over parts of the training window: name -> (from, to), fractions of it.
  `eval.num_tokens` of the split.

  numbers: ppl and loss of the whole, ppl@name, loss@name of each part. curves: loss, nats per token
  by position.
  """

  def measure(trained: Trained, overrides_at) -> Measured:
    from jaxlm.evaluation.perplexity import evaluate_lengths
    from jaxlm.experiments.runner import override
    from jaxlm.training.config import run_config

    cfg = run_config(override(trained.config, overrides_at(1)))
    T = cfg.data.seq_len
    [e] = evaluate_lengths(
      cfg.model,
      trained.params,
      cfg.data,
      [T],
      split=split,
      num_tokens=cfg.eval.num_tokens,
      num_tables=cfg.eval.num_tables,
    )
    numbers = {"loss": e.loss, "ppl": e.perplexity}
    for name, (start, stop) in parts.items():
      numbers[f"loss@{name}"] = e.loss_between(round(start * T), round(stop * T))
      numbers[f"ppl@{name}"] = float(np.exp(numbers[f"loss@{name}"]))
    return Measured(numbers, {}, {"loss": _bins(e.nll_T, e.weight_T, curve_points)})

  return measure


def all_of(*measures: Callable) -> Callable:
  """One measure that says what all of them say; a key that two have must be the same thing."""

  def measure(trained: Trained, overrides_at) -> Measured:
    found = [one(trained, overrides_at) for one in measures]
    return Measured(*({k: v for each in found for k, v in each[part].items()} for part in range(3)))

  return measure


def _bins(nll_T, weight_T, points: int) -> list[float]:
  """Mean loss of each of at most `points` runs of positions."""
  width = -(-len(nll_T) // points)
  starts = np.arange(0, len(nll_T), width)
  mean = np.add.reduceat(nll_T, starts) / np.maximum(np.add.reduceat(weight_T, starts), 1e-9)
  return [round(float(x), 5) for x in mean]
