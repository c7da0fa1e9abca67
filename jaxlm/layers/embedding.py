"""From tokens to vectors and back: the embedding table and the output head.

Axes: B batch, T time, D d_model, V vocab.

An embedding is chosen by its config, registered in EMBEDDINGS, with
`build(vocab_size, d_model, dtype) -> nn.Module`. The module answers
`encode(tokens_BT, context) -> x_BTD`, and, to serve as a tied head, `logits` and `score` as `Head`
does (`log_z` and `pick` too, for objectives that normalise over more than one row). `context` is
the layers' Context without the embedding.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from jaxlm.config import Kinds, checked
from jaxlm.kernels.linear_cross_entropy import linear_cross_entropy
from jaxlm.layers.lookup import lookup
from jaxlm.layers.weights import normal, weights
from jaxlm.ranges import NonNegative

EMBEDDINGS = Kinds(
  "embedding",
  {
    "learned": "jaxlm.layers.embedding:EmbeddingConfig",
    "lexinvariant": "jaxlm.layers.lexinvariant:LexinvariantConfig",
  },
)


@dataclasses.dataclass(frozen=True)
@checked
class EmbeddingConfig:
  """scale_by_width: multiply the vectors by sqrt(d_model), rounded to the compute dtype (Gemma).

  init_std: of the table's normal initialisation.
  """

  scale_by_width: bool = False
  init_std: NonNegative = 0.02

  def build(self, vocab_size: int, d_model: int, dtype: str) -> nn.Module:
    return Embedding(self, vocab_size, d_model, dtype)


def logits(h_BTD, w_VD, softcap=None):
  """softcap(h w^T), float32. Holds (B, T, V)."""
  out_BTV = jnp.einsum("btd,vd->btv", h_BTD, w_VD, preferred_element_type=jnp.float32)
  return out_BTV if softcap is None else softcap * jnp.tanh(out_BTV / softcap)


def score(h_BTD, w_VD, targets_BT, softcap=None, chunk=None):
  """(log p(target), log z), float32 (B, T); chunk: targets per piece, None = all at once."""
  spec, w_spec = (
    nn.logical_to_mesh_axes(("batch", "seq", None)),
    nn.logical_to_mesh_axes(("vocab", "embed")),
  )
  return linear_cross_entropy(
    h_BTD, w_VD, targets_BT, softcap=softcap, chunk=chunk, spec=spec, w_spec=w_spec
  )


def log_z(h_BTD, w_VD, bias_V=None, chunk=None, where_BT=None):
  """logsumexp_v(h w^T + bias), float32 (B, T). bias: -inf is better written as a large negative
  number.

  where_BT: bool, the rows that somebody reads; the others are 0.
  """
  spec, w_spec = (
    nn.logical_to_mesh_axes(("batch", "seq", None)),
    nn.logical_to_mesh_axes(("vocab", "embed")),
  )
  return linear_cross_entropy(
    h_BTD, w_VD, bias_V=bias_V, where_BT=where_BT, chunk=chunk, spec=spec, w_spec=w_spec
  )


def pick(h_BTD, w_VD, tokens_BT):
  """h_t . w_{token_t}, float32 (B, T): single logits, without the others of their rows."""
  return jnp.einsum(
    "btd,btd->bt",
    h_BTD,
    jnp.take(w_VD, tokens_BT, axis=0, mode="clip"),
    preferred_element_type=jnp.float32,
  )


class Embedding(nn.Module):
  """x = E[token]; as a head, logits = h E^T."""

  cfg: EmbeddingConfig
  vocab_size: int
  d_model: int
  dtype: str = "float32"

  def setup(self):
    self.embedding_VD = weights(self)(
      "embedding",
      (self.vocab_size, self.d_model),
      ("vocab", "embed"),
      init=normal(self.cfg.init_std),
    )

  def encode(self, tokens_BT, context=None):
    spec, table_spec = (
      nn.logical_to_mesh_axes(("batch", "seq", None)),
      nn.logical_to_mesh_axes(("vocab", "embed")),
    )
    x_BTD = lookup(self.embedding_VD, tokens_BT, spec, table_spec).astype(self.dtype)
    return x_BTD * jnp.asarray(self.d_model**0.5, self.dtype) if self.cfg.scale_by_width else x_BTD

  def logits(self, h_BTD, context=None, softcap=None):
    return logits(h_BTD, self.embedding_VD.astype(self.dtype), softcap)

  def score(self, h_BTD, targets_BT, context=None, softcap=None, chunk=None):
    return score(h_BTD, self.embedding_VD.astype(self.dtype), targets_BT, softcap, chunk)

  def log_z(self, h_BTD, context=None, bias_V=None, chunk=None, where_BT=None):
    return log_z(h_BTD, self.embedding_VD.astype(self.dtype), bias_V, chunk, where_BT)

  def pick(self, h_BTD, tokens_BT, context=None):
    return pick(h_BTD, self.embedding_VD.astype(self.dtype), tokens_BT)


class Head(nn.Module):
  """logits = h w_out^T, with w_out stored (V, D) as an embedding is."""

  vocab_size: int
  d_model: int
  dtype: str = "float32"

  def setup(self):
    w = weights(self, self.dtype)
    self.w_VD = w("w_out", (self.vocab_size, self.d_model), ("vocab", "embed"))

  def logits(self, h_BTD, context=None, softcap=None):
    return logits(h_BTD, self.w_VD, softcap)

  def score(self, h_BTD, targets_BT, context=None, softcap=None, chunk=None):
    return score(h_BTD, self.w_VD, targets_BT, softcap, chunk)

  def log_z(self, h_BTD, context=None, bias_V=None, chunk=None, where_BT=None):
    return log_z(h_BTD, self.w_VD, bias_V, chunk, where_BT)

  def pick(self, h_BTD, tokens_BT, context=None):
    return pick(h_BTD, self.w_VD, tokens_BT)
