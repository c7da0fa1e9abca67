"""The probes of ciphered text, on states that are known to hold the answer or not to."""

import numpy as np
import pytest

from jaxlm.data.ciphers import draw_ciphers, encipher, inverse
from jaxlm.evaluation.probes import Probing, ciphered, probe_accuracy, seen_counts, train_probes
from jaxlm.layers.attention import AttentionConfig
from jaxlm.layers.lexinvariant import LexinvariantConfig
from jaxlm.layers.mlp import MLPConfig
from jaxlm.models.decoder import DecoderConfig

CHARACTERS = list(" abcde.")
V, B, T = 9, 4, 16


def test_partial_ciphers_leave_all_but_letters_alone_and_specials_never_move():
  rng = np.random.default_rng(0)
  full, partial = (draw_ciphers(CHARACTERS, V, 50, rng, partial=p) for p in (False, True))
  for cipher in (full, partial):
    np.testing.assert_array_equal(
      np.sort(cipher, axis=1), np.broadcast_to(np.arange(V), cipher.shape)
    )
    assert (cipher[:, 7:] == [7, 8]).all()
  assert (
    (partial[:, [0, 6]] == [0, 6]).all() and (full[:, 0] != 0).any() and (partial[:, 1] != 1).any()
  )


def test_counts_are_of_the_prefix():
  tokens = np.array([[1, 2, 1, 0]])
  np.testing.assert_array_equal(
    seen_counts(tokens, np.array([[0, 2]]), 3), [[[0, 1, 0], [0, 2, 1]]]
  )


def texts(rng, cycle):
  """Text that says which symbol is which: a cycle through them all, from a random place in it."""
  while True:
    start = rng.integers(0, len(cycle), (B, 1))
    tokens = np.asarray(cycle)[(start + np.arange(T)[None]) % len(cycle)].astype(np.int32)
    yield dict(
      tokens=tokens,
      targets=np.roll(tokens, -1, 1),
      segment_ids=np.ones((B, T), np.int32),
      positions=np.broadcast_to(np.arange(T, dtype=np.int32), (B, T)),
      loss_weights=np.ones((B, T), np.float32),
      sequence_seeds=rng.integers(0, 2**32, (B, 2), dtype=np.uint32),
    )


def test_ciphered_batches_decipher_to_their_plain_text():
  rng = np.random.default_rng(0)
  batch = next(ciphered(texts(rng, range(7)), CHARACTERS, V, rng, False))
  np.testing.assert_array_equal(encipher(batch["tokens"], batch["decipher"]), batch["plain"])
  assert (batch["tokens"] != batch["plain"]).any()
  np.testing.assert_array_equal(inverse(inverse(batch["decipher"])), batch["decipher"])


@pytest.mark.slow
@pytest.mark.parametrize(
  "random_prob, readable", [(0.0, True), (1.0, False)], ids=["learned", "random"]
)
def test_probes_read_what_vectors_say_of_symbols_and_nothing_else(random_prob, readable):
  """Without a cipher, learned vectors name their symbols and random ones do not, before any context
  is used.
  """
  import jax

  cfg = DecoderConfig(
    vocab_size=V,
    d_model=16,
    num_layers=1,
    mixer=AttentionConfig(2),
    mlp=MLPConfig(16),
    embedding=LexinvariantConfig(random_prob=random_prob),
  )
  rng = np.random.default_rng(0)
  plain = (
    {**b, "plain": b["tokens"], "decipher": np.broadcast_to(np.arange(V, dtype=np.int32), (B, V))}
    for b in texts(rng, range(7))
  )
  params = cfg.build().init(jax.random.key(0), next(plain)["tokens"])["params"]
  params = jax.tree.map(
    lambda p: p.unbox() if hasattr(p, "unbox") else p, params, is_leaf=lambda p: hasattr(p, "unbox")
  )
  probes = train_probes(cfg, params, plain, Probing(steps=150, learning_rate=1e-2), rng)
  found = probe_accuracy(cfg, params, probes, (next(plain) for _ in range(20)), (0, T - 1))
  if readable:
    assert (
      found["token_T"].mean() > 0.95
      and found["key_M"].min() > 0.95
      and found["weighted_M"].min() > 0.95
    )
  else:
    assert found["token_T"].mean() < 0.5 and found["key_M"].max() < 0.5
  assert abs(found["common"] - 1 / 7) < 0.05
