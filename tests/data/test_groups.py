"""Rows that belong together stay together: in the order of an epoch, among hosts, in micro-batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config import ConfigError
from jaxlm.data.pipeline import batches
from jaxlm.data.tasks.star_graphs import StarGraphData, solve
from jaxlm.objectives.base import LossOutput, Pair
from jaxlm.training.step import accumulate


class Numbered:
  """Row i is i."""

  def __len__(self):
    return 24

  def __getitem__(self, i):
    return {"tokens": np.full(2, i, np.int32), "loss_weights": np.ones(1, np.float32)}


def noisy(row, rng):
  return row | {"noise": rng.integers(0, 1000, 1)}


def read(hosts=1, index=0, number=4, **options):
  data = batches(
    Numbered(),
    batch_size=12,
    seed=1,
    process_index=index,
    process_count=hosts,
    transform=noisy,
    rows_per_group=3,
    **options,
  )
  it = iter(data)
  return [next(it) for _ in range(number)]


def test_groups_are_shuffled_and_shared_out_whole_and_their_rows_draw_apart():
  whole = read()
  for batch in whole:
    groups = batch["tokens"][:, 0].reshape(-1, 3)
    np.testing.assert_array_equal(groups, groups[:, :1] + np.arange(3))
    assert (groups[:, 0] % 3 == 0).all()
  assert sorted(np.concatenate([b["tokens"][:, 0] for b in whole[:2]])) == list(range(24))
  assert len(set(whole[0]["noise"][:, 0])) > 4
  halves = [read(2, index) for index in range(2)]
  for n, batch in enumerate(whole):
    for name, field in batch.items():
      both = np.stack([half[n][name].reshape(2, 3, -1) for half in halves], 1)
      np.testing.assert_array_equal(both.reshape(field.shape), field)
  with pytest.raises(ConfigError, match="by the 8 hosts x 3 rows that belong together; set it to"):
    read(8)


def test_a_micro_batch_holds_whole_groups():
  def sums(w, batch, key, state):
    first, second = batch["x"][::2], batch["x"][1::2]
    loss = jnp.sum(w * (first * 10 + second) ** 2)  # of whole pairs only
    return loss, LossOutput(Pair(loss, jnp.float32(len(first))), {})

  x = jnp.arange(8.0)

  def gradient(num, size):
    return accumulate(
      sums, jnp.float32(2), {"x": x}, jax.random.key(0), num, {}, lambda s, _: s, size
    )[0]

  np.testing.assert_allclose(gradient(4, 2), gradient(1, 2), rtol=1e-6)
  assert abs(gradient(4, 1) - gradient(1, 1)) > 1  # rows i, i + 4 are no pair


def test_the_worse_answer_of_a_pair_has_the_lower_score():
  data = StarGraphData(batch_size=4, family="tiny", form="answer_pairs", rows=8)
  problems = data.random_access("train", 0)
  rng = np.random.default_rng(0)
  for i in range(8):
    graph, problem = problems.graph(i), problems[i]
    assert data.score(problem, problem.answer) == 1.0
    assert data.score(problem, data.worse_answer(problem, rng)) == 0.0
    np.testing.assert_array_equal(solve(graph.edges, *graph.path[[0, -1]]), graph.path)
