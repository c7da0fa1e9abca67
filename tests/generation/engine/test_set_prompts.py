"""Set prompts: invariance for any weights, layouts by hand, and masks against brute force."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config import ConfigError
from jaxlm.generation.engine.set_prompts import SetPrompt, SetPrompts, Unordered, lay_out
from jaxlm.generation.left_to_right import LeftToRight
from jaxlm.generation.sampling import GREEDY
from jaxlm.kernels.attention import BlockDiffusionMask, SetMask, TreeMask, attention
from tests.generation.engine import toys

MEMBERS = ([4, 5], [6], [7, 8, 9])
PARTS = [1, 2, Unordered(MEMBERS), 3]


def test_the_layout_of_a_prompt_by_hand():
  found = lay_out(PARTS, canonical=False)
  assert found.tokens_T.tolist() == [1, 2, 4, 5, 6, 7, 8, 9, 3]
  assert found.positions_T.tolist() == [0, 1, 2, 3, 2, 2, 3, 4, 5] and found.next_position == 6
  assert found.hidden_TR2[:, 0].tolist() == [
    [0, 0], [0, 0], [2, 2], [2, 2], [2, 4], [2, 5], [2, 5], [2, 5], [0, 0]
  ]  # fmt: skip
  assert lay_out(PARTS, "sum").positions_T[-1] == 8 and lay_out(PARTS, "mean").positions_T[-1] == 4
  nested = lay_out([1, Unordered(([2, Unordered(([3], [4]))], [5]))], canonical=False)
  assert nested.hidden_TR2.tolist()[3] == [[1, 1], [2, 3]]  # 4 does not see 3
  assert nested.hidden_TR2.tolist()[4][0] == [1, 4]  # 5 sees nothing of the first member
  # Members are sorted whatever their sets hold, and whatever order those are in.
  inner = (Unordered(([5],)), Unordered(([6], [5])), Unordered(([5, 6],)))
  wanted = lay_out([1, Unordered(tuple([s] for s in inner))])
  for order in itertools.permutations(inner):
    turned = [Unordered(s.members[::-1]) for s in order]
    found = lay_out([1, Unordered(tuple([s] for s in turned))])
    for a, b in zip(found, wanted):
      np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def model():
  return toys.model()


def logits(config, params, parts, canonical=False):
  p = lay_out(parts, canonical=canonical)
  return np.asarray(
    _whole(params, p.tokens_T[None], p.positions_T[None], p.hidden_TR2[None], config)
  )[0, -1]


def _whole(params, tokens, positions, hidden, config):
  return _jitted(
    params, jnp.asarray(tokens), jnp.asarray(positions), SetMask(jnp.asarray(hidden)), config
  )


def _apply(params, tokens_BT, positions_BT, structure, config):
  return config.build().apply(
    {"params": params}, tokens_BT, None, positions_BT, structure=structure
  )


_jitted = jax.jit(_apply, static_argnums=4)


def test_no_order_of_the_members_changes_a_logit(model):
  config, params = model
  orders = [[1, 2, Unordered(order), 3] for order in itertools.permutations(MEMBERS)]
  plain = [logits(config, params, order) for order in orders]
  for other in plain[1:]:
    np.testing.assert_allclose(other, plain[0], atol=2e-5)  # sums in another order; logits near 10
  sorted_ = [logits(config, params, order, canonical=True) for order in orders]
  for other in sorted_[1:]:
    np.testing.assert_array_equal(other, sorted_[0])
  ordered = logits(config, params, [1, 2, 4, 5, 6, 7, 8, 9, 3])
  assert np.abs(ordered - plain[0]).max() > 1e-2  # the set is not the sequence


def test_generated_tokens_go_on_behind_the_set(model):
  """The engine against the whole pass, token by token; plain prompts decode as ever."""
  config, params = model
  engine = SetPrompts(config, GREEDY)
  plain, found = engine.generate(params, [[3, 1, 4], SetPrompt(PARTS)], 4).answers
  assert (
    plain.tolist()
    == LeftToRight(config, GREEDY).generate(params, [[3, 1, 4]], 4).answers[0].tolist()
  )
  parts, want = list(PARTS), []
  for _ in range(4):
    want.append(int(np.argmax(logits(config, params, parts, canonical=True))))
    parts.append(want[-1])
  assert found.tolist() == want


def test_what_cannot_be_meant_is_refused_or_said(model):
  with pytest.raises(ConfigError, match="without members"):
    lay_out([1, Unordered(())])
  with pytest.raises(ConfigError, match="known: max, mean, sum"):
    lay_out([1], "median")
  learned, _ = toys.model(position=dict(kind="learned", max_len=64))
  with pytest.warns(UserWarning, match="learned absolute positions"):
    SetPrompts(learned)
  alibi, _ = toys.model(position="alibi")
  with pytest.raises(ConfigError, match="goes by the order"):
    SetPrompts(alibi)


def brute(structure, T, S, rng):
  q, k, v = (rng.normal(size=(1, n, 2, 4)).astype(np.float32) for n in (T, S, S))
  i, j = np.meshgrid(np.arange(T), np.arange(S), indexing="ij")
  seen = structure(i, j)
  s = np.einsum("bthd,bshd->bhts", q, k) / 2
  s = np.where(seen, s, -np.inf)
  p = np.exp(s - s.max(-1, keepdims=True))
  p /= p.sum(-1, keepdims=True)
  return (q, k, v), np.einsum("bhts,bshd->bthd", p, v)


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_structures_are_the_masks_that_they_describe(implementation):
  rng = np.random.default_rng(0)
  parents = [-1, 0, 0, 1, 3, 2]
  ancestors = []
  for n, parent in enumerate(parents):
    ancestors.append({n} | (ancestors[parent] if parent >= 0 else set()))
  words = np.asarray([[[sum(1 << a for a in ancestors[n])] for n in range(6)]], np.uint32)
  T, block = 6, 4
  hidden = lay_out(PARTS[1:], canonical=False).hidden_TR2[None]
  cases = [
    (  # three tokens before the tree
      TreeMask(jnp.asarray([3]), jnp.asarray(np.pad(words, ((0, 0), (3, 0), (0, 0))))),
      lambda i, j: (
        (j < 3) & (j <= i)
        | np.vectorize(lambda a, b: a >= 3 and b >= 3 and b - 3 in ancestors[a - 3])(i, j)
      ),
      dict(causal=True),
      9,
    ),
    (
      SetMask(jnp.asarray(hidden)),
      lambda i, j: (j <= i) & ~((j >= hidden[0, i, 0, 0]) & (j < hidden[0, i, 0, 1])),
      dict(causal=True),
      8,
    ),
    (
      BlockDiffusionMask(jnp.asarray([block]), jnp.asarray([T])),
      lambda i, j: np.where(
        i < T,
        np.where(j < T, i // block == j // block, (j - T) // block < i // block),
        (j >= T) & ((j - T) // block <= (i - T) // block),
      ),
      dict(causal=False),
      12,
    ),
  ]
  for structure, rule, options, length in cases:
    (q, k, v), want = brute(rule, length, length, rng)
    got = attention(q, k, v, structure=structure, implementation=implementation, **options)
    np.testing.assert_allclose(got, want, atol=1e-5)
  with pytest.raises(NotImplementedError, match="structure"):
    attention(q, k, v, structure=structure, causal=False, implementation="cudnn")
