"""Star graphs: find the path from source to goal among the shuffled edges of a graph with one
branching node.

Axes: T position. docs/specs/ilm.md, section 7.1. Every graph is a function of (seed, split, index):
nothing is stored.

A sequence is `u v u v ... source goal BOS p0 p1 p1 p2 ...`: the edges in random order, the
question, the path edge by edge. CLS stands in front for insertion models, EOS at the end for
autoregressive ones.
"""

import dataclasses
from typing import Literal, NamedTuple

import numpy as np

from jaxlm.config import ConfigError, checked
from jaxlm.data.forms import TaskForm, check_constraint
from jaxlm.data.special_tokens import SpecialTokens
from jaxlm.data.splits import SPLIT_SEEDS
from jaxlm.data.tasks.base import Problem, TaskData
from jaxlm.ranges import Count


class Graph(NamedTuple):
  """edges (E, 2) in shown order; path: nodes from source to goal."""

  edges: np.ndarray
  path: np.ndarray


@dataclasses.dataclass(frozen=True)
class StarFamily:
  """degree arms; paths of min_path .. max_path nodes.

  Symmetric (min_plan None): the hub is the source, every arm has max_path nodes, the hub among
  them. Otherwise each arm is a chain through the hub, which is at least min_plan steps before its
  end.
  """

  degree: int
  min_path: int
  max_path: int
  num_nodes: int
  min_plan: int | None = None

  @property
  def most_edges(self) -> int:
    return self.degree * (self.max_path - 1)

  @property
  def seq_len(self) -> int:
    """Tokens of the longest sequence with CLS, edges, question, BOS and path; one more for what
    ends it elsewhere.
    """
    return 1 + 2 * self.most_edges + 3 + 2 * self.max_path - 2

  def generate(self, rng: np.random.Generator) -> Graph:
    if self.min_plan is None:
      nodes = rng.choice(self.num_nodes, 1 + self.degree * (self.max_path - 1), replace=False)
      hub, rest = nodes[:1], nodes[1:].reshape(self.degree, -1)
      arms = [np.concatenate([hub, arm]) for arm in rest]
    else:
      lengths = rng.integers(self.min_path, self.max_path + 1, self.degree)
      joins = [int(rng.integers(0, length - self.min_plan)) for length in lengths]
      nodes = rng.choice(self.num_nodes, int(lengths.sum()) - self.degree + 1, replace=False)
      hub, rest, arms = nodes[0], nodes[1:], []
      for length, join in zip(lengths, joins):
        arm, rest = rest[: length - 1], rest[length - 1 :]
        arms.append(np.insert(arm, join, hub))
    edges = np.concatenate([np.stack([arm[:-1], arm[1:]], axis=1) for arm in arms])
    return Graph(rng.permutation(edges), arms[0])

  def check(self, graph: Graph) -> None:
    """Raises ConfigError with what is wrong if this is no member of the family."""
    out, into = {}, {}
    for u, v in graph.edges.tolist():
      out.setdefault(u, []).append(v)
      into.setdefault(v, []).append(u)
    busy = {n for n in out if len(out[n]) > 1} | {n for n in into if len(into[n]) > 1}

    def refuse(why):
      return ConfigError(f"not a star graph of {self}: {why}")

    if len(busy) != 1:
      raise refuse(f"{len(busy)} branching nodes")
    hub = busy.pop()
    if len(out[hub]) != self.degree:
      raise refuse(f"hub {hub} has {len(out[hub])} arms")
    if not self.min_path <= len(graph.path) <= self.max_path:
      raise refuse(f"a path of {len(graph.path)} nodes")
    if any(
      v not in out.get(u, ()) for u, v in zip(graph.path[:-1].tolist(), graph.path[1:].tolist())
    ):
      raise refuse("its path is not made of its edges")
    nodes = np.unique(graph.edges)
    if nodes.min() < 0 or nodes.max() >= self.num_nodes or len(nodes) != len(graph.edges) + 1:
      raise refuse(f"{len(nodes)} nodes for {len(graph.edges)} edges: not a tree")
    after = len(graph.path) - 1 - graph.path.tolist().index(hub)
    if after < (self.max_path - 1 if self.min_plan is None else self.min_plan):
      raise refuse(f"its goal is {after} steps from the hub")


FAMILIES = {
  "tiny": StarFamily(
    degree=3, min_path=4, max_path=4, num_nodes=12
  ),  # ours: easy with paths one edge shorter
  "easy": StarFamily(degree=3, min_path=5, max_path=5, num_nodes=20),
  "medium": StarFamily(degree=3, min_path=3, max_path=6, num_nodes=20, min_plan=2),
  "hard": StarFamily(degree=5, min_path=6, max_path=12, num_nodes=56, min_plan=5),
}


def solve(edges: np.ndarray, source: int, goal: int) -> np.ndarray | None:
  """Nodes of the path from source to goal; None without one."""
  out: dict[int, list[int]] = {}
  for u, v in edges.tolist():
    out.setdefault(u, []).append(v)
  todo, seen = [[int(source)]], {int(source)}
  while todo:
    path = todo.pop()
    if path[-1] == goal:
      return np.asarray(path)
    for v in out.get(path[-1], ()):
      if v not in seen:
        seen.add(v)
        todo.append([*path, v])
  return None


#: Special tokens in the release's order; their ids follow the nodes'.
NAMES = ("cls", "bos", "eos", "unk", "pad", "mask", "edge_separator", "goal_separator")


def problem(graph: Graph) -> Problem:
  """Edges, source and goal; the path edge by edge."""
  question = [*graph.edges.reshape(-1), graph.path[0], graph.path[-1]]
  return Problem(question, np.stack([graph.path[:-1], graph.path[1:]], axis=1).reshape(-1))


@dataclasses.dataclass(frozen=True)
@checked
class StarGraphData(TaskData):
  """family: easy, medium or hard, or tiny, which is ours. form: what the model's objective reads.
  rows: graphs of the training split; 100 and 5,000 of validation and test, as the paper's, unless
  eval_rows is set. sequence_seeds: as in `data.text`. constraint: as in `forms.corrupted`.
  """

  batch_size: Count
  family: Literal["tiny", "easy", "medium", "hard"] = "easy"
  form: TaskForm = "insertion"
  rows: Count = 50_000
  eval_rows: Count | None = None
  seq_len: Count | None = None
  # Not in the repr, which is the fingerprint: neither moves a position.
  sequence_seeds: bool = dataclasses.field(default=False, repr=False)
  constraint: bool = dataclasses.field(default=False, repr=False)

  def __post_init__(self):
    check_constraint(self.constraint, self.form)
    needed = FAMILIES[self.family].seq_len
    if self.seq_len is None:
      object.__setattr__(self, "seq_len", needed)
    if self.seq_len < needed:
      raise ConfigError(f"data.seq_len = {self.seq_len}: {self.family} graphs need {needed}")

  @property
  def star(self) -> StarFamily:
    return FAMILIES[self.family]

  @property
  def special_tokens(self) -> SpecialTokens:
    return SpecialTokens.after(self.star.num_nodes, NAMES)

  @property
  def vocab_size(self) -> int:
    return self.star.num_nodes + len(NAMES)

  @property
  def longest_answer(self) -> int:
    return 2 * (self.star.max_path - 1)

  def fingerprint(self, split: str) -> str:
    return f"star graphs {self}"

  def num_rows(self, split: str) -> int:
    return (
      self.rows if split == "train" else self.eval_rows or {"validation": 100, "test": 5_000}[split]
    )

  def random_access(self, split: str, seed: int) -> "Graphs":
    return Graphs(self, split, seed)


class Graphs:
  """Random access to problems, made when read."""

  def __init__(self, cfg: StarGraphData, split: str, seed: int):
    self.cfg, self.split, self.seed = cfg, split, seed

  def __len__(self) -> int:
    return self.cfg.num_rows(self.split)

  def graph(self, index: int) -> Graph:
    return self.cfg.star.generate(
      np.random.default_rng([self.seed, SPLIT_SEEDS[self.split], int(index)])
    )

  def __getitem__(self, index: int) -> Problem:
    return problem(self.graph(index))
