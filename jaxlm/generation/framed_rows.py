"""Finished rows of models whose sequences hold pad, mask and end tokens."""

import numpy as np

from jaxlm.generation.base import Prompt, Row


def framed_row(tokens, prompt: Prompt, ids, *, begin: int) -> Row:
  """The row without pad and mask; an answer that begins behind the prompt is cut at its end token.

  tokens: int (T,), the prompt and what came of it. ids: SpecialTokens. begin: where the
  answer begins, 0 where new tokens stand between those of the prompt: the end token is then left
  out wherever it stands.
  """
  tokens = np.asarray(tokens, np.int32)
  given, answer = tokens[:begin], tokens[begin:]
  ends = np.flatnonzero(answer == ids.eos)
  answer = answer[: ends[0]] if begin and len(ends) else answer
  answer = answer[~np.isin(answer, [ids.pad, ids.mask, ids.eos])]
  sequence = np.concatenate([given, answer])
  kept = int(np.sum(np.asarray(prompt.tokens) != ids.mask))
  return Row(sequence, begin, len(sequence) - kept)
