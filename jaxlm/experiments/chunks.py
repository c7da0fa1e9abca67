"""What a byte model's chunks are: how long, and whether they begin where words do.

Axes: B batch, T time.
"""

import numpy as np

from jaxlm.experiments.measures import perplexity_at
from jaxlm.experiments.table import Measured


def word_starts(tokens_BT: np.ndarray) -> np.ndarray:
  """Bool: an ASCII letter or digit, or a byte of a longer character, after something that is neither."""
  t = np.asarray(tokens_BT)
  inside = ((t >= 48) & (t <= 57)) | ((t >= 65) & (t <= 90)) | ((t >= 97) & (t <= 122)) | ((t >= 128) & (t < 254))
  return inside & ~np.pad(inside[:, :-1], ((0, 0), (1, 0)))


def f1(found: np.ndarray, wanted: np.ndarray) -> float:
  """Harmonic mean of precision and recall of two bool masks."""
  hits = float((found & wanted).sum())
  return 2 * hits / max(float(found.sum() + wanted.sum()), 1.0)


def alignment(boundaries_BT: np.ndarray, starts_BT: np.ndarray) -> dict[str, float]:
  """How well boundaries and word starts agree, the first position of a row apart (it is always a boundary).

  A cut right before a word's first letter and one before the space that precedes it are both habits of a good
  router; `f1` is that of the better one. `chance` is that of cuts at random with the same rate, 2 r w / (r + w).
  """
  b, w = np.asarray(boundaries_BT)[:, 1:], np.asarray(starts_BT)[:, 1:]
  before = np.pad(w[:, 1:], ((0, 0), (0, 1)))
  rate, words = float(b.mean()), float(w.mean())
  return {"f1": max(f1(b, w), f1(b, before)), "chance": 2 * rate * words / max(rate + words, 1e-9)}


def bits_and_chunks(*, num_rows: int = 64):
  """Measure: bits per byte, bytes per innermost chunk (per token, of a model on tokens), F1 of the outermost boundaries
  against word starts, chance, and the forward FLOPs per byte of the paper's formula at the measured compression."""

  def measure(trained, overrides_at) -> Measured:
    import jax

    from jaxlm.data.text import evaluation_batches
    from jaxlm.data.tokenizers.bytes import ByteTokenizerConfig
    from jaxlm.models.hnet_rules import forward_flops
    from jaxlm.training.config import run_config

    found = perplexity_at((1,))(trained, overrides_at)
    numbers, cfg = {"bpb": found.numbers["bpb@1x"]}, run_config(trained.config)
    on_bytes = isinstance(cfg.data.tokenizer, ByteTokenizerConfig)
    bytes_per_token = 1.0 if on_bytes else found.numbers["loss@1x"] / np.log(2) / numbers["bpb"]
    if not on_bytes:
      numbers["bytes_per_chunk"] = bytes_per_token
    S, T = cfg.model.num_chunkings, cfg.data.seq_len
    ratios = ()
    if S:
      module = cfg.model.build()
      apply = jax.jit(lambda *args: module.apply({"params": trained.params}, *args, method="with_stages")[1])
      boundaries, words, tokens, chunks = [], [], np.zeros(S), np.zeros(S)
      for batch in evaluation_batches(cfg.data, "validation", T, 16, num_tokens=num_rows * T):
        infos = jax.device_get(apply(batch["tokens"], batch["segment_ids"], batch["positions"]))
        boundaries.append(infos[0].boundary_BT)
        words.append(word_starts(batch["tokens"]))
        tokens += [info.valid_BT.sum() for info in infos]
        chunks += [info.boundary_BT.sum() for info in infos]
      ratios = tuple(tokens / chunks)
      numbers |= {"bytes_per_chunk": float(np.prod(ratios))}
      numbers |= alignment(np.concatenate(boundaries), np.concatenate(words))
    numbers["mflop"] = forward_flops(cfg.model, T, ratios) / T / bytes_per_token / 1e6
    return Measured(numbers, found.notes, found.curves | _training_curves(trained.workdir))

  return measure


def _training_curves(workdir) -> dict[str, list[float]]:
  """Bits per byte and tokens per chunk at every logged step."""
  import json
  import pathlib
  rows = [json.loads(line) for line in (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()]
  rows = [row for row in rows if "bits_per_byte" in row]
  curves = {"bits_per_byte": [row["bits_per_byte"] for row in rows]}
  if rows and "tokens_per_chunk_0" in rows[0]:
    curves["tokens_per_chunk"] = [row["tokens_per_chunk_0"] for row in rows]
  return curves
