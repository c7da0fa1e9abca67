"""Pairs of answers to one question, for objectives that compare them: rows 2i and 2i + 1 are the
better and the worse answer, each laid out as `causal`.
"""

from jaxlm.data.forms.causal import Causal


class AnswerPairs(Causal):
  """Fields of a row as of `causal`; the two rows of a pair are never parted."""

  rows_per_group = 2
