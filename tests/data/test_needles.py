import dataclasses

import numpy as np
import pytest

from jaxlm.config import ConfigError
from jaxlm.data.needles import RULER, NeedleData, PairsData, RepeatedWordsData


def rows(cfg, split="validation", seed=0, count=4):
  batches = iter(cfg.build(split, seed=seed, repeat=split == "train"))
  return [
    {k: v[i] for k, v in batch.items()}
    for batch, _ in zip(batches, range(count))
    for i in range(cfg.batch_size)
  ]


@pytest.mark.parametrize("task", RULER)
def test_every_answer_was_said_before_it_is_asked_for(task):
  cfg = NeedleData(seq_len=300, batch_size=2, rows=8, **RULER[task])
  for row in rows(cfg):
    text, asked = bytes(row["targets"].astype(np.uint8)), row["answer"].astype(bool)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], asked, [0]]))).reshape(-1, 2)
    assert len(edges) == cfg.num_queries * cfg.values_per_key
    for start, stop in edges:
      sentence = text[text.rindex(b" ", 0, start - 4) : stop + 1]  # ' key is value.'
      assert stop - start == cfg.value_chars and sentence.endswith(b".")
      assert sentence in text[: edges[0][0]] or text[: edges[0][0]].startswith(sentence[1:])
    assert np.array_equal(row["loss_weights"] > 0, asked)
    assert np.array_equal(row["tokens"][1:], row["targets"][:-1])


def test_depth_places_the_asked_needle():
  cfg = NeedleData(seq_len=400, batch_size=1, rows=4, haystack="prose", num_keys=2)
  for depth in (0.0, 0.5, 1.0):
    for row in rows(dataclasses.replace(cfg, depth=depth)):
      text = bytes(row["tokens"].astype(np.uint8))
      key = text[text.rindex(b" is ") - 4 : text.rindex(b" is ")]
      assert abs(text.index(key + b" is ") / 360 - depth) < 0.12


def test_rows_depend_on_seed_split_and_index_only():
  cfg = NeedleData(seq_len=120, batch_size=2, rows=4)

  def same(a, b):
    return all(np.array_equal(x["tokens"], y["tokens"]) for x, y in zip(a, b))

  assert same(rows(cfg), rows(cfg))
  assert not same(rows(cfg), rows(cfg, seed=1))
  assert not same(rows(cfg), rows(cfg, split="train"))


def test_words_repeat_within_a_row_and_differ_between_rows():
  cfg = RepeatedWordsData(seq_len=200, batch_size=1, num_words=8, rows=2)
  first, second = (set(bytes(r["tokens"].astype(np.uint8)).split(b" ")[:-1]) for r in rows(cfg))
  assert len(first) == 8 and not first & second


def test_every_question_of_a_row_has_one_answer_and_only_answers_weigh():
  first, second = rows(PairsData(seq_len=200, batch_size=1, num_keys=15, rows=2))
  tables = []
  for row in (first, second):
    asked, answer = row["tokens"][::2] - 240, row["targets"][::2]
    assert np.array_equal(answer // 16, asked) and set(asked) == set(range(15))
    tables.append({int(k): int(a) for k, a in zip(asked, answer)})
    assert all(tables[-1][int(k)] == a for k, a in zip(asked, answer))
    assert np.array_equal(row["loss_weights"], np.arange(200) % 2 == 0)
  assert tables[0] != tables[1]


def test_more_keys_fit_where_there_are_fewer_values():
  first, _ = rows(PairsData(seq_len=400, batch_size=1, num_keys=40, num_values=4, rows=2))
  asked, answer = first["tokens"][::2] - 160, first["targets"][::2]
  assert np.array_equal(answer // 4, asked) and len(set(asked)) > 30
  assert len(set(zip(asked.tolist(), answer.tolist()))) == len(set(asked.tolist()))


def test_requests_without_room_are_refused():
  with pytest.raises(ConfigError, match="num_keys = 16"):
    PairsData(seq_len=20, batch_size=1, num_keys=16)
  with pytest.raises(ConfigError, match="no room"):
    NeedleData(seq_len=20, batch_size=1)
  with pytest.raises(ConfigError, match="num_queries = 2"):
    NeedleData(seq_len=200, batch_size=1, num_queries=2)
  with pytest.raises(ConfigError, match="depth"):
    NeedleData(seq_len=200, batch_size=1, depth=1.5)
