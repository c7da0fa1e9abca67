"""The properties of lexinvariant models (docs/specs/lexinvariant.md, section 9) on a tiny decoder.

The row law, known answers, tilings and shardings are tested in tests/kernels/test_random_head.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config import ConfigError
from jaxlm.data.bigram import Bigram
from jaxlm.data.ciphers import encipher, full_cipher, inverse, move_rows
from jaxlm.evaluation.bayes_mixture import mixture, regret_bound
from jaxlm.evaluation.perplexity import evaluate
from jaxlm.evaluation.tables import averaged_log_prob
from jaxlm.kernels.random_head import keyed_rows
from jaxlm.layers.attention import AttentionConfig
from jaxlm.layers.embedding import EmbeddingConfig
from jaxlm.layers.lexinvariant import Lexicon, LexinvariantConfig, first_occurrence, lexicon_of
from jaxlm.layers.mlp import MLPConfig
from jaxlm.layers.positions.t5 import T5Bias
from jaxlm.models.decoder import DecoderConfig

V, D, B, T = 12, 16, 3, 10
RNG = np.random.default_rng(0)
X = RNG.integers(0, V, (B, T + 1)).astype(np.int32)
IDS, TARGETS = X[:, :-1], X[:, 1:]
PI = np.stack([full_cipher(V, RNG) for _ in range(B)])
SEEDS = jnp.asarray(RNG.integers(0, 2**32, (B, 2), dtype=np.uint32))


def decoder(**embedding):
  return DecoderConfig(
    vocab_size=V,
    d_model=D,
    num_layers=1,
    mixer=AttentionConfig(2),
    position=T5Bias(8, 16),
    mlp=MLPConfig(32),
    embedding=LexinvariantConfig(**embedding),
  )


def init(cfg):
  params = cfg.build().init(jax.random.key(0), jnp.asarray(IDS))["params"]
  params = jax.tree.map(
    lambda p: p.unbox() if hasattr(p, "unbox") else p, params, is_leaf=lambda p: hasattr(p, "unbox")
  )
  return jax.tree.map(
    lambda p: p + 0.2 * jax.random.normal(jax.random.key(p.size), p.shape), params
  )


def score(cfg, params, ids, targets, lexicon=None, segments=None):
  f = jax.jit(
    lambda p, x, y, s, l: cfg.build().apply({"params": p}, x, y, s, None, l, method="score")
  )
  return f(params, jnp.asarray(ids), jnp.asarray(targets), segments, lexicon)


def test_a_permutation_of_ids_and_rows_together_changes_nothing_and_of_ids_alone_does():
  cfg = decoder()
  params = init(cfg)
  table = np.asarray(keyed_rows(SEEDS[:, None], jnp.arange(V)[None], D))
  plain = score(cfg, params, IDS, TARGETS, Lexicon(table_BVD=jnp.asarray(table)))
  coded = encipher(IDS, PI), encipher(TARGETS, PI)
  moved = score(cfg, params, *coded, Lexicon(table_BVD=jnp.asarray(move_rows(table, PI))))
  np.testing.assert_allclose(moved.log_prob_BT, plain.log_prob_BT, atol=1e-5)
  alone = score(cfg, params, *coded, Lexicon(table_BVD=jnp.asarray(table)))
  assert abs(float(jnp.mean(alone.log_prob_BT - plain.log_prob_BT))) > 1e-3
  # Keyed: the table of the plain text read at pi^-1 of the ciphered one.
  keyed = score(
    cfg, params, encipher(coded[0], inverse(PI)), encipher(coded[1], inverse(PI)), Lexicon(SEEDS)
  )
  np.testing.assert_allclose(keyed.log_prob_BT, plain.log_prob_BT, atol=1e-5)


def test_after_local_remap_a_ciphered_text_gives_the_same_bits():
  cfg = decoder(remap=True)
  params = init(cfg)
  plain = score(cfg, params, IDS, TARGETS, Lexicon(SEEDS))
  coded = score(cfg, params, encipher(IDS, PI), encipher(TARGETS, PI), Lexicon(SEEDS))
  np.testing.assert_array_equal(coded.log_prob_BT, plain.log_prob_BT)
  assert np.isfinite(plain.log_prob_BT).all()


def test_ciphered_texts_cost_the_same_in_law():
  cfg, n = decoder(), 2000
  params = init(cfg)

  def repeat(x):
    return np.broadcast_to(x[:1], (n, T))

  def seeds(start):
    return Lexicon(
      jnp.asarray(np.stack([np.full(n, 5), np.arange(start, start + n)], 1), jnp.uint32)
    )

  def loss(ids, targets, start):
    return -np.asarray(
      score(cfg, params, repeat(ids), repeat(targets), seeds(start)).log_prob_BT, np.float64
    ).mean(1)

  a, b = loss(IDS, TARGETS, 0), loss(encipher(IDS, PI), encipher(TARGETS, PI), n)
  assert abs(a.mean() - b.mean()) < 4 * np.sqrt(a.var() / n + b.var() / n)
  grid = np.sort(np.concatenate([a, b]))
  distance = (
    np.abs(
      np.searchsorted(np.sort(a), grid, "right") - np.searchsorted(np.sort(b), grid, "right")
    ).max()
    / n
  )
  assert 2 * np.exp(-2 * distance**2 * n / 2) > 1e-3  # Kolmogorov and Smirnov's tail


def test_rows_of_tokens_that_were_not_seen_do_not_reach_the_states_and_are_exchangeable():
  cfg = decoder()
  params = init(cfg)
  ids = IDS % 6  # 6 .. 11 never occur
  table = np.asarray(keyed_rows(SEEDS[:, None], jnp.arange(V)[None], D))
  other = table.copy()
  other[:, 6:] = table[:, 6:][:, ::-1]
  logits = jax.jit(
    lambda t: cfg.build().apply(
      {"params": params}, jnp.asarray(ids), None, None, Lexicon(table_BVD=t)
    )
  )
  a, b = np.asarray(logits(jnp.asarray(table))), np.asarray(logits(jnp.asarray(other)))
  np.testing.assert_array_equal(a[..., :6], b[..., :6])
  np.testing.assert_allclose(a[..., 6:], b[..., 6:][..., ::-1], atol=1e-6)
  n = 1000
  seeds = Lexicon(jnp.asarray(np.stack([np.full(n, 9), np.arange(n)], 1), jnp.uint32))
  many = jax.jit(
    lambda l: cfg.build().apply(
      {"params": params}, jnp.asarray(np.repeat(ids[:1], n, 0)), None, None, l
    )
  )
  p = np.asarray(jax.nn.softmax(many(seeds)[:, -1]), np.float64)[:, 6:]
  assert np.abs(p.mean(0) - p.mean()).max() < 5 * p.std() / n**0.5


def test_semi_lexinvariant_rows_that_are_random_in_every_sequence_have_no_gradient():
  from jaxlm.kernels.random_head import random_mask

  cfg = decoder(random_prob=0.6)
  params = init(cfg)
  lexicon = Lexicon(SEEDS, train=True)

  def f(p):
    return jnp.sum(
      cfg.build()
      .apply(
        {"params": p}, jnp.asarray(IDS), jnp.asarray(TARGETS), None, None, lexicon, method="score"
      )
      .log_prob_BT
    )

  grad = np.asarray(jax.jit(jax.grad(f))(params)["embed"]["embedding"])
  always = np.asarray(random_mask(SEEDS[:, None], jnp.arange(V)[None], 0.6)).all(0)
  assert always.any() and not always.all()
  assert not grad[always].any() and (np.abs(grad[~always]).sum(1) > 0).all()
  # In evaluation every row is learned, whatever the seed.
  a, b = (score(cfg, params, IDS, TARGETS, Lexicon(s)).log_prob_BT for s in (SEEDS, SEEDS + 1))
  np.testing.assert_array_equal(a, b)


def test_a_table_has_no_gradient_though_the_loss_depends_on_it():
  cfg = decoder()
  params = init(cfg)
  f = jax.jit(
    jax.value_and_grad(
      lambda table: jnp.sum(
        cfg.build()
        .apply(
          {"params": params},
          jnp.asarray(IDS),
          jnp.asarray(TARGETS),
          None,
          None,
          Lexicon(table_BVD=table),
          method="score",
        )
        .log_prob_BT
      )
    )
  )
  table = keyed_rows(SEEDS[:, None], jnp.arange(V)[None], D)
  (loss, grad), (other, _) = f(table), f(table[:, ::-1])
  assert not np.asarray(grad).any() and abs(float(loss - other)) > 1e-3


def test_a_lexinvariant_model_has_no_vocabulary_sized_parameter():
  assert not any(
    V in leaf.shape for leaf in jax.tree.leaves(init(decoder(learned_scale=True, out_proj=True)))
  )


def test_local_numbers_start_anew_in_each_document_and_padding_counts_for_nothing():
  ids = jnp.asarray([[5, 7, 5, 0, 5, 7, 0, 0], [0, 3, 0, 3, 3, 1, 0, 0]])
  segments = jnp.asarray([[1, 1, 1, 2, 2, 2, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1]])
  loc, first = first_occurrence(ids, segments)
  np.testing.assert_array_equal(loc, [[0, 1, 0, 0, 1, 2, -1, -1], [0, 1, 0, 1, 1, 2, 0, 0]])
  np.testing.assert_array_equal(first.sum(1), [5, 3])


@pytest.mark.parametrize("options", [{}, dict(remap=True), dict(output="seen_or_new")], ids=str)
def test_padding_and_neighbours_in_a_row_do_not_change_a_document(options):
  cfg = decoder(**options)
  params = init(cfg)
  alone = score(
    cfg, params, IDS[:, :6], TARGETS[:, :6], Lexicon(SEEDS), jnp.ones((B, 6), jnp.int32)
  )
  segments = jnp.asarray([[1] * 6 + [2] * 4, [1] * 6 + [0] * 4, [1] * 6 + [2, 2, 3, 3]])
  packed = score(cfg, params, IDS, TARGETS, Lexicon(SEEDS), segments)
  np.testing.assert_allclose(packed.log_prob_BT[:, :6], alone.log_prob_BT, atol=2e-5)


def test_all_logits_agree_with_the_score():
  for options in ({}, dict(output="seen_or_new")):
    cfg = decoder(**options)
    params = init(cfg)
    logits = cfg.build().apply({"params": params}, jnp.asarray(IDS), None, None, Lexicon(SEEDS))
    want = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.asarray(TARGETS)[..., None], -1)[
      ..., 0
    ]
    np.testing.assert_allclose(
      score(cfg, params, IDS, TARGETS, Lexicon(SEEDS)).log_prob_BT, want, atol=2e-5
    )


def test_the_seen_or_new_output_is_invariant_without_averaging():
  cfg = decoder(output="seen_or_new", remap=True)
  params = init(cfg)
  a = score(cfg, params, IDS, TARGETS, Lexicon(SEEDS)).log_prob_BT
  b = score(cfg, params, encipher(IDS, PI), encipher(TARGETS, PI), Lexicon(SEEDS)).log_prob_BT
  np.testing.assert_array_equal(a, b)


def test_the_average_over_tables_never_costs_more_than_the_tables():
  cfg = decoder()
  params = init(cfg)
  batch = dict(
    tokens=jnp.asarray(IDS),
    targets=jnp.asarray(TARGETS),
    segment_ids=jnp.ones((B, T), jnp.int32),
    positions=jnp.broadcast_to(jnp.arange(T)[None], (B, T)),
    sequence_seeds=SEEDS,
  )
  tables = [
    score(
      cfg, params, IDS, TARGETS, lexicon_of(cfg, batch, train=False, table=k)["lexicon"]
    ).log_prob_BT
    for k in range(3)
  ]
  got = averaged_log_prob(cfg, params, batch, 3)
  np.testing.assert_allclose(got, jax.nn.logsumexp(jnp.stack(tables), 0) - np.log(3), atol=2e-5)
  assert (got >= jnp.mean(jnp.stack(tables), 0) - 1e-6).all()
  host = {k: np.asarray(v) for k, v in batch.items()} | {
    "loss_weights": np.ones((B, T), np.float32)
  }
  found = evaluate(cfg, params, [host], length=T, num_tables=3)
  np.testing.assert_allclose(found.loss, -float(jnp.mean(got)), atol=1e-5)
  learned = dataclasses.replace(cfg, embedding=EmbeddingConfig())
  with pytest.raises(ConfigError, match="one table"):
    evaluate(learned, params, [host], length=T, num_tables=3)


def test_the_exact_mixture_keeps_its_regret_bound_and_sums_to_one():
  rng = np.random.default_rng(1)
  source = Bigram(rng.dirichlet(np.ones(4)), rng.dirichlet(np.full(4, 0.3), 4))
  plain = source.sample(20, 50, rng)
  pi = np.stack([full_cipher(4, rng) for _ in range(20)])
  exact = mixture(source, encipher(plain, pi))
  regret = np.cumsum(source.log_prob(plain) - exact.log_prob_NT, axis=1)
  assert regret.max() <= regret_bound(4) + 1e-9
  assert regret[:, -1].mean() > 0.5
  np.testing.assert_allclose(exact.predictive_NTV.sum(-1), 1, atol=1e-12)
  np.testing.assert_allclose(
    exact.log_prob_NT,
    np.log(np.take_along_axis(exact.predictive_NTV, encipher(plain, pi)[..., None], -1))[..., 0],
    atol=1e-9,
  )


def test_impossible_choices_are_refused():
  with pytest.raises(ConfigError, match="exclude each other"):
    LexinvariantConfig(random_prob=0.2, output="seen_or_new")
  with pytest.raises(ConfigError, match="exclude each other"):
    LexinvariantConfig(output="seen_or_new", absent="analytic")
  with pytest.raises(ConfigError, match="identity"):
    LexinvariantConfig(random_prob=0.2, remap=True)
  with pytest.raises(ConfigError, match="vocab_size = 130"):
    LexinvariantConfig(absent="analytic").build(130, D, "float32")
  with pytest.raises(ConfigError, match="segment_ids"):
    decoder(remap=True).build().init(
      jax.random.key(0), jnp.asarray(IDS), None, jnp.zeros((B, T), jnp.int32)
    )
  with pytest.raises(ConfigError, match="sequence_seeds"):
    lexicon_of(decoder(), {}, train=True)


def test_the_analytic_remainder_is_refused_where_it_is_wrong():
  cfg = dataclasses.replace(decoder(absent="analytic", learned_scale=True), vocab_size=2048)
  params = init(cfg)

  def call(p):
    return (
      cfg.build()
      .apply(
        {"params": p},
        jnp.asarray(IDS),
        jnp.asarray(TARGETS),
        None,
        None,
        Lexicon(SEEDS),
        method="score",
      )
      .log_z_BT
    )

  def at(s):
    return params | {"embed": {"logit_scale": jnp.full(1, s)}}

  exact = dataclasses.replace(cfg, embedding=LexinvariantConfig(learned_scale=True))
  want = (
    exact.build()
    .apply(
      {"params": at(0.1)},
      jnp.asarray(IDS),
      jnp.asarray(TARGETS),
      None,
      None,
      Lexicon(SEEDS),
      method="score",
    )
    .log_z_BT
  )
  np.testing.assert_allclose(call(at(0.1)), want, atol=0.05)
  with pytest.raises(ConfigError, match="sigma"):
    call(at(3.0))
  assert np.isnan(jax.jit(call)(at(3.0))).all()
