"""A mixture of sources: exact shares that follow the step, whatever the hosts, resumed anywhere."""

import numpy as np
import pytest

from jaxlm.config import ConfigError
from jaxlm.data import DATA
from jaxlm.data.mixture import KEPT, Plan, Source
from jaxlm.data.needles import PairsData

ARM = dict(kind="star_graphs", family="tiny", batch_size=8, form="causal", rows=64, eval_rows=8)


def mixture(*weights, **changes):
  sources = [
    dict(data=ARM | changes | {"rows": 64 + i}, weights=one) for i, one in enumerate(weights)
  ]
  return DATA.build(dict(kind="mixture", sources=tuple(sources)))


def rows_of(data, number, split="train", **hosts):
  it = iter(data.build(split, seed=3, repeat=split == "train", **hosts))
  return [next(it) for _ in range(number)]


REPLAY = (((0, 1.0),), ((0, 0.0), (10, 1.0)))  # the second source comes in over ten steps


def test_every_source_has_its_share_at_every_step_and_each_row_once():
  sources = [
    Source(PairsData(batch_size=8, seq_len=8), one) for one in (*REPLAY, ((3, 0.3), (4, 0.0)))
  ]
  plan, read, owed = Plan(sources, 8, seed=0), np.zeros(3, int), np.zeros(3)
  for step in range(40):
    source, row = plan.batch(step)
    weights = np.array([s.weight(step) for s in sources])
    owed += 8 * weights / weights.sum()
    for k in range(3):
      found = np.sort(row[source == k])
      np.testing.assert_array_equal(found, read[k] + np.arange(len(found)))
      read[k] += len(found)
    assert (np.abs(read - owed) < 1.01).all() and read.sum() == 8 * (step + 1)
  assert [sources[1].weight(step) for step in (0, 5, 10, 99)] == [0.0, 0.5, 1.0, 1.0]


def test_a_batch_is_a_function_of_its_number_in_whatever_order_it_is_asked_for():
  sources = [Source(PairsData(batch_size=8, seq_len=8), one) for one in REPLAY]
  far, ahead = 3 * KEPT, Plan(sources, 8, seed=1)
  want = [ahead.batch(step) for step in range(far + 1)]
  for step in (far, far - 1, 2, 0, far):
    np.testing.assert_array_equal(ahead.batch(step), want[step])
    np.testing.assert_array_equal(Plan(sources, 8, seed=1).batch(step), want[step])


def test_hosts_together_read_what_one_host_reads_and_a_position_resumes():
  data = mixture(*REPLAY)
  whole = rows_of(data, 4)
  halves = [rows_of(data, 4, process_index=i, process_count=2) for i in range(2)]
  for n in range(4):
    for name, field in whole[n].items():
      both = np.stack([half[n][name] for half in halves], 1)
      np.testing.assert_array_equal(both.reshape(field.shape), field)
  it = iter(data.build("train", seed=3))
  it.set_state({**it.get_state(), "step": 2})
  for batch in whole[2:]:
    np.testing.assert_array_equal(next(it)["tokens"], batch["tokens"])
  other = iter(mixture(((0, 2.0),), REPLAY[1]).build("train", seed=3))
  with pytest.raises(ConfigError, match="was read with weights"):
    other.set_state(it.get_state())


def test_rows_are_those_that_the_sources_give_alone():
  data = mixture(((0, 1.0),), ((0, 1.0),))
  alone = [
    {row.tobytes() for batch in rows_of(source.data, 4) for row in batch["tokens"]}
    for source in data.sources
  ]
  mixed = [row.tobytes() for batch in rows_of(data, 4) for row in batch["tokens"]]
  assert {row in alone[0] for row in mixed} | {row in alone[1] for row in mixed} == {True, False}
  assert all(row in alone[0] or row in alone[1] for row in mixed)
  # One pass over the sources, one after the other.
  passed = rows_of(data, 2, "validation")
  each = [rows_of(source.data, 1, "validation")[0] for source in data.sources]
  for got, want in zip(passed, each):
    np.testing.assert_array_equal(got["tokens"], want["tokens"])


def test_pairs_stay_together():
  data = mixture(((0, 1.0),), ((0, 1.0),), form="answer_pairs")
  assert data.rows_per_group == 2 and data.batch_form == "answer_pairs"
  for batch in (rows_of(data, 1)[0], *rows_of(data, 1, process_index=1, process_count=2)):
    better, worse = batch["tokens"][::2], batch["tokens"][1::2]
    asked = batch["loss_weights"][::2] == 0
    np.testing.assert_array_equal((better * asked)[:, :-1], (worse * asked)[:, :-1])
    assert (batch["targets"][::2] != batch["targets"][1::2]).any(1).all()


@pytest.mark.parametrize(
  "sources, message",
  [
    ((dict(data=ARM),), "a mixture needs two"),
    ((dict(data=ARM), dict(data=ARM | {"batch_size": 4})), "different batch_size \\(8, 4\\)"),
    ((dict(data=ARM), dict(data=ARM | {"form": "insertion"})), "different batch_form"),
    ((dict(data=ARM, weights=((4, 1.0), (2, 1.0))), dict(data=ARM)), "growing steps"),
    ((dict(data=ARM, weights=((0, 0.0),)),) * 2, "at step 0 no source"),
  ],
)
def test_mixtures_that_make_no_sense_are_refused(sources, message):
  with pytest.raises(ConfigError, match=message):
    DATA.build(dict(kind="mixture", sources=sources))


def test_sources_of_other_vocabularies_or_fields_are_refused_with_both_named():
  zebra = dict(kind="zebra", batch_size=8, form="causal", seq_len=30, houses=2, attributes=1)
  stars = ARM | {"seq_len": 30}
  with pytest.raises(ConfigError, match=r"data.sources\[1\] has other special tokens"):
    DATA.build(dict(kind="mixture", sources=(dict(data=stars), dict(data=zebra)))).build(
      "train", seed=0
    )
  seeded = ARM | {"sequence_seeds": True}
  with pytest.raises(ConfigError, match=r"data.sources\[1\] has field sequence_seeds"):
    DATA.build(dict(kind="mixture", sources=(dict(data=ARM), dict(data=seeded)))).build(
      "train", seed=0
    )
