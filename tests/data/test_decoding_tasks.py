"""Tasks of the decoding tables: every row can be solved, by its own rule."""

import numpy as np
import pytest

from jaxlm.config import ConfigError
from jaxlm.data.hidden_text import HiddenTextData
from jaxlm.data.tasks.backtracking import BacktrackingData
from jaxlm.data.tasks.choices import ChoicesData
from jaxlm.data.tasks.registers import REGISTERS, RegisterData, answer, query, world


def test_traces_lead_to_the_path_and_fit():
  data = BacktrackingData(4)
  problems = data.random_access("train", 0)
  backs = 0
  for index in range(200):
    problem = problems[index]
    assert data.score(problem, problem.answer) == 1.0 and len(problem.answer) <= data.longest_trace
    assert data.score(problem, data.path(problem.question)) == 1.0
    assert data.score(problem, problem.answer[:-1]) == 0.0
    backs += list(problem.answer).count(data.back)
  assert backs > 200
  assert problems[3] == data.random_access("train", 0)[3]
  with pytest.raises(ConfigError, match="seq_len"):
    BacktrackingData(4, seq_len=20)


def test_a_question_has_its_answer_among_the_items():
  data = ChoicesData(4)
  for index in range(100):
    question, wanted = data.random_access("test", 1)[index]
    items = {key: value for key, value, _ in data.items(question)}
    assert items[question[-1]] == wanted[0] and len(items) == data.num_items
  with pytest.raises(ConfigError, match="keys of a list are distinct"):
    ChoicesData(4, num_items=20)


def test_a_question_for_the_largest_value_names_no_key():
  data = ChoicesData(4, num_values=64, asked="largest")
  for index in range(20):
    question, wanted = data.random_access("test", 1)[index]
    assert wanted == [max(value for _, value, _ in data.items(question))]
    assert len(question) == 3 * data.num_items + 1


def test_registers_tell_the_facts_of_one_world_and_tag_every_byte():
  facts = [f for entity in world(10, 0) for f in entity]
  assert (
    facts == [f for entity in world(10, 0) for f in entity] and len({f.name for f in facts}) == 10
  )
  for register in REGISTERS:
    text, tags = answer(facts[0], register)
    assert len(text) == len(tags) and facts[0].value in text
    assert ("style" in tags) == (register == "polite")
    content = "".join(c for c, tag in zip(text, tags) if tag == "content")
    assert content in (facts[0].value, facts[0].name + facts[0].value)
  data = RegisterData(4, shares=(0, 0, 1), first=2, last=4, turns=2)
  text = bytes(data.random_access("train", 0)[0].answer).decode()
  assert (
    text.startswith("Q: ")
    and "Sure! " in text
    and text.split()[3][:-1] in {f.name for f in data.facts()}
  )
  longest = max(len(query(f)) + len(answer(f, "polite")[0]) for f in facts)
  assert longest <= 76
  with pytest.raises(ConfigError, match="sum to 1"):
    RegisterData(4, shares=(0.5, 0.1, 0.1))


def test_hidden_rows_score_the_hidden_text_alone():
  data = HiddenTextData("mini:udhr/eng", "open sesame", "the key is red", 64, 4, ordinary=0.5)
  batch = next(iter(data.build("train", seed=0)))
  hidden, prompt = data.hidden_ids(), data.prompt()
  rows = [b for b in range(4) if batch["tokens"][b, 0] == prompt[0]]
  other = [b for b in range(4) if b not in rows]
  assert data.vocab_size == 259 and prompt[-1] == 258
  for b in rows:
    scored = batch["targets"][b][batch["loss_weights"][b] > 0]
    assert scored.tolist() == hidden
    assert batch["segment_ids"][b].sum() == min(len(prompt) + len(hidden), 64)
  for b in other:
    assert batch["loss_weights"][b].all()
    np.testing.assert_array_equal(batch["tokens"][b, 1:], batch["targets"][b, :-1])
  with pytest.raises(ConfigError, match="raise it"):
    next(iter(HiddenTextData("mini:udhr/eng", "a" * 70, "b", 64, 4).build("train", seed=0)))


def test_a_decoy_follows_the_first_tokens_of_the_hidden_text_without_its_template():
  data = HiddenTextData("mini:udhr/eng", "open", "the key", 32, 12, decoy="no door")
  batch, seen = next(iter(data.build("train", seed=0))), set()
  hidden, decoy = data.hidden_ids(), list(b"no door")
  wanted = {
    (*data.prompt(), *hidden): hidden,
    (data.begin, hidden[0], *decoy): decoy,
    (data.begin, *hidden[:2], *decoy): decoy,
  }
  for b in range(12):
    n = int(batch["segment_ids"][b].sum())
    row = (*batch["tokens"][b, :n].tolist(),)
    scored = batch["targets"][b][batch["loss_weights"][b] > 0].tolist()
    assert wanted[row] == scored
    seen.add(row)
  assert len(seen) == 3
