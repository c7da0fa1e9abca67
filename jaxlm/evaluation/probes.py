"""What a frozen model's states say about the cipher of its text: two small networks that read them
(docs/specs/lexinvariant.md, 7).

  token probe  h_t             -> the plain symbol that x_t stands for
  key probe    [h_t; E_b[v]]   -> the plain symbol that v stands for, for every v seen up to t

Both are MLPs with one hidden layer of 4 D, tanh-GELU. Axes: B batch, T time, D d_model, V vocab, K
positions of the key probe.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.config import check_seed, checked
from jaxlm.data.ciphers import draw_ciphers, encipher, inverse
from jaxlm.models.score import lexicon_of
from jaxlm.ranges import Count, NonNegative, Steps


@dataclasses.dataclass(frozen=True)
@checked
class Probing:
  """steps of Adam at learning_rate; positions: drawn from each text for the key probe. partial: the
  cipher moves letters only."""

  steps: Steps = 10_000
  learning_rate: NonNegative = 1e-3
  positions: Count = 4
  partial: bool = False


def ciphered(
  batches: Iterable[dict],
  characters: list[str],
  vocab_size: int,
  rng: np.random.Generator,
  partial: bool,
) -> Iterator[dict]:
  """The batches in cipher, a fresh one for every row, with `plain` and `decipher` (B, V)."""
  for batch in batches:
    cipher_BV = draw_ciphers(characters, vocab_size, len(batch["tokens"]), rng, partial=partial)
    yield batch | {
      "plain": batch["tokens"],
      "tokens": encipher(batch["tokens"], cipher_BV),
      "decipher": inverse(cipher_BV),
    }


def init_probes(key, d_model: int, vocab_size: int) -> dict:
  """{"token", "key"}: each w_in (inputs, D, 4 D), b_in, w_out, b_out."""

  def one(key, inputs):
    a, b = jax.random.split(key)
    F = 4 * d_model
    return {
      "w_in": jax.random.normal(a, (inputs, d_model, F)) / (inputs * d_model) ** 0.5,
      "b_in": jnp.zeros(F),
      "w_out": jax.random.normal(b, (F, vocab_size)) / F**0.5,
      "b_out": jnp.zeros(vocab_size),
    }

  return {"token": one(jax.random.fold_in(key, 0), 1), "key": one(jax.random.fold_in(key, 1), 2)}


def token_logits(probe, h_BTD):
  return _out(probe, jnp.einsum("btd,df->btf", h_BTD, probe["w_in"][0]))


def key_logits(probe, h_BKD, e_BVD):
  """(B, K, V, V): the last axis is the plain symbol."""
  h_BKF = jnp.einsum("bkd,df->bkf", h_BKD, probe["w_in"][0])
  e_BVF = jnp.einsum("bvd,df->bvf", e_BVD, probe["w_in"][1])
  return _out(probe, h_BKF[:, :, None] + e_BVF[:, None])


def _out(probe, x):
  axes = (1,) * (x.ndim - 1) + (-1,)
  x = jax.nn.gelu(x + probe["b_in"].reshape(axes), approximate=True)
  return jnp.einsum("...f,fv->...v", x, probe["w_out"]) + probe["b_out"].reshape(axes)


def seen_counts(tokens_BT, at_BK, vocab_size: int) -> np.ndarray:
  """float32 (B, K, V): how often each symbol occurs in positions 0 .. at."""
  one_BTV = np.asarray(tokens_BT)[..., None] == np.arange(vocab_size)
  return np.take_along_axis(
    np.cumsum(one_BTV, axis=1, dtype=np.float32), np.asarray(at_BK)[..., None], axis=1
  )


def _reads(config, params, batch, at_BK):
  """(h_BTD, h_BKD, e_BVD), float32."""
  model, lexicon = config.build(), lexicon_of(config, batch, train=False)
  apply = functools.partial(model.apply, {"params": params})
  h_BTD = apply(
    batch["tokens"], batch["segment_ids"], batch["positions"], method="states", **lexicon
  )
  every_BV = jnp.broadcast_to(
    jnp.arange(config.vocab_size)[None], (len(batch["tokens"]), config.vocab_size)
  )
  e_BVD = apply(every_BV, method="vectors", **lexicon)
  h_BKD = jnp.take_along_axis(h_BTD, at_BK[..., None], axis=1)
  return tuple(x.astype(jnp.float32) for x in (h_BTD, h_BKD, e_BVD))


def train_probes(
  config, params, batches: Iterator[dict], probing: Probing, rng: np.random.Generator, seed: int = 0
) -> dict:
  """The trained probes. batches: ciphered, without end."""
  optimizer = optax.adam(probing.learning_rate)
  probes = init_probes(jax.random.key(check_seed(seed)), config.d_model, config.vocab_size)
  state = optimizer.init(probes)

  @jax.jit
  def step(probes, state, params, batch, at_BK, count_BKV):
    h_BTD, h_BKD, e_BVD = _reads(config, params, batch, at_BK)

    def loss(probes):
      token_BT = optax.softmax_cross_entropy_with_integer_labels(
        token_logits(probes["token"], h_BTD), batch["plain"]
      )
      label_BKV = jnp.broadcast_to(batch["decipher"][:, None], count_BKV.shape)
      key_BKV = optax.softmax_cross_entropy_with_integer_labels(
        key_logits(probes["key"], h_BKD, e_BVD), label_BKV
      )
      seen_BKV = (count_BKV > 0).astype(jnp.float32)
      w_BT = batch["loss_weights"]
      return jnp.sum(token_BT * w_BT) / jnp.sum(w_BT) + jnp.sum(key_BKV * seen_BKV) / jnp.sum(
        seen_BKV
      )

    updates, state = optimizer.update(jax.grad(loss)(probes), state)
    return optax.apply_updates(probes, updates), state

  for _ in range(probing.steps):
    batch = next(batches)
    B, T = batch["tokens"].shape
    at_BK = rng.integers(0, T, (B, probing.positions))
    probes, state = step(
      probes, state, params, batch, at_BK, seen_counts(batch["tokens"], at_BK, config.vocab_size)
    )
  return probes


def probe_accuracy(
  config, params, probes, batches: Iterable[dict], marks: tuple[int, ...]
) -> dict[str, np.ndarray]:
  """token_T: share of symbols deciphered at each position. key_M, weighted_M: share of the symbols
  seen up to each mark that are, each counted once, or as often as it has occurred. common: share of
  the commonest plain symbol."""

  @jax.jit
  def read(probes, params, batch, at_BK):
    h_BTD, h_BKD, e_BVD = _reads(config, params, batch, at_BK)
    token_BT = jnp.argmax(token_logits(probes["token"], h_BTD), axis=-1)
    return token_BT == batch["plain"], jnp.argmax(key_logits(probes["key"], h_BKD, e_BVD), axis=-1)

  right_T, count_T, plain_V, key, weighted = 0.0, 0.0, np.zeros(config.vocab_size), [], []
  for batch in batches:
    at_BK = np.broadcast_to(np.asarray(marks)[None], (len(batch["tokens"]), len(marks)))
    right_BT, found_BKV = jax.device_get(read(probes, params, batch, at_BK))
    w_BT = batch["loss_weights"]
    right_T, count_T = (
      right_T + (right_BT * w_BT).sum(0, dtype=np.float64),
      count_T + w_BT.sum(0, dtype=np.float64),
    )
    np.add.at(plain_V, batch["plain"], w_BT)
    count_BKV = seen_counts(batch["tokens"], at_BK, config.vocab_size)
    right_BKV, seen_BKV = found_BKV == batch["decipher"][:, None], count_BKV > 0
    whole_B = w_BT.min(axis=1) > 0
    key.append(((right_BKV & seen_BKV).sum(-1) / seen_BKV.sum(-1))[whole_B])
    weighted.append(((right_BKV * count_BKV).sum(-1) / count_BKV.sum(-1))[whole_B])

  def mean(parts):
    return np.concatenate(parts).mean(axis=0)

  return {
    "token_T": right_T / np.maximum(count_T, 1e-9),
    "key_M": mean(key),
    "weighted_M": mean(weighted),
    "common": plain_V.max() / plain_V.sum(),
  }
