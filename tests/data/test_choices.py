"""`data.kind = "choices"`: lists and their questions."""

import pytest

from jaxlm.data.tasks.choices import ChoicesData


@pytest.mark.parametrize("asked", ["key", "largest"])
def test_the_answer_follows_from_the_list(asked):
  data = ChoicesData(batch_size=1, num_items=4, num_keys=8, num_values=16, asked=asked)
  for i in range(20):
    problem = data.random_access("test", 0)[i]
    items = data.items(problem.question)
    assert len({k for k, _, _ in items}) == 4 and all(mark == data.mark for *_, mark in items)
    if asked == "key":
      assert problem.answer == [dict((k, v) for k, v, _ in items)[problem.question[-1]]]
    else:
      assert problem.answer == [max(v for _, v, _ in items)] and len(problem.question) == 13
