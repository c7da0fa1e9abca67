"""Lexinvariant embeddings in networks other than the decoder: chosen by config, invariant in them,
refused where senseless.
"""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config import ConfigError
from jaxlm.data.ciphers import encipher, full_cipher, move_rows
from jaxlm.kernels.random_head import keyed_rows
from jaxlm.layers.lexinvariant import Lexicon
from jaxlm.models import MODELS
from jaxlm.training.config import check, load_config, run_config

CHARS = pathlib.Path(__file__).parents[2] / "configs" / "lexinvariant" / "chars.py"
V, D, B, T = 20, 16, 2, 12
RNG = np.random.default_rng(0)
IDS = RNG.integers(0, V, (B, T)).astype(np.int32)
TARGETS = np.roll(IDS, -1, axis=1)
PI = np.stack([full_cipher(V, RNG) for _ in range(B)])
SEEDS = jnp.asarray(RNG.integers(0, 2**32, (B, 2), dtype=np.uint32))
TABLE = np.asarray(keyed_rows(SEEDS[:, None], jnp.arange(V)[None], D))

INSERTION = dict(
  kind="insertion",
  vocab_size=V,
  d_model=D,
  num_layers=1,
  mixer=dict(kind="attention", num_heads=2, causal=False),
  tie_embeddings=True,
  embedding="lexinvariant",
)
HNET = dict(
  kind="hnet",
  layout="T1 [T1] T1",
  vocab_size=V,
  tie_embeddings=True,
  embedding="lexinvariant",
  stages=[
    dict(d_model=D, d_ff=2 * D, attention=dict(num_heads=2), router=dict(kind="pool", width=3))
  ]
  * 2,
)


def config(model, **changes):
  data = dict(kind="text", source="mini:en", seq_len=T, batch_size=B, sequence_seeds=True)
  return run_config(
    load_config(
      dict(
        model=model | changes,
        data=data,
        objective=dict(kind="next_token"),
        optimizer=dict(kind="adamw", learning_rate=1e-3),
        schedule=dict(kind="constant"),
        train=dict(steps=1),
      )
    )
  ).model


def init(model, *args):
  params = model.init(jax.random.key(0), *args)["params"]
  params = jax.tree.map(
    lambda p: p.unbox() if hasattr(p, "unbox") else p, params, is_leaf=lambda p: hasattr(p, "unbox")
  )
  return jax.tree.map(
    lambda p: p + 0.2 * jax.random.normal(jax.random.key(p.size), p.shape), params
  )


def moved(table=TABLE):
  return Lexicon(table_BVD=jnp.asarray(move_rows(table, PI)))


def test_an_insertion_network_is_invariant_and_reads_its_keyed_table():
  model = MODELS.build(INSERTION, "model").build()
  params = init(model, jnp.asarray(IDS))
  slots, missing = jnp.asarray([[1, 3, 3], [2, 5, 9]]), jnp.asarray(IDS[:, :3])
  segments = jnp.asarray(np.arange(T)[None] < np.array([[T], [T - 3]])).astype(jnp.int32)
  f = jax.jit(
    lambda ids, missing, lexicon: model.apply(
      {"params": params}, ids, slots, missing, segments, lexicon=lexicon, method="score"
    )
  )
  keyed = f(jnp.asarray(IDS), missing, Lexicon(SEEDS))
  given = f(jnp.asarray(IDS), missing, Lexicon(table_BVD=jnp.asarray(TABLE)))
  coded = f(encipher(jnp.asarray(IDS), PI), encipher(missing, PI), moved())
  for a, b in ((keyed, given), (keyed, coded)):
    np.testing.assert_allclose(a.log_z_BT, b.log_z_BT, atol=2e-5)
    np.testing.assert_allclose(a.target_BM, b.target_BM, atol=2e-5)
  logits, _ = model.apply({"params": params}, jnp.asarray(IDS), segments, lexicon=Lexicon(SEEDS))
  np.testing.assert_allclose(jax.nn.logsumexp(logits, -1), keyed.log_z_BT, atol=2e-5)
  assert not any(V in leaf.shape for leaf in jax.tree.leaves(params))


@pytest.mark.slow
def test_an_hnet_reads_bytes_through_random_rows():
  model = config(HNET).build()
  params = init(model, jnp.asarray(IDS))
  f = jax.jit(
    lambda ids, targets, lexicon: model.apply(
      {"params": params}, ids, targets, lexicon=lexicon, method="score"
    )
  )
  keyed = f(jnp.asarray(IDS), jnp.asarray(TARGETS), Lexicon(SEEDS)).log_prob_BT
  coded = f(encipher(jnp.asarray(IDS), PI), encipher(jnp.asarray(TARGETS), PI), moved()).log_prob_BT
  np.testing.assert_allclose(coded, keyed, atol=2e-5)
  other = f(jnp.asarray(IDS), jnp.asarray(TARGETS), Lexicon(SEEDS + 1)).log_prob_BT
  assert np.abs(np.asarray(other - keyed)).max() > 1e-2
  assert not any(V in leaf.shape for leaf in jax.tree.leaves(params))


def test_a_head_that_knows_tokens_by_identity_is_refused():
  for model in (INSERTION, HNET):
    with pytest.raises(ConfigError, match="tie_embeddings = True"):
      config(model, tie_embeddings=False)
  with pytest.raises(ConfigError, match="does not occur yet"):
    config(INSERTION, embedding=dict(kind="lexinvariant", remap=True))


@pytest.mark.parametrize(
  "tokenizer, size",
  [
    (dict(kind="bytes"), 257),
    (dict(kind="chars", vocab_size=100), 100),
    (dict(kind="trained_bpe", vocab_size=512), 512),
  ],
  ids=lambda x: str(x),
)
def test_every_tokenisation_is_a_choice_of_the_config(tokenizer, size):
  cfg = run_config(load_config(str(CHARS), {"data.tokenizer": tokenizer, "model.vocab_size": size}))
  check(cfg, 1)
  with pytest.raises(ConfigError, match=f"at least {size}"):
    check(dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, vocab_size=size - 1)), 1)


def test_star_graphs_bring_a_seed_for_every_graph_and_are_the_same_graphs():
  from jaxlm.data.tasks.star_graphs import StarGraphData

  plain, seeded = (
    next(iter(StarGraphData(batch_size=4, sequence_seeds=on).build("train", seed=0)))
    for on in (False, True)
  )
  np.testing.assert_array_equal(plain["tokens"], seeded["tokens"])
  assert (
    seeded["sequence_seeds"].shape == (4, 2)
    and len(np.unique(seeded["sequence_seeds"], axis=0)) == 4
  )
