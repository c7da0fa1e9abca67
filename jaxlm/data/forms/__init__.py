"""One sequence as each kind of model reads it, one file per form.

  insertion, insertion_transformer   CLS question BOS answer, corrupted anew in every epoch
  causal                             question BOS answer EOS
  masked_diffusion                   question BOS answer, padded with tokens that are predicted too
  answer_pairs                       two causal rows, the better answer and a worse one
  encoder_decoder                    question to the encoder, answer to the decoder

Axes: T position, M missing tokens. docs/specs/ilm.md, sections 2.1, 6 and 7.1.
"""

from typing import Literal

import numpy as np

from jaxlm.config import ConfigError
from jaxlm.data.forms.answer_pairs import AnswerPairs
from jaxlm.data.forms.causal import Causal
from jaxlm.data.forms.insertion import InsertionForm, corrupted
from jaxlm.data.forms.layout import Layout
from jaxlm.data.forms.masked_diffusion import Masked

#: Forms of one sequence, with an answer or without.
Form = Literal["insertion", "insertion_transformer", "causal", "masked_diffusion"]
#: Forms of a problem, which has an answer.
TaskForm = Literal[
  "insertion", "insertion_transformer", "causal", "masked_diffusion", "answer_pairs"
]

LAYOUTS: dict[str, Layout] = {
  "insertion": InsertionForm(),
  "insertion_transformer": InsertionForm(ends_in_empty_slots=True),
  "causal": Causal(),
  "masked_diffusion": Masked(),
  "answer_pairs": AnswerPairs(),
}


def framed(question, answer, ids, form: str) -> tuple[np.ndarray, np.ndarray]:
  """(tokens, types) without padding; types: 0 CLS, 1 given, 2 to be found. ids: SpecialTokens."""
  return LAYOUTS[form].frame(question, answer, ids)


def prompt(question, ids, form: str) -> np.ndarray:
  """What stands in front of the answer."""
  return LAYOUTS[form].prompt(question, ids)


def framed_length(question: int, answer: int, form: str) -> int:
  """Places that a row of this form needs. A causal row holds one token less than its sequence: the
  last is a target only.
  """
  return LAYOUTS[form].length(question, answer)


def row(
  tokens: np.ndarray,
  types: np.ndarray,
  *,
  form: str,
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
  return LAYOUTS[form].row(
    tokens, types, seq_len=seq_len, pad=pad, num_bytes=num_bytes, pad_left=pad_left
  )


def check_constraint(constraint: bool, form: str) -> None:
  if constraint and form != "insertion":
    raise ConfigError(
      f"data.constraint = True with data.form = {form!r}: only objective 'insertion' reads which slots are "
      f"closed; set data.constraint = False"
    )


__all__ = [
  "LAYOUTS",
  "Form",
  "Layout",
  "TaskForm",
  "check_constraint",
  "corrupted",
  "framed",
  "framed_length",
  "prompt",
  "row",
]
