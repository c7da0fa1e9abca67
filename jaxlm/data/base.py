"""What every data config declares, so that a pair of data and objective can be refused before
anything is read.
"""

import dataclasses
from typing import ClassVar

from jaxlm.config import ConfigError
from jaxlm.data.special_tokens import SpecialTokens

#: Form of a batch -> the fields that its objectives read (`jaxlm.data.forms`, a file each, for those
#: that are made of a sequence or of a problem with its answer).
BATCH_FORMS = {
  "causal": "tokens, targets, segment_ids, positions, loss_weights (B, T)",
  "insertion": "tokens, slots, missing, num_missing, segment_ids, positions, loss_weights (B, 1)",
  "insertion_transformer": "as insertion, with the end token missing in empty slots",
  "masked_diffusion": "tokens, maskable, segment_ids, positions, loss_weights (B, 1)",
  "answer_pairs": "as causal; rows 2i and 2i + 1 are a better and a worse answer to one question",
  "encoder_decoder": "tokens, decoder_tokens, targets, loss_weights (B, T of the target)",
  "views": "{input,target}_{images,intrinsics,poses}, loss_weights (B, S)",
}


class DataConfig:
  """Base of data configs (frozen dataclasses).

  batch_form: a key of BATCH_FORMS. Data that can be made in several forms have a field `form`, and
  it is that. rows_per_group: neighbouring rows of a batch that belong together (pairs, candidate
  sets); hosts and micro-batches get whole groups.
  """

  batch_form: ClassVar[str] = "causal"
  rows_per_group = 1
  #: {name: (shape, dtype)} of a global batch, so that preflight needs no data; None: a batch is
  #: built to see it.
  batch_fields = None
  #: Whether rows say where nothing may be inserted (`blocked`).
  constraint = False

  @property
  def special_tokens(self) -> SpecialTokens:
    """Ids of the tokens that stand for no text. ConfigError where the tokenizer's file is not here."""
    return SpecialTokens()

  @property
  def has_text(self) -> bool:
    """Whether rows are text, so that `load_tokenizer` reads a prompt and writes an answer."""
    return type(self).load_tokenizer is not DataConfig.load_tokenizer

  def load_tokenizer(self):
    """The tokenizer of the rows. ConfigError for data that are no text."""
    from jaxlm.data import DATA

    raise ConfigError(
      f"this run was trained on data of kind {DATA.kind_of(self)!r}: rows of token numbers, which are no text, so that no "
      f"prompt can be read; `jaxlm eval` measures the run"
    )

  def resized(self, seq_len: int, batch_size: int) -> "DataConfig":
    """The same data in rows of another length."""
    return dataclasses.replace(self, seq_len=seq_len, batch_size=batch_size)

  def check(self, cfg) -> None:
    """Raises ConfigError for what does not fit the other sections of `cfg` (a RunConfig)."""


class FramedDataConfig(DataConfig):
  """Base of data whose field `form` says how a sequence is laid out (`jaxlm.data.forms`)."""

  @property
  def batch_form(self) -> str:
    return self.form
