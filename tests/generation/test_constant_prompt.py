"""A constant prompt: its text by hand, and rows behind a shared prefix as rows that hold it."""

import pytest

from jaxlm.config import ConfigError
from jaxlm.generation.constant_prompt import AfterPrefix, ConstantPrompt
from jaxlm.generation.left_to_right import LeftToRight
from jaxlm.generation.sampling import GREEDY
from tests.generation.engine import toys

PROMPT = ConstantPrompt("Be kind.", (("Who?", "Hello! I."), ("Why?", "Well.")))


def test_the_text_by_hand():
  assert PROMPT.prefix + PROMPT.suffix("How?") == (
    "Be kind.\n"
    "# Query:\n```\nWho?\n```\n# Answer:\n```\nHello! I.\n```\n"
    "# Query:\n```\nWhy?\n```\n# Answer:\n```\nWell.\n```\n"
    "# Query:\n```\nHow?\n```\n# Answer:\n```\n"
  )
  assert ConstantPrompt().prefix == ""


def test_an_answer_ends_at_its_fence_or_at_the_next_query():
  assert PROMPT.cut("So.\nAnd so.\n```\n# Query:\n```\nmore") == "So.\nAnd so."
  assert PROMPT.cut("So. # Query: more") == "So. "
  assert PROMPT.cut("So ``` it goes on") == "So ``` it goes on"


def test_rows_behind_a_shared_prefix_are_those_that_hold_it():
  config, params = toys.model()
  prefix, prompts = (3, 1, 4, 1, 5), [[9, 2], [6], [5, 3, 5]]
  want = LeftToRight(config, GREEDY).generate(params, [[*prefix, *p] for p in prompts], 6)
  engine = AfterPrefix(config, GREEDY, prefix=prefix)
  found = engine.generate(params, prompts, 6)
  assert [a.tolist() for a in found.answers] == [a.tolist() for a in want.answers]
  other = AfterPrefix(config, GREEDY, prefix=(7, 7, 2)).generate(params, prompts, 6)
  assert [a.tolist() for a in other.answers] != [a.tolist() for a in want.answers]
  # The prefix counts where a row's length is limited.
  with pytest.raises(ConfigError, match="exceeds max_len"):
    engine.generate(params, prompts, 6, max_len=7)
