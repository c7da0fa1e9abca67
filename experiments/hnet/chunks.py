"""What a byte model's chunks are: how long, and whether they begin where words do.

Axes: B batch, T time.
"""

from collections.abc import Sequence

import numpy as np

from jaxlm.experiments.measures import perplexity_at
from jaxlm.experiments.table import Measured
from jaxlm.training import metrics


def _alphanumeric(t):
  return (
    ((t >= ord("0")) & (t <= ord("9")))
    | ((t >= ord("A")) & (t <= ord("Z")))
    | ((t >= ord("a")) & (t <= ord("z")))
  )


def word_starts(tokens_BT: np.ndarray) -> np.ndarray:
  """Bool, a word's first byte: an ASCII letter or digit, or a byte of a longer character, after
  something else.
  """
  t = np.asarray(tokens_BT)
  inside = _alphanumeric(t) | ((t >= 128) & (t < 254))
  return inside & ~np.pad(inside[:, :-1], ((0, 0), (1, 0)))


def space_starts(tokens_BT: np.ndarray) -> np.ndarray:
  """Bool, the byte after a word, where SpaceByte cuts: space-like (neither an ASCII letter or digit
  nor the continuation of a character) after what is not (`docs/specs/hnet.md` section 17; the
  router `space`)."""
  t = np.asarray(tokens_BT)
  like = ~(_alphanumeric(t) | ((t >= 0x80) & (t <= 0xBF)))
  return like & ~np.pad(like[:, :-1], ((0, 0), (1, 0)), constant_values=True)


def spaces_before_words(tokens_BT: np.ndarray) -> np.ndarray:
  """Bool, a blank (byte 0x20) directly before a word's first byte (`word_starts`) in the same row."""
  t = np.asarray(tokens_BT)
  return (t == 0x20) & np.pad(word_starts(t)[:, 1:], ((0, 0), (0, 1)))


def f1(found: np.ndarray, wanted: np.ndarray) -> float:
  """Harmonic mean of precision and recall of two bool masks."""
  hits = float((found & wanted).sum())
  return 2 * hits / max(float(found.sum() + wanted.sum()), 1.0)


def alignment(boundaries_BT: np.ndarray, tokens_BT: np.ndarray) -> dict[str, float]:
  """F1 of boundaries with the places at which a word may be said to start, each beside that of
  random cuts.

  at_spaces: `space_starts`, the rule of SpaceByte and H-Net (space): the byte *after* a word, so a
  comma, full stop or
    line break counts and the space behind it does not. A model that cuts before punctuation only is
    above chance.
  at_word_spaces: `spaces_before_words`, blanks before a first letter and nothing else. What the
  main network makes of
    the chunk that begins at byte t helps to predict byte t + 1 on, so a cut there serves the word's
    first letter.
  at_letters: `word_starts`, one byte (a space) later in running text, where that letter has already
  been paid for.
  *_chance: expected F1 of equally many cuts at random places, 2 r w / (r + w) at rates r of cuts
  and w of words. A row's first position, always a boundary, does not count.
  """
  b, out = np.asarray(boundaries_BT)[:, 1:], {}
  places = {
    "at_spaces": space_starts,
    "at_word_spaces": spaces_before_words,
    "at_letters": word_starts,
  }
  for name, wanted in ((name, place(tokens_BT)) for name, place in places.items()):
    w = wanted[:, 1:]
    rate, words = float(b.mean()), float(w.mean())
    out |= {name: f1(b, w), f"{name}_chance": 2 * rate * words / max(rate + words, 1e-9)}
  return out


def shifts(
  boundaries_BT: np.ndarray, tokens_BT: np.ndarray, offsets: Sequence[int] = range(-4, 5)
) -> dict[int, float]:
  """{offset: share of words with a boundary so many bytes after their first letter}. At random all
  equal the rate of boundaries. Words too near a row's end for one of the offsets are left out, as
  is the first position."""
  b, w = np.asarray(boundaries_BT), word_starts(tokens_BT)
  low, high = 1 - min(*offsets, 0), b.shape[1] - max(*offsets, 0)
  rows, at = np.nonzero(w[:, low:high])
  return {k: float(b[rows, at + low + k].mean()) for k in offsets}


def bits_and_chunks(*, num_rows: int = 256):
  """Measure: bits per byte, bytes per innermost chunk (per token, of a model on tokens), how the
  outermost boundaries meet words (`alignment`, `shifts`), how much the compression fluctuates
  (`fluctuation`), and the forward FLOPs per byte of the paper's formula at the measured
  compression."""

  def measure(trained, overrides_at) -> Measured:
    from jaxlm.data.tokenizers.bytes import ByteTokenizerConfig
    from jaxlm.models.hnet_rules import forward_flops
    from jaxlm.training.config import run_config

    found = perplexity_at((1,))(trained, overrides_at)
    numbers, cfg = {"bpb": found.numbers["bpb@1x"]}, run_config(trained.config)
    on_bytes = isinstance(cfg.data.tokenizer, ByteTokenizerConfig)
    bytes_per_token = 1.0 if on_bytes else found.numbers["loss@1x"] / np.log(2) / numbers["bpb"]
    if not on_bytes:
      numbers["bytes_per_chunk"] = bytes_per_token
    S, T, curves = cfg.model.num_chunkings, cfg.data.seq_len, _training_curves(trained.workdir)
    ratios = ()
    if "tokens_per_chunk" in curves:
      numbers["fluctuation"] = fluctuation(curves["tokens_per_chunk"])
    if S:
      rows, infos = stages_on_validation(cfg, trained.params, num_rows)
      ratios = tuple(float(info.valid_BT.sum() / info.boundary_BT.sum()) for info in infos)
      numbers |= {"bytes_per_chunk": float(np.prod(ratios))} | alignment(infos[0].boundary_BT, rows)
      curves["shifts"] = list(shifts(infos[0].boundary_BT, rows).values())
    numbers["mflop"] = forward_flops(cfg.model, T, ratios) / T / bytes_per_token / 1e6
    return Measured(numbers, found.notes, found.curves | curves)

  return measure


def fluctuation(curve: Sequence[float]) -> float:
  """Per cent: the standard deviation of the second half of a logged curve, relative to its mean."""
  half = np.asarray(curve[len(curve) // 2 :], np.float64)
  return float(100 * half.std() / half.mean())


def stages_on_validation(cfg, params, num_rows: int):
  """(bytes (B, T), StageInfo per chunking stage with NumPy arrays) of the first rows of the
  validation text.
  """
  import jax

  from jaxlm.data.text import evaluation_batches

  module, T = cfg.model.build(), cfg.data.seq_len
  apply = jax.jit(lambda params, *args: module.apply({"params": params}, *args, method="run").aux)
  tokens, found = [], []
  for batch in evaluation_batches(cfg.data, "validation", T, 16, num_tokens=num_rows * T):
    tokens.append(batch["tokens"])
    found.append(
      jax.device_get(apply(params, batch["tokens"], batch["segment_ids"], batch["positions"]))
    )
  return np.concatenate(tokens), jax.tree.map(lambda *parts: np.concatenate(parts), *found)


def _training_curves(workdir) -> dict[str, list[float]]:
  """Bits per byte and tokens per chunk at every logged step."""
  rows = [row for row in metrics.read(workdir) if "bits_per_byte" in row]
  curves = {"bits_per_byte": [row["bits_per_byte"] for row in rows]}
  if rows and "tokens_per_chunk_0" in rows[0]:
    curves["tokens_per_chunk"] = [row["tokens_per_chunk_0"] for row in rows]
  return curves
