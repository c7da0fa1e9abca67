"""Prompting a base model with a constant prefix: URIAL (Lin et al., arXiv 2312.01552).

A system text, then constant pairs of a query and a restyled answer, each body between fences, then the
query and an open answer. The prefix is the same for all queries, so its state is computed once
(`prefix_state`) and every row begins with a copy.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxlm.generation.base import Batch, Prompt
from jaxlm.generation.engine.step import padded, prefill, round_up, take_rows
from jaxlm.generation.left_to_right import LeftToRight

FENCE = "```"


@dataclasses.dataclass(frozen=True)
class ConstantPrompt:
  """system: text in front. pairs: (query, answer). query, answer: the headings of a turn."""

  system: str = ""
  pairs: tuple[tuple[str, str], ...] = ()
  query: str = "# Query:"
  answer: str = "# Answer:"
  fence: str = FENCE

  def _body(self, heading: str, text: str) -> str:
    return f"{heading}\n{self.fence}\n{text}\n{self.fence}\n"

  @property
  def prefix(self) -> str:
    """What stands before every query."""
    turns = [self._body(self.query, q) + self._body(self.answer, a) for q, a in self.pairs]
    return "".join([self.system + "\n" if self.system else "", *turns])

  def suffix(self, query: str) -> str:
    """The query and the beginning of its answer."""
    return f"{self._body(self.query, query)}{self.answer}\n{self.fence}\n"

  @property
  def stop(self) -> str:
    """Text that ends an answer."""
    return f"\n{self.fence}"

  def cut(self, text: str) -> str:
    """An answer up to its end, wherever the tokens of the end were cut."""
    for end in (self.stop, self.query):
      text = text.split(end, 1)[0]
    return text


def prefix_state(
  model, params, tokens: Sequence[int], num_rows: int, max_len: int, *, deterministic: bool = False
):
  """The state behind the prefix, of num_rows rows with room for max_len tokens each."""
  length_B = np.asarray([len(tokens)], np.int32)
  state = model.init_state(1, round_up(max_len))
  _, state = prefill(
    model,
    params,
    padded([Prompt(tokens)], length_B),
    length_B,
    state,
    deterministic=deterministic,
  )
  return take_rows(model, state, np.zeros(num_rows, np.int32))


@dataclasses.dataclass(frozen=True)
class AfterPrefix(LeftToRight):
  """Left to right behind a prefix that all prompts share and that is read once.

  prefix: token ids. Prompts are what comes behind it; rows are returned without it.
  """

  is_default = False
  prefix: tuple[int, ...] = ()

  def begin(self, params, batch: Batch):
    length_B = np.asarray([len(p) for p in batch.prompts], np.int32)
    total = len(self.prefix) + batch.longest
    state = prefix_state(
      self.model, params, self.prefix, len(length_B), total, deterministic=self.deterministic
    )
    logits_BV, state = prefill(
      self.model,
      params,
      padded(batch.prompts, length_B, batch.max_len is not None),
      length_B,
      state,
      deterministic=self.deterministic,
    )
    return logits_BV, state, None

  def _room(self, prompts, max_new_tokens, max_len):
    whole = [Prompt([*self.prefix, *p.tokens]) for p in prompts]
    return super()._room(whole, max_new_tokens, max_len)
