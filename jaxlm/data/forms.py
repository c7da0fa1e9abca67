"""One sequence as each kind of model reads it: by insertion, from left to right, or by masked
diffusion.

Axes: T position, M missing tokens. docs/specs/ilm.md, sections 2.1, 6 and 7.1.

  insertion, insertion_transformer   CLS question BOS answer, corrupted anew in every epoch
  causal                             question BOS answer EOS
  masked_diffusion                   question BOS answer, padded with tokens that are predicted too
"""

from typing import Literal

import numpy as np

from jaxlm.config import ConfigError
from jaxlm.data.insertion import CLS_TYPE, GIVEN, TARGET, blocked_except_gaps, compact, drop

Form = Literal["insertion", "insertion_transformer", "causal", "masked_diffusion"]


def framed(question, answer, ids, form: Form) -> tuple[np.ndarray, np.ndarray]:
  """(tokens, types) without padding; types: 0 CLS, 1 given, 2 to be found. ids: has `cls`, `bos`
  and `eos`.
  """
  first = [ids.cls] if form.startswith("insertion") else []
  last = [ids.eos] if form == "causal" else []
  tokens = np.asarray([*first, *question, ids.bos, *answer, *last], np.int32)
  types = (
    [CLS_TYPE] * len(first) + [GIVEN] * (len(question) + 1) + [TARGET] * (len(answer) + len(last))
  )
  return tokens, np.asarray(types, np.int32)


def prompt(question, ids, form: Form) -> np.ndarray:
  """What stands in front of the answer."""
  return framed(question, [], ids, form)[0][: -1 if form == "causal" else None]


def framed_length(question: int, answer: int, form: Form) -> int:
  """Places that a row of this form needs. A causal row holds one token less than its sequence: the
  last is a target only.
  """
  return question + 1 + answer + (form.startswith("insertion"))


def row(
  tokens: np.ndarray,
  types: np.ndarray,
  *,
  form: Form,
  seq_len: int,
  pad: int,
  num_bytes=None,
  pad_left: bool = False,
) -> dict[str, np.ndarray]:
  """The fields of one row of `seq_len` places; insertion forms are whole and still to be
  `corrupted`.

  num_bytes: bytes of text that each token stands for; None: tokens are no text. pad_left: causal
  rows are padded in front, as the release trains star graphs.
  """
  T, n, weight = seq_len, len(tokens), np.ones(1, np.float32)

  def fill(x, value):
    return np.concatenate([x, np.full(T - len(x), value)]).astype(np.int32)

  if form.startswith("insertion"):
    return dict(
      tokens=fill(tokens, pad),
      types=fill(types, TARGET),
      length=np.asarray([n], np.int32),
      loss_weights=weight,
      target_bytes=np.ones(1, np.int32),
    )
  if form == "masked_diffusion":
    return dict(
      tokens=fill(tokens, pad),
      segment_ids=fill(np.ones(n), 0),
      positions=np.arange(T, dtype=np.int32),
      maskable=fill(types == TARGET, 1),
      loss_weights=weight,
      target_bytes=np.ones(1, np.int32),
    )
  short = T + 1 - n

  def wide(x, value):
    return np.pad(x, (short, 0) if pad_left else (0, short), constant_values=value)

  num_bytes = None if num_bytes is None else wide(np.asarray(num_bytes), 0)
  tokens, types, inside = wide(tokens, pad), wide(types, GIVEN), wide(np.ones(n, np.int32), 0)
  # A padded place in front stands at position 0, one behind at the last token's: nothing looks at
  # either.
  positions = np.maximum(np.cumsum(inside)[:-1] - 1, 0)
  counted = (types[1:] == TARGET) & (inside[1:] > 0)
  return dict(
    tokens=tokens[:-1].astype(np.int32),
    targets=tokens[1:].astype(np.int32),
    segment_ids=inside[:-1].astype(np.int32),
    positions=positions.astype(np.int32),
    loss_weights=counted.astype(np.float32),
    target_bytes=np.zeros(T, np.int32)
    if num_bytes is None
    else (num_bytes[1:] * counted).astype(np.int32),
  )


def check_constraint(constraint: bool, form: Form) -> None:
  if constraint and form != "insertion":
    raise ConfigError(
      f"data.constraint = True with data.form = {form!r}: only objective 'insertion' reads which slots are "
      f"closed; set data.constraint = False"
    )


def corrupted(
  row: dict,
  rng: np.random.Generator,
  *,
  seq_len: int,
  num_missing: int,
  pad: int,
  eos: int | None = None,
  constraint: bool = False,
) -> dict[str, np.ndarray]:
  """An insertion row with a random subset of what may be dropped taken out. eos: as in `compact`.

  constraint: adds `blocked` (T,), 1 where nothing is missing right of a survivor, at CLS and on
  padding (spec 2.2 and 5).
  """
  row = dict(row)
  length, tokens, types = int(row.pop("length")[0]), row.pop("tokens"), row.pop("types")
  tokens, types = tokens[:length], types[:length]
  dropped = drop(types, rng)
  out = compact(tokens, dropped, seq_len=seq_len, num_missing=num_missing, pad=pad, eos=eos)
  index = np.arange(seq_len, dtype=np.int32)
  if constraint:
    blocked = np.ones(seq_len, np.int32)
    blocked[: out.length] = blocked_except_gaps(dropped)[~dropped]
    # The release would pay 3e38 for a target that its own softmax leaves out.
    assert not blocked[out.slots[: out.number]].any(), "a missing token's slot is closed"
    row["blocked"] = blocked
  return row | dict(
    tokens=out.tokens,
    segment_ids=(index < out.length).astype(np.int32),
    positions=np.minimum(index, out.length - 1),
    slots=out.slots,
    missing=out.missing,
    num_missing=np.asarray([out.number], np.int32),
  )
