"""Draft trees: what is accepted follows the target; the greedy tree is the best of its size."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config import ConfigError
from jaxlm.generation import Sampling
from jaxlm.generation.engine.dyspec import DySpec, DySpecByLayer
from jaxlm.generation.engine.rsd import StochasticBeam, WithoutReplacement, WithReplacement
from jaxlm.generation.engine.trees import Tree, TreeSpeculative, reject
from jaxlm.generation.left_to_right import LeftToRight
from jaxlm.generation.sampling import GREEDY
from tests.generation.engine import toys

PROMPTS = [[3, 1, 4, 1, 3], [2, 1], [4, 2, 4, 1], [1]]
DRAFTINGS = {
  "rsd_c": WithoutReplacement((2, 2)),
  "rsd_s": StochasticBeam(width=3, depth=2),
  "replacement": WithReplacement((2, 1)),
  "dyspec": DySpec(num_nodes=5, max_depth=3),
  "dyspec_layers": DySpecByLayer(width=3, depth=2, max_children=2),
}


@pytest.fixture(scope="module")
def pair():
  config, target = toys.model(vocab_size=5, d_model=8, scale=6)
  _, draft = toys.model(vocab_size=5, d_model=8, scale=6, seed=1)
  return config, {"target": target, "draft": draft}


@pytest.mark.parametrize("num_children", [1, 2, 3])
def test_recursive_rejection_is_exact_by_enumeration(num_children):
  """All draws without replacement of K children of six symbols, each with its exact probability."""
  p = np.array([0.35, 0.05, 0.2, 0.1, 0.25, 0.05])
  q = np.array([0.1, 0.3, 0.15, 0.25, 0.05, 0.15])
  total = np.zeros(6)
  for children in itertools.permutations(range(6), num_children):
    weight, rest = 1.0, q.copy()
    for x in children:
      weight *= rest[x] / rest.sum()
      rest[x] = 0
    total += weight * chosen(p, q, children)
  np.testing.assert_allclose(total, p, atol=1e-12)


def chosen(p, q, children):
  """The distribution of the chosen symbol given the children: the rule, in float64."""
  out, alive, p, q = np.zeros(len(p)), 1.0, p.copy(), q.copy()
  for x in children:
    accept = min(1.0, p[x] / q[x])
    out[x] += alive * accept
    alive *= 1 - accept
    rest = np.maximum(p - q, 0)
    p = rest / rest.sum() if rest.sum() > 0 else p
    q[x] = 0
    q /= q.sum()
  return out + alive * p


def test_the_engine_follows_the_rule_of_the_enumeration():
  """5,000 rows with the same two children; chi-square, false alarm 1e-3, seed fixed."""
  p = np.array([0.35, 0.05, 0.2, 0.1, 0.25, 0.05], np.float32)
  q = np.array([0.1, 0.3, 0.15, 0.25, 0.05, 0.15], np.float32)
  B, children = 5_000, (1, 3)
  tree = Tree.root(jnp.zeros(B, jnp.int32), jnp.tile(q, (B, 1)), 2)
  tree = tree.add(
    1,
    jnp.tile(jnp.asarray([children]), (B, 1)),
    jnp.zeros((B, 2), jnp.int32),
    jnp.ones((B, 2), bool),
  )
  p_BMV = jnp.tile(p, (B, 3, 1))
  keys_B = jax.random.split(jax.random.key(0), B)
  path_BK, accepted_B, own_B = jax.jit(reject, static_argnums=(3, 4))(keys_B, tree, p_BMV, 2, False)
  first_B = np.where(
    np.asarray(accepted_B) > 0,
    np.asarray(tree.tokens_BM)[np.arange(B), np.asarray(path_BK)[:, 1]],
    own_B,
  )
  want = chosen(p.astype(float), q.astype(float), children)
  assert toys.chi_square(first_B[:, None], {(i,): float(x) for i, x in enumerate(want)}) > 1e-3


SLOW = [n if n == "rsd_s" else pytest.param(n, marks=pytest.mark.slow) for n in DRAFTINGS]


@pytest.mark.parametrize("name", SLOW)
def test_sampled_tokens_follow_the_target_and_greedy_ones_are_its_own(pair, name):
  """Chi-square over all 3-token continuations; false alarm 1e-3, seed fixed."""
  config, params = pair
  engine = TreeSpeculative(config, config, Sampling(), drafting=DRAFTINGS[name])
  found = engine.generate(params, [[1, 2]] * 3000, 3, seed=11).answers
  assert toys.chi_square(found, toys.distribution(config, params["target"], [1, 2], 3)) > 1e-3
  greedy = TreeSpeculative(config, config, GREEDY, drafting=DRAFTINGS[name])
  alone = LeftToRight(config, GREEDY).generate(params["target"], PROMPTS, 9).answers
  assert [a.tolist() for a in greedy.generate(params, PROMPTS, 9).answers] == [
    a.tolist() for a in alone
  ]


@pytest.mark.slow
def test_a_row_draws_the_same_whatever_is_beside_it(pair):
  config, params = pair
  engine = TreeSpeculative(config, config, Sampling(), drafting=DRAFTINGS["rsd_c"])
  together = engine.generate(params, PROMPTS, 6, seed=3).answers
  alone = engine.generate(params, PROMPTS[:1], 6, seed=3).answers
  assert together[0].tolist() == alone[0].tolist()


def test_the_heap_grows_the_best_tree_of_its_size(pair):
  """Against all prefix-closed sets of n nodes over the draft's path probabilities."""
  config, params = pair
  V, n, depth = 5, 4, 3
  prompt = [1, 2]
  paths = {
    path: p
    for length in range(1, depth + 1)
    for path, p in toys.distribution(config, params["draft"], prompt, length).items()
  }
  best = {(): 0.0}
  trees = {frozenset()}
  for _ in range(n):
    trees = {
      tree | {child}
      for tree in trees
      for parent in [(), *tree]
      for child in [(*parent, v) for v in range(V)]
      if child in paths and child not in tree
    }
  best = max(sum(paths[node] for node in tree) for tree in trees)
  engine = TreeSpeculative(config, config, GREEDY, drafting=DySpec(num_nodes=n, max_depth=depth))
  carry = next(iter(engine.dispatches(params, engine.single(prompt[:1], 4))))
  # The row's newest token is drawn from the target: put the prompt's last in its place.
  last = jnp.asarray(prompt[1:])
  carry = carry._replace(
    pending_B2=jnp.stack([last, last], 1), committed=carry.committed._replace(last_B=last)
  )
  tree, _ = engine.grow(params["draft"], carry, jax.random.split(jax.random.key(0), 1))
  tokens, parents = np.asarray(tree.tokens_BM)[0], np.asarray(tree.parent_BM)[0]

  def path(node):
    return () if node == 0 else (*path(parents[node]), int(tokens[node]))

  grown = [path(node) for node in range(1, n + 1)]
  assert len(set(grown)) == n
  assert sum(paths[node] for node in grown) == pytest.approx(best, rel=1e-4)


@pytest.mark.parametrize(
  ("fields", "said"),
  [
    (dict(mixer=dict(kind="gla", num_heads=2, chunk=16), position="none"), "knows no branches"),
    (dict(position="alibi"), "goes by the order of the tokens"),
    (dict(mixer=dict(kind="attention", num_heads=2, window=4)), "has a window"),
  ],
)
def test_a_target_that_cannot_keep_a_branch_is_refused(pair, fields, said):
  config, _ = toys.model(vocab_size=5, d_model=8, **fields)
  with pytest.raises(ConfigError, match=said):
    TreeSpeculative(config, pair[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAFTINGS)
def test_100_000_draws_follow_the_target(pair, name):
  """Chi-square over all continuations of 3 tokens, of which the first is the target's own draw and the
  others come from trees; false alarm 1e-3, seed fixed.
  """
  config, params = pair
  engine = TreeSpeculative(config, config, Sampling(), drafting=DRAFTINGS[name])
  found = engine.generate(params, [[1, 2]] * 100_000, 3, batch_size=20_000, seed=2).answers
  wanted = toys.distribution(config, params["target"], [1, 2], 3)
  assert toys.chi_square(found, wanted) > 1e-3
