"""Corruption, compaction and star graphs: nothing is lost, and every graph is what it claims to be."""

import collections

import numpy as np
import pytest

from jaxlm.config import ConfigError
from jaxlm.data import star_graphs as stars
from jaxlm.data.insertion import DataError, blocked_except_gaps, blocked_prefix, compact, drop, reinsert


def test_every_drop_mask_reinserts_to_the_original():
  tokens = np.asarray([7, 8, 1, 2, 3, 1, 4], np.int32)
  for mask in range(2**5):
    dropped = np.asarray([False, False] + [bool(mask >> i & 1) for i in range(5)])
    out = compact(tokens, dropped, seq_len=9, num_missing=6, pad=0)
    assert out.length + out.number == 7 and list(out.tokens[out.length:]) == [0] * (9 - out.length)
    np.testing.assert_array_equal(reinsert(out), tokens)


def test_the_number_dropped_is_uniform_and_so_is_the_subset():
  rng, types = np.random.default_rng(0), np.asarray([0, 1, 1, 2, 2])
  seen = collections.Counter(tuple(drop(types, rng)[3:]) for _ in range(6000))
  want = {(False, False): 1 / 3, (True, False): 1 / 6, (False, True): 1 / 6, (True, True): 1 / 3}
  chi2 = sum((seen[k] - 6000 * p)**2 / (6000 * p) for k, p in want.items())
  assert set(seen) == set(want) and chi2 < 16.3      # 3 degrees of freedom, p = 0.001


def test_a_prompt_opens_bos_only_and_an_infilling_its_gaps_only():
  np.testing.assert_array_equal(blocked_prefix(np.asarray([0, 1, 1, 2, 2])), [True, True, False, False, False])
  np.testing.assert_array_equal(blocked_except_gaps(np.asarray([0, 0, 1, 0, 1], bool)), [True, False, True, False, True])


@pytest.mark.parametrize("family", sorted(stars.FAMILIES))
def test_generated_graphs_belong_to_their_family_and_have_one_solution(family):
  star, lengths = stars.FAMILIES[family], set()
  for seed in range(100):
    graph = star.generate(np.random.default_rng(seed))
    star.check(graph)
    np.testing.assert_array_equal(stars.solve(graph.edges, graph.path[0], graph.path[-1]), graph.path)
    tokens, types = stars.encode(graph, stars.Ids.after(star.num_nodes), "insertion")
    assert len(tokens) == len(types) <= star.seq_len
    lengths.add(len(graph.path))
  assert lengths == set(range(star.min_path, star.max_path + 1))


def test_a_graph_with_a_foreign_path_is_refused():
  graph = stars.FAMILIES["easy"].generate(np.random.default_rng(0))
  with pytest.raises(ConfigError, match="not made of its edges"):
    stars.FAMILIES["easy"].check(graph._replace(path=graph.path[[0, 2, 1, 3, 4]]))


@pytest.mark.parametrize("form", ["insertion", "insertion_transformer", "causal", "masked_diffusion"])
def test_batches_are_a_function_of_the_seed_and_have_equal_shapes(form):
  data = stars.StarGraphData(batch_size=4, family="medium", form=form, rows=16)
  a, b, c = (next(iter(data.build("train", seed=s))) for s in (0, 0, 1))
  assert {k: v.shape for k, v in a.items()} == {k: v.shape for k, v in c.items()}
  assert all(np.array_equal(a[k], b[k]) for k in a) and not np.array_equal(a["tokens"], c["tokens"])
  assert a["tokens"].max() < data.vocab_size


def test_a_sequence_longer_than_the_block_is_refused():
  with pytest.raises(DataError, match="does not fit data.seq_len = 3"):
    compact(np.arange(4), np.zeros(4, bool), seq_len=3, num_missing=1, pad=0)
