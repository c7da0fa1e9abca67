"""Corruption for insertion models, on the host: drop a random subset, keep the rest, list what is
missing where.

Axes: T position of the whole sequence or of the survivors, M missing tokens. docs/specs/ilm.md,
section 2.1.

Token types: 0 CLS; 1 what is given (prompt, BOS); 2 what may be dropped. A missing token's slot is
the number of the survivor nearest on its left; the order of the missing tokens within the list
means nothing to the loss.
"""

from typing import NamedTuple

import numpy as np

from jaxlm.data.errors import DataError
from jaxlm.data.forms.layout import GIVEN, TARGET


class Missing(NamedTuple):
  """tokens (T,), length: survivors in front, pad behind; slots, missing (M,), number: of the
  dropped tokens.
  """

  tokens: np.ndarray
  length: int
  slots: np.ndarray
  missing: np.ndarray
  number: int


def drop(types: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Bool (T,): n ~ U{0..m} of the m tokens of type 2, each subset of size n equally likely."""
  candidates = np.flatnonzero(types == TARGET)
  n = int(rng.integers(0, len(candidates) + 1))
  out = np.zeros(len(types), bool)
  out[rng.permutation(candidates)[:n]] = True
  return out


def compact(
  tokens: np.ndarray,
  dropped: np.ndarray,
  *,
  seq_len: int,
  num_missing: int,
  pad: int,
  eos: int | None = None,
) -> Missing:
  """Survivors of one sequence without padding, in seq_len places, and what was dropped, in
  num_missing places.

  eos: also lists EOS for every slot (not the first token's) from which nothing is missing, the
  Insertion Transformer's target; a last token at the block's very end gets none, as in the release.
  """
  if len(tokens) > seq_len:
    raise DataError(
      f"a sequence of {len(tokens)} tokens does not fit data.seq_len = {seq_len}; raise it"
    )
  if dropped[0]:
    raise DataError("the first token was dropped: it has no survivor on its left and so no slot")
  kept = ~dropped
  slot_of = np.cumsum(kept) - 1
  slots, missing = slot_of[dropped], tokens[dropped]
  if eos is not None:
    counts = np.bincount(slots, minlength=kept.sum())
    empty = [s for s in range(1, int(kept.sum())) if counts[s] == 0]
    if len(tokens) == seq_len and kept[-1] and empty:
      empty = empty[:-1]  # the survivor at the block's end, necessarily empty
    slots, missing = (
      np.concatenate([slots, empty]),
      np.concatenate([missing, np.full(len(empty), eos)]),
    )

  def fill(x, size, value):
    return np.concatenate([x, np.full(size - len(x), value)]).astype(np.int32)

  if len(slots) > num_missing:
    raise DataError(f"{len(slots)} targets do not fit {num_missing} places")
  return Missing(
    fill(tokens[kept], seq_len, pad),
    int(kept.sum()),
    fill(slots, num_missing, 0),
    fill(missing, num_missing, 0),
    len(slots),
  )


def reinsert(compacted: Missing) -> np.ndarray:
  """The whole sequence again, from survivors and their missing tokens in list order: the inverse of
  `compact`.
  """
  out = []
  for s, token in enumerate(compacted.tokens[: compacted.length]):
    out += [token, *compacted.missing[: compacted.number][compacted.slots[: compacted.number] == s]]
  return np.asarray(out, np.int32)


def blocked_prefix(types: np.ndarray) -> np.ndarray:
  """Bool (T,): slots of CLS and of the prompt, all but the last given token's (BOS): type <= 1 one
  place to the left.
  """
  given = types <= GIVEN
  return np.append(given[1:], False)


def blocked_except_gaps(dropped: np.ndarray) -> np.ndarray:
  """Bool (T,): slot t is open iff the token right after t was removed (infilling); CLS's never is."""
  open_ = np.append(dropped[1:], False)
  open_[0] = False
  return ~open_
