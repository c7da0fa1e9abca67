"""What a form has to say. Axes: T position."""

import dataclasses

import numpy as np

#: Types of tokens: CLS; what is given (question, BOS); what is to be found.
CLS_TYPE, GIVEN, TARGET = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class Layout:
  """Base of forms. begins_with_cls, ends_with_eos: what stands around `question BOS answer`.
  rows_per_group: rows that a problem becomes. corrupts: whether rows are whole and still to be
  corrupted, anew in every epoch.
  """

  begins_with_cls = False
  ends_with_eos = False
  rows_per_group = 1
  corrupts = False

  def frame(self, question, answer, ids) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, types), int32 (T,), without padding. ids: SpecialTokens."""
    first = [ids.cls] if self.begins_with_cls else []
    last = [ids.eos] if self.ends_with_eos else []
    tokens = np.asarray([*first, *question, ids.bos, *answer, *last], np.int32)
    types = (
      [CLS_TYPE] * len(first) + [GIVEN] * (len(question) + 1) + [TARGET] * (len(answer) + len(last))
    )
    return tokens, np.asarray(types, np.int32)

  def prompt(self, question, ids) -> np.ndarray:
    """What stands in front of the answer."""
    return self.frame(question, [], ids)[0][: -1 if self.ends_with_eos else None]

  def length(self, question: int, answer: int) -> int:
    """Places of a row. Where the end is only a target it takes none."""
    return question + 1 + answer + self.begins_with_cls

  def row(self, tokens, types, *, seq_len: int, pad: int, num_bytes=None, pad_left=False) -> dict:
    """The fields of one row of `seq_len` places, each a NumPy array. Arguments as of
    `jaxlm.data.forms.row`.
    """
    raise NotImplementedError(f"{type(self).__name__} makes no rows")


def filled(x, seq_len: int, value) -> np.ndarray:
  """int32 (seq_len,): x, then `value`."""
  return np.concatenate([x, np.full(seq_len - len(x), value)]).astype(np.int32)
