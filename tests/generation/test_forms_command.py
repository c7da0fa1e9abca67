"""What `jaxlm generate` makes of prompts with gaps, of tasks' prompts, and of options that
insertion does not have.
"""

import pytest

from jaxlm.config import ConfigError
from jaxlm.data.passages import PassageData
from jaxlm.data.tasks.star_graphs import StarGraphData
from jaxlm.generation.base import Options
from jaxlm.generation.forms_command import frame, gapped, speaker
from jaxlm.generation.insertion import Filter
from jaxlm.generation.insertion_engines import insertion_sampling
from jaxlm.generation.sampling import Sampling


def text(form="insertion"):
  return PassageData(source="mini:en", seq_len=64, batch_size=2, form=form, unit="sentence")


@pytest.mark.parametrize(
  ("prompt", "given", "open_"),
  [
    ("", "", [1]),
    ("ab", "ab", [3]),
    ("a ___ b", "a b", [2]),
    ("___ b", " b", [1]),
    ("a ____", "a", [2]),
    ("a ___ b ___", "a b", [2, 4]),
  ],
)
def test_insertions_go_where_the_gaps_are_and_without_one_to_the_end(prompt, given, open_):
  data = text()
  found = frame(data, prompt, 5)
  assert (
    found.tokens[:2] == [data.special_tokens.cls, data.special_tokens.bos]
    and speaker(data)(found.tokens) == given
  )
  assert [t for t, closed in enumerate(found.closed) if not closed] == open_


def test_a_gap_of_unknown_length_is_refused_for_other_forms():
  with pytest.raises(ConfigError, match="form is 'causal'"):
    frame(text("causal"), "a ___ b", 5)
  assert frame(text("causal"), "ab", 5).tokens == [text().special_tokens.bos, 97, 98]


def test_a_task_without_a_prompt_shows_a_test_problem_and_refuses_words():
  data = StarGraphData(batch_size=2, form="causal")
  found = frame(data, "", 5)
  assert found.num_new == 8 and found.tokens[-1] == data.special_tokens.bos and found.closed is None
  with pytest.raises(ConfigError, match="token numbers between blanks"):
    frame(data, "a b", 5)
  with pytest.raises(ConfigError, match="token 99 is outside the vocabulary of 28"):
    frame(data, "1 99", 5)


def test_a_gap_to_be_infilled_has_a_removed_token_for_every_underscore():
  found = gapped(text("masked_diffusion"), "a ____ b___")
  assert [i for i, removed in enumerate(found.removed) if removed] == [1, 2, 3, 4, 7, 8, 9]
  assert [t for t, removed in zip(found.tokens, found.removed) if not removed] == [97, 32, 98]
  with pytest.raises(ConfigError, match="has no gap"):
    gapped(text(), "a b")
  with pytest.raises(ConfigError, match="fills gaps of texts"):
    gapped(StarGraphData(batch_size=2), "1 ___")


def test_flags_of_insertion_filter_the_token_of_its_slot_and_the_slot_apart():
  chosen = insertion_sampling(Options(temperature=0.7, top_p=0.9, min_p=0.1, slot_top_k=1))
  assert chosen.token == Sampling(0.7, top_p=0.9, min_p=0.1) and chosen.slot == Sampling(top_k=1)
  assert insertion_sampling(Options(temperature=0)).token == Filter(top_k=1)
  assert insertion_sampling(Options()).slot == Sampling()  # the model's own distribution
