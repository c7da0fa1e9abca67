"""Rows for models that insert: CLS question BOS answer, with a random subset of the answer taken
out.

Axes: T position, M missing tokens. docs/specs/ilm.md, sections 2.1, 5 and 6.3.
"""

import dataclasses

import numpy as np

from jaxlm.data.forms.corruption import blocked_except_gaps, compact, drop
from jaxlm.data.forms.layout import TARGET, Layout, filled


@dataclasses.dataclass(frozen=True)
class InsertionForm(Layout):
  """Fields of a whole row: tokens, types (T,); length, loss_weights, target_bytes (1,). Of a
  corrupted one: tokens, segment_ids, positions (T,); slots, missing (M,); num_missing, loss_weights,
  target_bytes (1,). ends_in_empty_slots: the end token is missing where nothing else is, the
  Insertion Transformer's target.
  """

  ends_in_empty_slots: bool = False

  begins_with_cls = True
  corrupts = True

  def row(self, tokens, types, *, seq_len, pad, num_bytes=None, pad_left=False):
    return dict(
      tokens=filled(tokens, seq_len, pad),
      types=filled(types, seq_len, TARGET),
      length=np.asarray([len(tokens)], np.int32),
      loss_weights=np.ones(1, np.float32),
      target_bytes=np.ones(1, np.int32),
    )

  def corrupted(self, row, rng, *, seq_len, longest_answer, ids, constraint=False) -> dict:
    """As `corrupted`. longest_answer: tokens of the longest answer of these data."""
    return corrupted(
      row,
      rng,
      seq_len=seq_len,
      num_missing=seq_len if self.ends_in_empty_slots else longest_answer,
      pad=ids.pad,
      eos=ids.eos if self.ends_in_empty_slots else None,
      constraint=constraint,
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
