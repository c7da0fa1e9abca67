"""Lexinvariant embeddings: no learned table, but a fresh random one for every sequence (Huang et
al., 2023).

Axes: B batch, T time, S the same as keys, D d_model, V vocab. Spec: lexinvariant; sections are its.
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from jaxlm.config import ConfigError, checked
from jaxlm.kernels.random_head import (
  TABLE,
  effective,
  fold_in,
  keyed_rows,
  random_head,
  random_logits,
  segment_seeds,
)
from jaxlm.layers import embedding
from jaxlm.layers.weights import normal, weights, zeros
from jaxlm.ranges import Count, Fraction

MIN_ANALYTIC_VOCABULARY = 1024
MAX_ANALYTIC_SIGMA = 2.0


@dataclasses.dataclass(frozen=True)
@checked
class LexinvariantConfig:
  """x = E[token], logits = s <g(h), E[v]>, E drawn anew for each sequence, and for each document of
  a packed row.

  row_law: of E; "rademacher" rows are +-1. random_prob: of a token type's row being random; below 1
  (semi-lexinvariant,
    6) the others are learned, and all are in evaluation. match_norm: random rows get the learned
    rows' RMS.
  learned_scale: s is a parameter, else D^-1/2. out_proj: g(h) = h w_out_proj.
  remap: rows are drawn for first-occurrence numbers instead of token ids (5.3); the same law,
  exactly invariant.
  output: "tied", or "seen_or_new" (5.4): seen tokens compete with one logit for all that are new.
  absent: "keyed" sums the softmax over every token; "analytic" takes the mean of those not in the
  document (5.3).
  chunk: tokens whose rows exist at a time in the softmax; None: by size.
  """

  row_law: Literal["gaussian", "rademacher"] = "gaussian"
  random_prob: Fraction = 1.0
  match_norm: bool = True
  learned_scale: bool = False
  out_proj: bool = False
  remap: bool = False
  output: Literal["tied", "seen_or_new"] = "tied"
  absent: Literal["keyed", "analytic"] = "keyed"
  chunk: Count | None = None

  def __post_init__(self):
    modes = {
      "random_prob < 1": self.random_prob < 1,
      "output = 'seen_or_new'": self.output != "tied",
      "absent = 'analytic'": self.absent != "keyed",
    }
    chosen = [name for name, on in modes.items() if on]
    if len(chosen) > 1:
      raise ConfigError(f"{' and '.join(chosen)} exclude each other; choose one")
    if self.remap and self.random_prob < 1:
      raise ConfigError(
        "remap and random_prob < 1 exclude each other: a learned row needs its token's identity"
      )
    if self.absent == "analytic" and self.row_law != "gaussian":
      raise ConfigError(
        f"absent = 'analytic' takes the mean of Gaussian rows, not of row_law = {self.row_law!r}; use "
        "absent = 'keyed'"
      )

  def build(self, vocab_size: int, d_model: int, dtype: str) -> nn.Module:
    if d_model % 2:
      raise ConfigError(f"d_model = {d_model}: random rows are made of pairs, so it must be even")
    if self.absent == "analytic" and vocab_size < MIN_ANALYTIC_VOCABULARY:
      raise ConfigError(
        f"absent = 'analytic' with vocab_size = {vocab_size}: the mean stands for the sum only in large "
        f"vocabularies, {MIN_ANALYTIC_VOCABULARY} and more; use absent = 'keyed'"
      )
    return Lexinvariant(self, vocab_size, d_model, dtype)


@struct.dataclass
class Lexicon:
  """What decides the tables of a batch's sequences.

  seed_B2: uint32, rows are keyed_rows(seed, token). table_BVD: rows given instead. random_BV: which
  of them stand in for learned rows. train: draw random rows also where evaluation uses learned
  ones.
  """

  seed_B2: jax.Array | None = None
  table_BVD: jax.Array | None = None
  random_BV: jax.Array | None = None
  train: bool = struct.field(pytree_node=False, default=False)


def lexicon_of(model_cfg, batch, *, train: bool, table: int = 0) -> dict:
  """{"lexicon": ...} for a model whose embedding asks for one, else {}. table: number of the table,
  for averages.

  batch: with uint32 `sequence_seeds` (B, 2), functions of the run's seed and the place of each
  sequence in the stream.
  """
  if not isinstance(model_cfg.embedding, LexinvariantConfig):
    return {}
  if "sequence_seeds" not in batch:
    raise ConfigError(
      "embedding.kind = 'lexinvariant' needs a table per sequence, but the batches have no "
      "'sequence_seeds'; set data.sequence_seeds = True"
    )
  return {"lexicon": Lexicon(fold_in(batch["sequence_seeds"], table, TABLE), train=train)}


def check_embedding(embedding, tie_embeddings: bool, tables: str = "document") -> None:
  """Refuses a lexinvariant embedding where its network cannot keep what it promises.

  tables: what the network has one for, "document" or "sequence"; then nothing may depend on which
  tokens occur.
  """
  if not isinstance(embedding, LexinvariantConfig):
    return
  if not tie_embeddings:
    raise ConfigError(
      "embedding.kind = 'lexinvariant' with tie_embeddings = False: a learned output table would know "
      "tokens by identity, which random rows do not have; set tie_embeddings = True"
    )
  if tables == "sequence" and (
    embedding.remap or embedding.output != "tied" or embedding.absent != "keyed"
  ):
    raise ConfigError(
      "embedding.remap, output = 'seen_or_new' and absent = 'analytic' number the tokens that occur, and "
      "what is inserted does not occur yet; use remap = False, output = 'tied', absent = 'keyed'"
    )


def check_packing(embedding, segment_ids_BT, positions_BT) -> None:
  """Refuses a remap that cannot see where documents end."""
  if positions_BT is not None and segment_ids_BT is None and getattr(embedding, "remap", False):
    raise ConfigError(
      "positions without segment ids: embedding.remap numbers the tokens of each document, and cannot "
      "see where one ends; give segment_ids"
    )


def default_seeds(batch_size: int):
  """Row b's table where nobody says: decoding, initialisation."""
  return jnp.stack(
    [jnp.zeros(batch_size, jnp.uint32), jnp.arange(batch_size, dtype=jnp.uint32)], axis=1
  )


def first_occurrence(tokens_BT, segment_ids_BT):
  """(loc_BT, first_BT): abcab -> 01201 within each segment, -1 at padding; and where a token occurs
  first.

  Segments need not be contiguous. By sorting: O(T log T), no (T, T).
  """
  index_BT = jnp.broadcast_to(
    jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)[None], tokens_BT.shape
  )

  def take(x, order):
    return jnp.take_along_axis(x, order, axis=1)

  def back(x, order):
    return take(x, jnp.argsort(order, axis=1))

  def changes(x):
    return jnp.concatenate([jnp.ones_like(x[:, :1], bool), x[:, 1:] != x[:, :-1]], axis=1)

  order = jnp.lexsort((index_BT, tokens_BT, segment_ids_BT), axis=1)
  starts = changes(take(segment_ids_BT, order)) | changes(take(tokens_BT, order))
  earliest_BT = back(take(order, jax.lax.cummax(jnp.where(starts, index_BT, 0), axis=1)), order)
  valid_BT = segment_ids_BT != 0
  first_BT = (earliest_BT == index_BT) & valid_BT

  order = jnp.argsort(segment_ids_BT, axis=1, stable=True)
  new = take(first_BT, order).astype(jnp.int32)
  count = jnp.cumsum(new, axis=1)
  base = jax.lax.cummax(jnp.where(changes(take(segment_ids_BT, order)), count - new, 0), axis=1)
  rank_BT = back(count - base - 1, order)
  return jnp.where(valid_BT, take(rank_BT, earliest_BT), -1), first_BT


class Lexinvariant(nn.Module):
  """x = E_b[token]; as a head, logits = s <g(h), E_b[v]>."""

  cfg: LexinvariantConfig
  vocab_size: int
  d_model: int
  dtype: str

  def setup(self):
    cfg, D, w = self.cfg, self.d_model, weights(self)
    if cfg.random_prob < 1:
      self.embedding_VD = w("embedding", (self.vocab_size, D), ("vocab", "embed"), init=normal(1.0))
    if cfg.learned_scale:
      self.scale_1 = w("logit_scale", (1,), (None,), init=nn.initializers.constant(D**-0.5))
    if cfg.out_proj:
      self.out_proj_DD = w("out_proj", (D, D), ("embed", None), init=normal(D**-0.5))
    if cfg.output == "seen_or_new":
      self.new_D, self.new_1 = w("w_new", (D,), ("embed",)), w("b_new", (1,), (None,), init=zeros)

  # -------------------------------------------------------------------------------------------------------------------
  # The table

  def _lexicon(self, context, batch_size: int) -> Lexicon:
    lexicon = context.lexicon or Lexicon()
    given = lexicon.seed_B2 is not None or lexicon.table_BVD is not None
    return lexicon if given else lexicon.replace(seed_B2=default_seeds(batch_size))

  def _learned_only(self, lexicon: Lexicon) -> bool:
    mixed = self.cfg.random_prob > 0 and lexicon.train
    return self.cfg.random_prob < 1 and not mixed and lexicon.table_BVD is None

  def _noise_scale(self):
    if self.cfg.random_prob == 1 or not self.cfg.match_norm:
      return 1.0
    return jax.lax.stop_gradient(jnp.sqrt(jnp.mean(jnp.square(self.embedding_VD))))

  def _given(self, lexicon: Lexicon):
    """(B, V, D)"""
    table_BVD = jax.lax.stop_gradient(lexicon.table_BVD)
    if lexicon.random_BV is None:
      return table_BVD
    return jnp.where(lexicon.random_BV[..., None] > 0, table_BVD, self.embedding_VD[None])

  def _rows(self, ids_BT, lexicon: Lexicon, context):
    """float32 (B, T, D)"""
    if self._learned_only(lexicon):
      return jnp.take(self.embedding_VD, ids_BT, axis=0, mode="clip")
    if lexicon.table_BVD is not None:
      return jnp.take_along_axis(self._given(lexicon), ids_BT[..., None], axis=1, mode="clip")
    seed_B2 = lexicon.seed_B2
    seed = segment_seeds(seed_B2, context.segment_ids_BT) if context.packed else seed_B2[:, None]
    learned = (
      jnp.take(self.embedding_VD, ids_BT, axis=0, mode="clip") if self.cfg.random_prob < 1 else None
    )

    def rows_of(seed, ids):
      return keyed_rows(seed, ids, self.d_model, self.cfg.row_law)

    return effective(seed, ids_BT, rows_of, learned, self.cfg.random_prob, self._noise_scale())

  def _ids(self, tokens_BT, context):
    if (
      not self.cfg.remap or context.streaming
    ):  # while decoding token ids serve: their rows have the same law
      return tokens_BT
    return jnp.maximum(first_occurrence(tokens_BT, context.segment_ids_BT)[0], 0)

  # -------------------------------------------------------------------------------------------------------------------
  # Input and output

  def encode(self, tokens_BT, context):
    lexicon = self._lexicon(context, tokens_BT.shape[0])
    return self._rows(self._ids(tokens_BT, context), lexicon, context).astype(self.dtype)

  def _scaled(self, h_BTD, softcap):
    """s g(h)"""
    if softcap is not None:
      raise ConfigError(
        f"softcap = {softcap} with embedding.kind = 'lexinvariant': its logits have no cap; use None"
      )
    if self.cfg.out_proj:
      h_BTD = jnp.einsum("btd,de->bte", h_BTD, self.out_proj_DD.astype(self.dtype))
    self.sow("intermediates", "h_out", h_BTD)
    scale = self.scale_1[0] if self.cfg.learned_scale else self.d_model**-0.5
    return (h_BTD * scale).astype(self.dtype)

  def logits(self, h_BTD, context, softcap=None):
    """float32 (B, T, V)."""
    lexicon, tokens_BT = self._lexicon(context, h_BTD.shape[0]), context.tokens_BT
    u_BTD = self._scaled(h_BTD, softcap)
    if self.cfg.output == "seen_or_new":
      return self._seen_or_new_logits(h_BTD, u_BTD, tokens_BT, lexicon, context)
    if self._learned_only(lexicon):
      return embedding.logits(u_BTD, self.embedding_VD.astype(self.dtype))
    if lexicon.table_BVD is not None:
      return jnp.einsum(
        "btd,bvd->btv",
        u_BTD,
        self._given(lexicon).astype(self.dtype),
        preferred_element_type=jnp.float32,
      )
    if self.cfg.random_prob < 1:
      raise NotImplementedError(
        "all logits of a semi-lexinvariant model in training: use score, or evaluate"
      )
    logits_BTV = random_logits(
      u_BTD,
      lexicon.seed_B2,
      vocab_size=self.vocab_size,
      law=self.cfg.row_law,
      segment_ids_BT=context.segment_ids_BT if context.packed else None,
    )
    if not self.cfg.remap or context.streaming:
      return logits_BTV
    # Numbers of each document's own tokens first, then of the others in the order of their ids.
    ids_BTV = self._local_ids(tokens_BT, context)
    return jnp.take_along_axis(logits_BTV, ids_BTV, axis=-1)

  def _local_ids(self, tokens_BT, context):
    """(B, T, V): the number of every token in t's document; tokens that do not occur follow those
    that do.
    """
    loc_BT, first_BT = first_occurrence(tokens_BT, context.segment_ids_BT)
    same_BTS = first_BT[:, None] & (
      context.segment_ids_BT[:, :, None] == context.segment_ids_BT[:, None]
    )
    B, T = tokens_BT.shape
    at_BTS = jnp.where(same_BTS, tokens_BT[:, None], self.vocab_size)
    ids_BTV = (
      jnp.full((B, T, self.vocab_size), -1, jnp.int32)
      .at[jnp.arange(B)[:, None, None], jnp.arange(T)[None, :, None], at_BTS]
      .set(jnp.broadcast_to(loc_BT[:, None], at_BTS.shape), mode="drop")
    )
    others_BTV = jnp.sum(same_BTS, axis=-1, keepdims=True) + jnp.cumsum(ids_BTV < 0, axis=-1) - 1
    return jnp.where(ids_BTV < 0, others_BTV, ids_BTV)

  def score(self, h_BTD, targets_BT, context, softcap=None, chunk=None):
    """(log p(target), log z), float32 (B, T). chunk, of positions, is not used: the vocabulary is
    cut instead.
    """
    cfg, lexicon = self.cfg, self._lexicon(context, h_BTD.shape[0])
    u_BTD, tokens_BT = self._scaled(h_BTD, softcap), context.tokens_BT
    if self._learned_only(lexicon):
      return embedding.score(u_BTD, self.embedding_VD.astype(self.dtype), targets_BT, chunk=chunk)
    if cfg.output == "seen_or_new":
      return self._seen_or_new(h_BTD, u_BTD, tokens_BT, targets_BT, lexicon, context)
    if cfg.remap:
      both, segments = (
        jnp.concatenate([a, b], axis=1)
        for a, b in ((tokens_BT, targets_BT), (context.segment_ids_BT,) * 2)
      )
      targets_BT = jnp.maximum(first_occurrence(both, segments)[0][:, tokens_BT.shape[1] :], 0)
    if cfg.absent == "analytic":
      return self._analytic(u_BTD, tokens_BT, targets_BT, lexicon, context)
    if lexicon.table_BVD is not None:
      logits_BTV = jnp.einsum(
        "btd,bvd->btv",
        u_BTD,
        self._given(lexicon).astype(self.dtype),
        preferred_element_type=jnp.float32,
      )
      log_z_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
      return jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[
        ..., 0
      ] - log_z_BT, log_z_BT
    return self._random_head(u_BTD, targets_BT, lexicon, context)

  def log_z(self, h_BTD, context, bias_V=None, chunk=None, where_BT=None):
    """logsumexp_v(s <g(h), E[v]> + bias_v), float32 (B, T), over the sequence's one table; chunk as
    in `score`, every row.

    A bias asks for all logits: samplers have one, losses do not.
    """
    lexicon = self._lexicon(context, h_BTD.shape[0])
    if bias_V is not None or lexicon.table_BVD is not None:
      logits_BTV = self.logits(h_BTD, context)
      return jax.nn.logsumexp(
        logits_BTV if bias_V is None else logits_BTV + bias_V[None, None], axis=-1
      )
    u_BTD = self._scaled(h_BTD, None)
    if self._learned_only(lexicon):
      return embedding.log_z(u_BTD, self.embedding_VD.astype(self.dtype), chunk=chunk)
    return self._random_head(u_BTD, None, lexicon, context)

  def pick(self, h_BTD, tokens_BT, context):
    """s <g(h_t), E[token_t]>, float32 (B, T), rows of the sequence's one table."""
    rows_BTD = self._rows(tokens_BT, self._lexicon(context, h_BTD.shape[0]), context).astype(
      self.dtype
    )
    return jnp.einsum(
      "btd,btd->bt", self._scaled(h_BTD, None), rows_BTD, preferred_element_type=jnp.float32
    )

  def _random_head(self, u_BTD, targets_BT, lexicon, context):
    cfg = self.cfg
    spec, vocab = (
      nn.logical_to_mesh_axes(("batch", "seq", None)),
      nn.logical_to_mesh_axes(("vocab",)),
    )
    return random_head(
      u_BTD,
      lexicon.seed_B2,
      targets_BT,
      vocab_size=self.vocab_size,
      law=cfg.row_law,
      chunk=cfg.chunk,
      segment_ids_BT=context.segment_ids_BT if context.packed else None,
      probability=cfg.random_prob,
      embed_VD=self.embedding_VD.astype(self.dtype) if cfg.random_prob < 1 else None,
      noise_scale=self._noise_scale(),
      spec=spec,
      vocab_spec=vocab[0] if vocab else None,
    )

  def _to_tokens(self, u_BTD, tokens_BT, lexicon, context):
    """(logits_BTS of the token at each s; first_BTS: s is its first occurrence, in t's document)."""
    if context.streaming:
      raise NotImplementedError(
        "output = 'seen_or_new' and absent = 'analytic' need the whole document; decode with a "
        "tied, keyed output"
      )
    rows_BSD = self._rows(self._ids(tokens_BT, context), lexicon, context).astype(self.dtype)
    z_BTS = jnp.einsum("btd,bsd->bts", u_BTD, rows_BSD, preferred_element_type=jnp.float32)
    segment_ids_BT = context.segment_ids_BT
    first_BS = first_occurrence(tokens_BT, segment_ids_BT)[1]
    return z_BTS, first_BS[:, None] & (segment_ids_BT[:, :, None] == segment_ids_BT[:, None])

  def _analytic(self, u_BTD, tokens_BT, targets_BT, lexicon, context):
    """Z = sum_{v in document} exp z_v + (V - n) exp(sigma^2 / 2), sigma = |s g(h)|.

    NaN where sigma exceeds the limit.
    """
    z_BTS, first_BTS = self._to_tokens(u_BTD, tokens_BT, lexicon, context)
    n_BT = jnp.sum(first_BTS, axis=-1)
    variance_BT = jnp.sum(jnp.square(u_BTD.astype(jnp.float32)), axis=-1)
    valid_BT = context.segment_ids_BT != 0
    sigma = jnp.sqrt(jnp.max(jnp.where(valid_BT, variance_BT, 0.0)))
    self.sow("intermediates", "max_sigma", sigma)
    if not isinstance(sigma, jax.core.Tracer) and sigma > MAX_ANALYTIC_SIGMA:
      raise ConfigError(
        f"absent = 'analytic' with sigma = {float(sigma):.2f}: beyond {MAX_ANALYTIC_SIGMA} the mean does "
        "not stand for the sum; use absent = 'keyed'"
      )
    absent_BT = jnp.log((self.vocab_size - n_BT).astype(jnp.float32)) + variance_BT / 2
    z_BTS = jnp.where(first_BTS, z_BTS, -jnp.inf)
    log_z_BT = jax.nn.logsumexp(jnp.concatenate([z_BTS, absent_BT[..., None]], axis=-1), axis=-1)
    # Inside a compiled step nothing can be raised: a loss that is not finite is refused there, and
    # counted.
    log_z_BT = jnp.where(sigma > MAX_ANALYTIC_SIGMA, jnp.nan, log_z_BT)
    rows_BTD = self._rows(targets_BT, lexicon, context).astype(self.dtype)
    return jnp.einsum(
      "btd,btd->bt", u_BTD, rows_BTD, preferred_element_type=jnp.float32
    ) - log_z_BT, log_z_BT

  def _new(self, h_BTD, seen_BTS):
    """(c_BT, log of the number of unseen tokens): the logit of all that is new, -inf if nothing is."""
    unseen_BT = self.vocab_size - jnp.sum(seen_BTS, axis=-1)
    log_BT = jnp.log(jnp.maximum(unseen_BT, 1).astype(jnp.float32))
    c_BT = (
      jnp.einsum("btd,d->bt", h_BTD.astype(jnp.float32), self.new_D) + self.new_1[None] + log_BT
    )
    return jnp.where(unseen_BT > 0, c_BT, -jnp.inf), log_BT

  def _seen(self, u_BTD, tokens_BT, lexicon, context):
    z_BTS, first_BTS = self._to_tokens(u_BTD, tokens_BT, lexicon, context)
    T = tokens_BT.shape[1]
    return z_BTS, first_BTS & (jnp.arange(T)[None, :, None] >= jnp.arange(T)[None, None])

  def _seen_or_new(self, h_BTD, u_BTD, tokens_BT, targets_BT, lexicon, context):
    """Z = sum_{v seen} exp z_v + exp c; a new token has 1 / U of exp c."""
    z_BTS, seen_BTS = self._seen(u_BTD, tokens_BT, lexicon, context)
    c_BT, log_unseen_BT = self._new(h_BTD, seen_BTS)
    every_BTS = jnp.concatenate([jnp.where(seen_BTS, z_BTS, -jnp.inf), c_BT[..., None]], axis=-1)
    log_z_BT = jax.nn.logsumexp(every_BTS, axis=-1)
    is_target_BTS = seen_BTS & (tokens_BT[:, None] == targets_BT[..., None])
    target_BT = jnp.where(
      jnp.any(is_target_BTS, axis=-1),
      jnp.sum(jnp.where(is_target_BTS, z_BTS, 0.0), axis=-1),
      c_BT - log_unseen_BT,
    )
    return target_BT - log_z_BT, log_z_BT

  def _seen_or_new_logits(self, h_BTD, u_BTD, tokens_BT, lexicon, context):
    z_BTS, seen_BTS = self._seen(u_BTD, tokens_BT, lexicon, context)
    c_BT, log_unseen_BT = self._new(h_BTD, seen_BTS)
    B, T = tokens_BT.shape
    out_BTV = jnp.broadcast_to((c_BT - log_unseen_BT)[..., None], (B, T, self.vocab_size))
    at_BTS = jnp.where(seen_BTS, tokens_BT[:, None], self.vocab_size)
    return out_BTV.at[jnp.arange(B)[:, None, None], jnp.arange(T)[None, :, None], at_BTS].set(
      z_BTS, mode="drop"
    )
