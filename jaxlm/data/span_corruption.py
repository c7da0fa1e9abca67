"""Span corruption over bytes, as MrT5 does it: sentinels 258, 257, ... downward, which are bytes
that UTF-8 never uses.

Axes: N tokens of a chunk. docs/specs/mrt5.md, section 7.
"""

import numpy as np

from jaxlm.data.errors import DataError

FIRST_SENTINEL, END = 258, 1
#: Ids of bytes 0xF5 .. 0xFF; with more spans sentinels are other texts' bytes.
UNAMBIGUOUS = 11


def lengths(inputs_length: int, noise_density: float, mean_span: float) -> tuple[int, int]:
  """(N, target length): the most tokens whose corrupted inputs fit inputs_length, sentinels and end
  included.
  """

  def parts(tokens: int):
    noise = int(round(tokens * noise_density))
    spans = int(round(noise / mean_span))
    return tokens - noise + spans + 1, noise + spans + 1

  if parts(inputs_length)[0] > inputs_length:
    raise DataError(
      f"inputs_length = {inputs_length} does not hold its own corruption; use a longer one or fewer spans"
    )
  tokens = inputs_length
  while parts(tokens + 1)[0] <= inputs_length:
    tokens += 1
  targets = parts(tokens)[1]
  if noise_density == 0.5 and targets > inputs_length:
    tokens, targets = tokens - 1, targets - 1
  return tokens, targets


def noise_mask(
  length: int, noise_density: float, mean_span: float, rng: np.random.Generator
) -> np.ndarray:
  """Bool (length,): random spans, beginning with what is kept and ending with noise."""
  noise = min(max(int(np.round(length * noise_density)), 1), length - 1)
  spans = max(int(np.round(min(noise, length - noise) / mean_span)), 1)

  def segmentation(items: int) -> np.ndarray:
    starts = (np.arange(items - 1) < spans - 1).astype(int)
    rng.shuffle(starts)
    return np.bincount(np.cumsum(np.pad(starts, (1, 0))), minlength=spans)

  noise_spans = segmentation(noise)
  kept_spans = segmentation(length - noise)
  sizes = np.stack([kept_spans, noise_spans], axis=1).reshape(-1)
  return np.repeat(np.arange(2 * spans) % 2 == 1, sizes)


def replace_spans(tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """Tokens with each run of the mask replaced by one sentinel, descending, then the end."""
  starts = mask & ~np.pad(mask[:-1], (1, 0))
  sentinels = FIRST_SENTINEL + 1 - np.cumsum(starts)
  return np.append(np.where(starts, sentinels, tokens)[starts | ~mask], END).astype(np.int32)


def corrupt(tokens: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(inputs, labels): noise replaced by sentinels, and the rest replaced by the same."""
  mask = np.asarray(mask, bool)
  return replace_spans(tokens, mask), replace_spans(tokens, ~mask)


def shift_right(labels: np.ndarray) -> np.ndarray:
  """Decoder inputs: the start id 0, then labels but the last; ignored labels become 0."""
  return np.concatenate([np.zeros_like(labels[..., :1]), np.maximum(labels[..., :-1], 0)], axis=-1)


def check_spans(inputs_length: int, noise_density: float, mean_span: float) -> None:
  """Refuses settings whose sentinels collide with real bytes."""
  tokens, _ = lengths(inputs_length, noise_density, mean_span)
  noise = int(round(tokens * noise_density))
  spans = max(1, int(round(min(noise, tokens - noise) / mean_span)))
  if spans > UNAMBIGUOUS:
    raise DataError(
      f"{spans} spans at inputs_length = {inputs_length}: only {UNAMBIGUOUS} bytes never occur in UTF-8, so "
      "sentinels would be read as text; use a longer mean_span, a lower density or shorter inputs"
    )
