"""Star graphs against reasoning-gym's (extra `bench`): our solver solves theirs, and theirs would
be ours.
"""

import collections

import numpy as np
import pytest

from jaxlm.data.tasks.star_graphs import FAMILIES, Graph, StarFamily, solve

reasoning_gym = pytest.importorskip("reasoning_gym")


def parsed(question: str) -> tuple[np.ndarray, int, int]:
  """(edges, source, goal) of '|u v|u v/s g = '."""
  edges, ends = question.strip().splitlines()[-1].rstrip("= ").split("/")
  source, goal = map(int, ends.split())
  return (
    np.asarray([[int(n) for n in edge.split()] for edge in edges.strip("|").split("|")]),
    source,
    goal,
  )


def shape_of(edges) -> list[tuple[int, int]]:
  """Sorted (in, out) degrees of the nodes."""
  out, into = collections.Counter(edges[:, 0].tolist()), collections.Counter(edges[:, 1].tolist())
  return sorted((into[n], out[n]) for n in np.unique(edges).tolist())


@pytest.mark.parametrize("degree, length", [(2, 2), (3, 4), (5, 6)])
def test_our_solver_finds_their_answer_and_their_graph_is_a_member_of_our_family(degree, length):
  theirs = reasoning_gym.create_dataset(
    "path_star",
    size=30,
    seed=0,
    degree=degree,
    min_path_length=length,
    max_path_length=length,
    node_range=64,
  )
  family = StarFamily(degree=degree, min_path=length + 1, max_path=length + 1, num_nodes=64)
  for entry in theirs:
    edges, source, goal = parsed(entry["question"])
    path = solve(edges, source, goal)
    assert theirs.score_answer(" ".join(map(str, path)), entry) == 1.0
    family.check(Graph(edges, path))
    ours = family.generate(np.random.default_rng(0))
    assert shape_of(ours.edges) == shape_of(edges)


def test_their_scorer_accepts_the_path_of_our_easy_graphs_and_no_other_arm():
  theirs = reasoning_gym.create_dataset("path_star", size=1, seed=0)
  for seed in range(20):
    graph = FAMILIES["easy"].generate(np.random.default_rng(seed))
    entry = {"answer": " ".join(map(str, graph.path))}

    def says(path):
      return theirs.score_answer(" ".join(map(str, path)), entry)

    assert says(solve(graph.edges, graph.path[0], graph.path[-1])) == 1.0
    ends = set(graph.edges[:, 1].tolist()) - set(graph.edges[:, 0].tolist()) - {int(graph.path[-1])}
    assert all(says(solve(graph.edges, graph.path[0], end)) == 0.0 for end in ends)
