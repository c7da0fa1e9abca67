"""Function tokens, the loss by transition, sparse dictionaries and the graph of types and features."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.analysis import features as ft
from jaxlm.config import ConfigError
from jaxlm.data.tokenizers.bytes import ByteTokenizerConfig
from jaxlm.evaluation import transitions as tr


def test_the_smallest_set_that_reaches_forty_per_cent():
  np.testing.assert_array_equal(tr.function_tokens([5, 3, 2]), [True, False, False])
  np.testing.assert_array_equal(tr.function_tokens([2, 3, 5], 0.6), [False, True, True])
  np.testing.assert_array_equal(tr.function_tokens([4, 6], 0.6), [False, True])
  with pytest.raises(ConfigError, match="no token was counted"):
    tr.function_tokens([0, 0])


def test_counts_of_a_small_text_by_hand():
  """a b a c a: a is the function token."""
  tokens, targets = np.array([[0, 1, 0, 2]]), np.array([[1, 0, 2, 0]])
  nll = np.array([[1.0, 2.0, 3.0, 6.0]])
  found = tr.by_class(nll, np.ones((1, 4)), tokens, targets, [True, False, False])
  assert found["f->c"][:3] == (2.0, 4 / 12, 0.5) and found["c->f"][:3] == (4.0, 8 / 12, 0.5)
  np.testing.assert_allclose(found["f->c"].unigram, np.log(2))
  assert found["c->f"].unigram == 0 and found["f->f"].tokens == 0
  rng = np.random.default_rng(0)
  nll, w = rng.random((3, 9)), rng.integers(0, 2, (3, 9))
  tokens, targets = rng.integers(0, 4, (2, 3, 9))
  found = tr.by_class(nll, w, tokens, targets, [True, True, False, False])
  whole = sum(p.tokens * p.loss for p in found.values() if p.tokens)
  np.testing.assert_allclose(whole, (nll * w).sum() / w.sum(), rtol=1e-9)
  np.testing.assert_allclose(sum(p.share for p in found.values()), 1)


def test_the_half_life_and_a_tokenizer_of_letters():
  assert tr.half_life([0, 10, 20], [4.0, 3.0, 1.0]) == 12.5
  assert np.isnan(tr.half_life([0, 1], [1.0, 2.0]))
  with pytest.raises(ConfigError, match="are letters, not words"):
    tr.check_tokenizer(ByteTokenizerConfig().load())


def test_both_signs_of_the_identity_reconstruct_exactly():
  eye = jnp.eye(4)
  both = jnp.concatenate([eye, -eye])
  d = ft.Dictionary(both.T, both, jnp.zeros(4))
  h = jnp.asarray(np.random.default_rng(0).standard_normal((5, 4)), jnp.float32)
  f = ft.encode(d, h, 4)
  np.testing.assert_allclose(ft.decode(d, f), h, atol=1e-6)
  assert int((f > 0).sum(1).max()) == 4 and int((ft.encode(d, h, 1) > 0).sum(1).max()) == 1


def test_a_dictionary_learns_planted_directions():
  rng = np.random.default_rng(0)
  atoms = np.linalg.qr(rng.standard_normal((8, 8)))[0]
  h = atoms[rng.integers(0, 8, 2000)] * rng.uniform(1, 2, (2000, 1))
  d = ft.train(ft.Training(width=16, k=1, steps=300, batch=128, learning_rate=0.01), h, 0)
  x = jnp.asarray(h, jnp.float32)
  error = np.square(np.asarray(ft.decode(d, ft.encode(d, x, 1))) - h).sum(1).mean()
  assert error < 0.1 * np.square(h - h.mean(0)).sum(1).mean()
  np.testing.assert_allclose(np.linalg.norm(d.w_d_FD, axis=1), 1, atol=1e-5)


def test_equal_features_do_not_exceed_k_and_dead_ones_are_revived_apart():
  h = jnp.asarray(np.random.default_rng(0).standard_normal((64, 4)), jnp.float32)
  same = jnp.ones((6, 4)) / 2
  assert int((ft.encode(ft.Dictionary(same.T, same, jnp.zeros(4)), h, 2) > 0).sum(1).max()) == 2
  how = ft.Training(width=32, k=1, steps=1, batch=64, patience=1)  # one step: most are unused
  rows = np.asarray(ft.train(how, h, 0).w_d_FD)
  alike = rows @ rows.T - 2 * np.eye(len(rows))
  assert alike.max() < 1 - 1e-6


def test_the_graph_of_a_hand_made_table_and_its_coverage():
  active = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0]], bool)
  g = ft.graph(active, [2, 2, 0], 3)
  np.testing.assert_array_equal(g.sum(1), [2, 0, 2])
  np.testing.assert_allclose(ft.coverage(g, [2, 0, 1]), [2 / 3, 1, 1])
  at = ft.equal_occurrences([0, 0, 0, 1, 2, 2], 2, np.random.default_rng(0))
  assert len(at) == 4 and set(np.array([0, 0, 0, 1, 2, 2])[at]) == {0, 2}
