"""log z by stretches of the vocabulary, each generated where it is used.

Axes: B batch, T time, C tokens of a stretch, D d_model (even channels first), V vocabulary.

The running sums carry sum_v p_v E[v] along, so that the gradient of log z with respect to h is
known when the forward pass ends: the backward pass of random rows generates nothing. Learned rows
(semi-lexinvariant) get theirs from a second pass.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.kernels.random_head import pallas_tpu
from jaxlm.kernels.random_head.reference import effective
from jaxlm.kernels.random_head.rows import SEGMENT, fold_in, halves, random_mask


class Sums(NamedTuple):
  """max_BT of the logits, sum_BT of exp(z - max), rows_BTD = sum exp(z - max) E (or None)."""

  max_BT: jax.Array
  sum_BT: jax.Array
  rows_BTD: jax.Array | None


class Vocabulary(NamedTuple):
  """Tokens start .. start + count - 1 of vocab_size, `chunk` at a time. embed_VD, learned rows of
  these tokens in the order of `halves`, or None; probability and noise_scale as in `effective`.
  kernel: by pallas_tpu.py instead of by chunks."""

  start: jax.Array
  count: int
  vocab_size: int
  chunk: int
  law: str
  embed_VD: jax.Array | None = None
  probability: float = 1.0
  noise_scale: jax.Array | float = 1.0
  kernel: bool = False

  @property
  def num_chunks(self) -> int:
    return -(-self.count // self.chunk)


def _padded(vocabulary):
  embed_VD, missing = (
    vocabulary.embed_VD,
    vocabulary.num_chunks * vocabulary.chunk - vocabulary.count,
  )
  return embed_VD if embed_VD is None or not missing else jnp.pad(embed_VD, ((0, missing), (0, 0)))


def _stretch(n, h_BTD, seed_B2, vocabulary, embed_VD):
  """(logits_BTC, -inf outside the vocabulary; rows_BCD; token_1C) of stretch n."""
  chunk, local = vocabulary.chunk, n * vocabulary.chunk + jnp.arange(vocabulary.chunk)
  token_1C = (vocabulary.start + local)[None]
  embed = (
    None if embed_VD is None else jax.lax.dynamic_slice_in_dim(embed_VD, n * chunk, chunk)[None]
  )
  token_BC = jnp.broadcast_to(token_1C, (seed_B2.shape[0], chunk))

  def rows_of(s, v):
    return halves(s, v, h_BTD.shape[-1], vocabulary.law)

  rows_BCD = effective(
    seed_B2[:, None], token_BC, rows_of, embed, vocabulary.probability, vocabulary.noise_scale
  )
  rows_BCD = rows_BCD.astype(h_BTD.dtype)
  z_BTC = jnp.einsum("btd,bcd->btc", h_BTD, rows_BCD, preferred_element_type=jnp.float32)
  inside_1C = (local < vocabulary.count)[None] & (token_1C < vocabulary.vocab_size)
  return jnp.where(inside_1C[:, None], z_BTC, -jnp.inf), rows_BCD, token_1C


def _by_segment(step, init, segment_ids_BT, seed_B2):
  """step(carry, seed_B2 of segment s, its positions_BT) for every segment that occurs; one pass
  without packing.
  """
  if segment_ids_BT is None:
    return step(init, seed_B2, None)

  def number(s):
    return jnp.where(s > 1, s, 0)

  def one(s, carry):
    # Padding (segment 0) goes with the first table; its results weigh nothing.
    return step(
      carry, fold_in(seed_B2, number(s)[None], SEGMENT), jnp.maximum(segment_ids_BT, 1) == s
    )

  return jax.lax.fori_loop(1, jnp.maximum(jnp.max(segment_ids_BT), 1) + 1, one, init)


def forward(
  h_BTD, seed_B2, segment_ids_BT, vocabulary: Vocabulary, *, with_rows: bool, one_by_one=False
) -> Sums:
  """The sums over this range of the vocabulary; one_by_one: a sequence after the other, each in 2-D
  products.
  """
  if one_by_one:

    def whole(one):
      return forward(*jax.tree.map(lambda x: x[None], one), vocabulary, with_rows=with_rows)

    return jax.lax.map(
      lambda one: jax.tree.map(lambda x: x[0], whole(one)), (h_BTD, seed_B2, segment_ids_BT)
    )
  embed_VD = _padded(vocabulary)
  start = Sums(
    jnp.full(h_BTD.shape[:2], -jnp.inf),
    jnp.zeros(h_BTD.shape[:2]),
    jnp.zeros(h_BTD.shape) if with_rows else None,
  )

  def table(done, seed_B2, here_BT):
    def step(sums, n):
      z_BTC, rows_BCD, _ = _stretch(n, h_BTD, seed_B2, vocabulary, embed_VD)
      max_BT = jnp.maximum(sums.max_BT, jnp.max(z_BTC, axis=-1))
      safe_BT = jnp.where(max_BT == -jnp.inf, 0.0, max_BT)
      e_BTC, keep_BT = jnp.exp(z_BTC - safe_BT[..., None]), jnp.exp(sums.max_BT - safe_BT)
      rows_BTD = None
      if with_rows:
        rows_BTD = sums.rows_BTD * keep_BT[..., None] + jnp.einsum(
          "btc,bcd->btd", e_BTC.astype(h_BTD.dtype), rows_BCD, preferred_element_type=jnp.float32
        )
      return Sums(max_BT, sums.sum_BT * keep_BT + jnp.sum(e_BTC, axis=-1), rows_BTD), None

    if vocabulary.kernel:
      sums = Sums(*pallas_tpu.forward(h_BTD, seed_B2, vocabulary, with_rows=with_rows))
    else:
      sums, _ = jax.lax.scan(step, start, jnp.arange(vocabulary.num_chunks))
    if here_BT is None:
      return sums

    def choose(new, old):
      return jnp.where(here_BT.reshape(here_BT.shape + (1,) * (new.ndim - 2)), new, old)

    return jax.tree.map(choose, sums, done)

  return _by_segment(table, start, segment_ids_BT, seed_B2)


def embed_gradient(
  h_BTD, seed_B2, segment_ids_BT, vocabulary: Vocabulary, log_z_BT, g_BT, *, one_by_one=False
):
  """float32 (count, D): sum over the sequences in which v is learned of g p_v h."""
  embed_VD = _padded(vocabulary)
  args = (h_BTD, seed_B2, segment_ids_BT, log_z_BT, g_BT)
  if one_by_one:

    def add(total_VD, one):
      return (
        _add_embed_gradient(total_VD, vocabulary, embed_VD, *jax.tree.map(lambda x: x[None], one)),
        None,
      )

    total_VD, _ = jax.lax.scan(add, jnp.zeros(embed_VD.shape), args)
  else:
    total_VD = _add_embed_gradient(jnp.zeros(embed_VD.shape), vocabulary, embed_VD, *args)
  return total_VD[: vocabulary.count]


def _add_embed_gradient(
  total_VD, vocabulary, embed_VD, h_BTD, seed_B2, segment_ids_BT, log_z_BT, g_BT
):

  def table(total_VD, seed_B2, here_BT):
    here = g_BT if here_BT is None else jnp.where(here_BT, g_BT, 0.0)
    if vocabulary.kernel:
      new_VD = pallas_tpu.embed_gradient(h_BTD, seed_B2, vocabulary, log_z_BT, here)
      return total_VD + jnp.pad(new_VD, ((0, total_VD.shape[0] - new_VD.shape[0]), (0, 0)))

    def step(total_VD, n):
      z_BTC, _, token_1C = _stretch(n, h_BTD, seed_B2, vocabulary, embed_VD)
      dz_BTC = here[..., None] * jnp.exp(z_BTC - log_z_BT[..., None])
      random_BC = random_mask(seed_B2[:, None], token_1C, vocabulary.probability)
      dz_BTC = jnp.where(random_BC[:, None], 0.0, dz_BTC)
      new_CD = jnp.einsum(
        "btc,btd->cd", dz_BTC.astype(h_BTD.dtype), h_BTD, preferred_element_type=jnp.float32
      )
      at = n * vocabulary.chunk
      old_CD = jax.lax.dynamic_slice_in_dim(total_VD, at, vocabulary.chunk)
      return jax.lax.dynamic_update_slice_in_dim(total_VD, old_CD + new_CD, at, 0), None

    return jax.lax.scan(step, total_VD, jnp.arange(vocabulary.num_chunks))[0]

  return _by_segment(table, total_VD, segment_ids_BT, seed_B2)


def logits(h_BTD, seed_B2, segment_ids_BT, vocabulary: Vocabulary):
  """float32 (B, T, V): the one form that holds them all, for decoding."""
  embed_VD = _padded(vocabulary)

  def step(_, n):
    def table(done, seed_B2, here_BT):
      z_BTC = _stretch(n, h_BTD, seed_B2, vocabulary, embed_VD)[0]
      return z_BTC if here_BT is None else jnp.where(here_BT[..., None], z_BTC, done)

    return None, _by_segment(
      table, jnp.zeros((*h_BTD.shape[:2], vocabulary.chunk)), segment_ids_BT, seed_B2
    )

  _, z_nBTC = jax.lax.scan(step, None, jnp.arange(vocabulary.num_chunks))
  return jnp.moveaxis(z_nBTC, 0, 2).reshape(*h_BTD.shape[:2], -1)[..., : vocabulary.vocab_size]
