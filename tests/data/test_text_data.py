"""Batches of text: a function of (seed, step), whoever reads them and wherever reading began."""

import dataclasses
import json

import numpy as np
import pytest
from grain.experimental import assert_equal_output_after_checkpoint

from jaxlm.config import ConfigError
from jaxlm.data import DATA, DataError
from jaxlm.data.text import TextData, check_vocabulary, evaluation_batches

FIELDS = {"tokens", "targets", "segment_ids", "positions", "loss_weights", "target_bytes"}


def data(**overrides):
  return DATA.build(dict(kind="text", source="mini:udhr/eng", seq_len=32, batch_size=8) | overrides)


def take(dataset, count):
  iterator = iter(dataset)
  return [next(iterator) for _ in range(count)]


def assert_same(a, b):
  assert len(a) == len(b)
  for x, y in zip(a, b):
    assert x.keys() == y.keys() == FIELDS
    for key in x:
      np.testing.assert_array_equal(x[key], y[key], err_msg=key)


@pytest.mark.parametrize("packing", ["windows", "packed"])
def test_the_seed_decides_the_batches(packing):
  cfg = data(packing=packing)
  assert_same(
    take(cfg.build("train", seed=1), 40), take(cfg.build("train", seed=1), 40)
  )  # epochs have 37 batches
  a, b = take(cfg.build("train", seed=1), 1)[0], take(cfg.build("train", seed=2), 1)[0]
  assert (a["tokens"] != b["tokens"]).any()


@pytest.mark.parametrize("packing", ["windows", "packed"])
@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_the_global_batch_of_one_host(packing, hosts):
  cfg = data(packing=packing, source="mini:udhr")
  whole = take(cfg.build("train", seed=0), 5)
  for host in range(hosts):
    part = take(cfg.build("train", seed=0, process_index=host, process_count=hosts), 5)
    assert_same(part, [{k: v[host::hosts] for k, v in batch.items()} for batch in whole])


def test_evaluation_gives_every_host_the_same_number_of_batches():
  cfg = data(batch_size=12)
  counts = {
    len(list(cfg.build("validation", seed=0, process_index=h, process_count=4, repeat=False)))
    for h in range(4)
  }
  assert len(counts) == 1


@pytest.mark.parametrize("packing", ["windows", "packed"])
def test_a_saved_position_goes_on_exactly_even_on_other_hosts(packing):
  cfg = data(packing=packing)
  whole = take(cfg.build("train", seed=0), 50)
  iterator = iter(cfg.build("train", seed=0))
  for _ in range(41):  # in the second epoch
    next(iterator)
  state = json.loads(json.dumps(iterator.get_state()))
  resumed = iter(cfg.build("train", seed=0))
  resumed.set_state(state)
  assert_same([next(resumed) for _ in range(9)], whole[41:])
  half = iter(cfg.build("train", seed=0, process_index=1, process_count=2))
  half.set_state(state)
  assert_same([next(half)], [{k: v[1::2] for k, v in whole[41].items()}])


def test_grain_agrees_about_saved_positions():
  assert_equal_output_after_checkpoint(data().build("validation", seed=0, repeat=False))


def test_seeking_reads_nothing_before(monkeypatch):
  from jaxlm.data import rows

  cfg, read, plain = data(), [], rows.Windows.__getitem__
  monkeypatch.setattr(
    rows.Windows, "__getitem__", lambda self, i: (read.append(i), plain(self, i))[1]
  )
  iterator = iter(cfg.build("train", seed=0))
  iterator.set_state(iterator.get_state() | {"step": 100_000})
  next(iterator)
  assert len(read) <= 16 * cfg.batch_size  # this batch and what is fetched ahead


def test_a_position_in_other_data_is_refused():
  state = iter(data().build("train", seed=0)).get_state()
  for other in (
    data(seq_len=16),
    data(batch_size=4),
    data(source="mini:udhr/fra"),
    data(packing="packed"),
  ):
    with pytest.raises(DataError, match="the saved position was read with"):
      iter(other.build("train", seed=0)).set_state(state)


@pytest.mark.slow
def test_workers_change_nothing():
  cfg = data()
  here = iter(cfg.build("train", seed=0))
  there = iter(dataclasses.replace(cfg, num_workers=2).build("train", seed=0))
  assert_same([next(here) for _ in range(7)], [next(there) for _ in range(7)])
  there.close()
  there.set_state(here.get_state())
  assert_same([next(here) for _ in range(3)], [next(there) for _ in range(3)])
  there.close()


def test_windows_are_contiguous_and_targets_are_next_tokens():
  cfg = data(shuffle=False)
  store = cfg.store("train")
  batch = take(cfg.build("train", seed=0), 1)[0]
  np.testing.assert_array_equal(batch["tokens"].ravel(), store.tokens[:256])
  np.testing.assert_array_equal(batch["targets"].ravel(), store.tokens[1:257])
  assert (
    store.tokens[0] == 256
    and (batch["loss_weights"] == 1).all()
    and (batch["segment_ids"] == 1).all()
  )
  assert (
    batch["target_bytes"].sum() == 256
  )  # the only separator of this document is its first token


@pytest.mark.parametrize("length", [7, 32, 100])
def test_evaluation_scores_every_target_once_at_any_length(length):
  cfg = data()
  stored = cfg.store("test").tokens
  found = list(evaluation_batches(cfg, "test", length, 4))
  assert all(b["tokens"].shape == (4, length) for b in found)
  scored = np.concatenate([b["targets"][b["loss_weights"] > 0] for b in found])
  np.testing.assert_array_equal(scored, stored[1:])
  assert sum(b["target_bytes"].sum() for b in found) == len(stored) - 1
  first = list(evaluation_batches(cfg, "test", length, 4, num_tokens=3 * length))
  assert sum(b["loss_weights"].sum() for b in first) == 3 * length


def test_a_single_pass_is_in_corpus_order_and_complete():
  found = list(data(batch_size=16).build("test", seed=5, repeat=False))
  scored = np.concatenate([b["targets"][b["loss_weights"] > 0] for b in found])
  np.testing.assert_array_equal(scored, data().store("test").tokens[1:])


@pytest.mark.parametrize(
  "change, sentence",
  [
    ({"source": "minni:en"}, "did you mean 'mini'"),
    ({"source": "mini:moby"}, "did you mean 'moby_dick'"),
    ({"source": "text:nowhere/*.txt"}, "no file matches"),
    ({"source": "text:nowhere.txt"}, "does not exist"),
    ({"source": "prepared:prose-small"}, "jaxlm data prepare prose-small"),
    ({"source": "mini:"}, "names nothing"),
    ({"seq_len": 1_000_000}, "fewer than one window"),
    ({"tokenizer": {"kind": "bpe", "path": "nowhere.json"}}, "does not exist"),
    ({"tokenizer": {"kind": "bpe"}}, "jaxlm data prepare gpt2-tokenizer"),
  ],
)
def test_wrong_data_are_answered_with_the_remedy(change, sentence):
  with pytest.raises(ConfigError, match=sentence):
    data(**change).build("train", seed=0)


@pytest.mark.parametrize(
  "field, value", [("seq_len", 0), ("batch_size", -1), ("num_workers", -1), ("packing", "tight")]
)
def test_impossible_settings_are_refused_at_once(field, value):
  with pytest.raises(ConfigError, match=f"data.{field}" if field != "packing" else "packing"):
    DATA.build(
      dict(kind="text", source="mini:en", seq_len=8, batch_size=8) | {field: value}, "data"
    )


def test_hosts_must_divide_the_batch():
  with pytest.raises(DataError, match="set it to 9"):
    data().build("train", seed=0, process_count=3)
  with pytest.raises(DataError, match="split 'valid'"):
    data().build("valid", seed=0)
  with pytest.raises(DataError, match="at least 257"):
    check_vocabulary(data().vocab_size, 256)


def test_a_config_knows_its_vocabulary_without_a_corpus():
  assert TextData("text:nowhere", 8, 8).vocab_size == 257
