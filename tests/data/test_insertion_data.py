"""Corruption, compaction and star graphs: nothing is lost, and every graph is what it claims to be."""

import collections
import itertools
import math

import numpy as np
import pytest

from jaxlm.config import ConfigError
from jaxlm.data.forms import framed
from jaxlm.data.forms.corruption import (
  DataError,
  blocked_except_gaps,
  blocked_prefix,
  compact,
  drop,
  reinsert,
)
from jaxlm.data.passages import PassageData
from jaxlm.data.special_tokens import SpecialTokens
from jaxlm.data.tasks import star_graphs as stars
from jaxlm.data.tasks.zebra import ZebraData


def test_every_drop_mask_reinserts_to_the_original():
  tokens = np.asarray([7, 8, 1, 2, 3, 1, 4], np.int32)
  for mask in range(2**5):
    dropped = np.asarray([False, False] + [bool(mask >> i & 1) for i in range(5)])
    out = compact(tokens, dropped, seq_len=9, num_missing=6, pad=0)
    assert out.length + out.number == 7 and list(out.tokens[out.length :]) == [0] * (9 - out.length)
    np.testing.assert_array_equal(reinsert(out), tokens)


def test_the_number_dropped_is_uniform_and_so_is_the_subset():
  rng, types = np.random.default_rng(0), np.asarray([0, 1, 1, 2, 2])
  seen = collections.Counter(tuple(drop(types, rng)[3:]) for _ in range(6000))
  want = {(False, False): 1 / 3, (True, False): 1 / 6, (False, True): 1 / 6, (True, True): 1 / 3}
  chi2 = sum((seen[k] - 6000 * p) ** 2 / (6000 * p) for k, p in want.items())
  assert set(seen) == set(want) and chi2 < 16.3  # 3 degrees of freedom, p = 0.001


def test_a_prompt_opens_bos_only_and_an_infilling_its_gaps_only():
  np.testing.assert_array_equal(
    blocked_prefix(np.asarray([0, 1, 1, 2, 2])), [True, True, False, False, False]
  )
  np.testing.assert_array_equal(
    blocked_except_gaps(np.asarray([0, 0, 1, 0, 1], bool)), [True, False, True, False, True]
  )


@pytest.mark.parametrize("family", sorted(stars.FAMILIES))
def test_generated_graphs_belong_to_their_family_and_have_one_solution(family):
  star, lengths = stars.FAMILIES[family], set()
  for seed in range(100):
    graph = star.generate(np.random.default_rng(seed))
    star.check(graph)
    np.testing.assert_array_equal(
      stars.solve(graph.edges, graph.path[0], graph.path[-1]), graph.path
    )
    ids = SpecialTokens.after(star.num_nodes, stars.NAMES)
    tokens, types = framed(*stars.problem(graph), ids, "insertion")
    assert len(tokens) == len(types) <= star.seq_len
    lengths.add(len(graph.path))
  assert lengths == set(range(star.min_path, star.max_path + 1))


def test_a_graph_with_a_foreign_path_is_refused():
  graph = stars.FAMILIES["easy"].generate(np.random.default_rng(0))
  with pytest.raises(ConfigError, match="not made of its edges"):
    stars.FAMILIES["easy"].check(graph._replace(path=graph.path[[0, 2, 1, 3, 4]]))


@pytest.mark.parametrize(
  "form", ["insertion", "insertion_transformer", "causal", "masked_diffusion"]
)
def test_batches_are_a_function_of_the_seed_and_have_equal_shapes(form):
  data = stars.StarGraphData(batch_size=4, family="medium", form=form, rows=16)
  a, b, c = (next(iter(data.build("train", seed=s))) for s in (0, 0, 1))
  assert {k: v.shape for k, v in a.items()} == {k: v.shape for k, v in c.items()}
  assert all(np.array_equal(a[k], b[k]) for k in a) and not np.array_equal(a["tokens"], c["tokens"])
  assert a["tokens"].max() < data.vocab_size


def test_a_sequence_longer_than_the_block_is_refused():
  with pytest.raises(DataError, match="does not fit data.seq_len = 3"):
    compact(np.arange(4), np.zeros(4, bool), seq_len=3, num_missing=1, pad=0)


def test_the_least_token_loss_of_a_path_written_edge_by_edge_is_log_8_factorial_over_9():
  """Bayes: whoever knows the path still cannot know which of two equal neighbours is missing, nor
  which masks are likely beyond n ~ U{0..8}. Survivors -> the mean target over the masks that leave
  them; its entropy is the floor."""
  path = np.asarray([5, 0, 1, 1, 2, 2, 3, 3, 4])  # BOS in front
  chance, target = collections.Counter(), collections.defaultdict(collections.Counter)
  for mask in itertools.product([False, True], repeat=8):
    out = compact(path, np.asarray([False, *mask]), seq_len=9, num_missing=8, pad=9)
    seen, p = tuple(out.tokens), 1 / 9 / math.comb(8, out.number)
    chance[seen] += p
    for pair in zip(out.slots[: out.number].tolist(), out.missing[: out.number].tolist()):
      target[seen][pair] += p / out.number
  floor = -sum(q * math.log(q / chance[seen]) for seen in target for q in target[seen].values())
  assert sum(chance.values()) == pytest.approx(1) and floor == pytest.approx(
    math.log(math.factorial(8)) / 9
  )


@pytest.mark.parametrize(
  "data",
  [
    stars.StarGraphData(batch_size=32, family="tiny", constraint=True, rows=32),
    ZebraData(batch_size=8, houses=2, attributes=2, rows=8, seq_len=80, constraint=True),
    PassageData("mini:moby_dick", seq_len=60, batch_size=8, unit="sentence", constraint=True),
  ],
  ids=["stars", "zebra", "passages"],
)
def test_with_a_constraint_exactly_the_slots_of_missing_tokens_are_open(data):
  batch = next(iter(data.build("train", seed=0)))
  for blocked, slots, n in zip(batch["blocked"], batch["slots"], batch["num_missing"][:, 0]):
    assert set(np.flatnonzero(blocked == 0)) == set(slots[:n])
  assert batch["num_missing"].any()
  if isinstance(data, PassageData):
    assert data.batch_fields["blocked"] == (batch["blocked"].shape, batch["blocked"].dtype)


def test_a_constraint_of_a_form_that_does_not_read_it_is_refused():
  with pytest.raises(ConfigError, match="data.constraint = True with data.form = 'causal'"):
    stars.StarGraphData(batch_size=1, form="causal", constraint=True)
