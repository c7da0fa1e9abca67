"""T5 v1.1's attention, feed-forward layer and blocks: unscaled logits, a relative bias shared by a
stack, root-mean-square norms.

Axes: B batch, T queries, S keys, D d_model, N heads, H head width, F d_ff. docs/specs/mrt5.md,
section 1.
"""

import dataclasses
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.config import checked
from jaxlm.kernels.attention import BucketBias, KeyBias
from jaxlm.kernels.attention.reference import LOWEST_MAX, AttentionSpec, MaskInputs, scores
from jaxlm.layers.attend import attend
from jaxlm.layers.linear import linear
from jaxlm.layers.norms import rms_norm
from jaxlm.layers.taps import tap
from jaxlm.layers.weights import normal, weights
from jaxlm.ranges import BelowOne, Count, Positive

EPS = 1e-6
#: Logits above this are pulled down by the score regulariser.
SCORE_LIMIT = 5.0
Measure = Literal["all", "seen"] | None


@dataclasses.dataclass(frozen=True)
@checked
class T5LayerConfig:
  """init: factor f of a stack's initial weights; from scratch 1 / sqrt(its layers), norm weights
  included.
  """

  d_model: Count
  d_ff: Count
  num_heads: Count
  head_dim: Count
  gated: bool = True
  softmax1: bool = False
  max_distance: Count = 128
  dropout: BelowOne = 0.0
  init: Positive = 1.0
  dtype: str = "float32"
  implementation: Literal["reference", "xla", "cudnn", "splash", "pallas", "pallas_gpu"] | None = (
    None
  )


class Keys(NamedTuple):
  """What a query may see. index None: 0, 1, 2 ...; valid_BS: bool; gate_BS: added to the logits of
  each key, or None.

  row_BS: int32, which of the rows that share a buffer a key belongs to, 1, 2 ..; None: a buffer
  holds one row.
  """

  valid_BS: jax.Array
  gate_BS: jax.Array | None = None
  index_BS: jax.Array | None = None
  row_BS: jax.Array | None = None

  @property
  def segment_BS(self):
    """int32: 0 is never seen; of a shared buffer, a query sees the keys of its own row."""
    return (
      self.valid_BS.astype(jnp.int32)
      if self.row_BS is None
      else jnp.where(self.valid_BS, self.row_BS, 0)
    )


class KV(NamedTuple):
  """Keys and values of one attention, (B, S, N, H)."""

  k_BSNH: jax.Array
  v_BSNH: jax.Array


class Norm(nn.Module):
  """y = scale * x / sqrt(mean(x^2) + 1e-6), scale starting at `init`."""

  init: float = 1.0

  @nn.compact
  def __call__(self, x_BTD):
    scale_D = weights(self)(
      "scale", (x_BTD.shape[-1],), ("embed",), init=nn.initializers.constant(self.init)
    )
    return rms_norm(x_BTD, scale_D, EPS)


class Attention(nn.Module):
  """y = concat_n(softmax(q_n k_n^T + bias + gate) v_n) w_o: no 1 / sqrt(H), no biases.

  causal: a decoder's own attention. measure: also the score regulariser's term, mean over (B, N, T,
  S) of max(s, 5) - 5 with s the logits before the gate. "all": masked pairs count as 0 in the mean,
  as released; "seen": they do not count, so that the number of slots says nothing. Materialises the
  scores, so only when it is wanted.
  """

  cfg: T5LayerConfig
  causal: bool = False
  measure: Measure = None

  @nn.compact
  def __call__(
    self,
    x_BTD,
    source_BSD,
    keys: Keys,
    table=None,
    index_BT=None,
    cache: KV | None = None,
    at=None,
    row_BT=None,
  ):
    """(y_BTD, KV, excess). cache with `at`: the new keys are written at slot `at`; without: it is
    all there is.

    row_BT: the queries' rows where the keys' buffer holds several.
    """
    cfg, w = self.cfg, weights(self, self.cfg.dtype)
    D, N, H = cfg.d_model, cfg.num_heads, cfg.head_dim
    inner = normal(cfg.init * D**-0.5)

    def project(name, x):
      return linear(x, w(name, (D, N, H), ("embed", "heads", "head_dim"), init=inner))

    q_BTNH = project("w_q", x_BTD)
    if cache is None or at is not None:
      new = KV(project("w_k", source_BSD), project("w_v", source_BSD))
      cache = (
        new
        if cache is None
        else jax.tree.map(
          lambda old, x: jax.lax.dynamic_update_slice_in_dim(old, x.astype(old.dtype), at, 1),
          cache,
          new,
        )
      )
    q_BTNH = tap(self, "q", q_BTNH)
    cache = cache._replace(k_BSNH=tap(self, "k", cache.k_BSNH), v_BSNH=tap(self, "v", cache.v_BSNH))

    bias = (
      ()
      if table is None
      else (BucketBias(table, bidirectional=not self.causal, max_distance=cfg.max_distance),)
    )
    gate = () if keys.gate_BS is None else (KeyBias(None, -keys.gate_BS[:, :, None]),)
    rule = dict(
      causal=self.causal,
      q_segment_ids_BT=row_BT,
      kv_segment_ids_BS=keys.segment_BS,
      q_index_BT=index_BT,
      kv_index_BS=keys.index_BS,
      bias=bias + gate,
      scale=1.0,
      softmax1=cfg.softmax1,
    )
    o_BTNH = attend(self, q_BTNH, *cache, implementation=cfg.implementation, **rule)
    w_o_NHD = w(
      "w_o", (N, H, D), ("heads", "head_dim", "embed"), init=normal(cfg.init * (N * H) ** -0.5)
    )
    y_BTD = linear(tap(self, "heads", o_BTNH.astype(cfg.dtype)), w_o_NHD, contract=2)
    excess = jnp.zeros(())
    if self.measure:
      s_BNTS = logits(q_BTNH, cache.k_BSNH, keys, bias, index_BT, self.causal, row_BT)
      own_BT = (
        keys.valid_BS if source_BSD is x_BTD else jnp.ones(x_BTD.shape[:2], bool)
      )  # fillers ask nothing
      excess = score_excess(s_BNTS, own_BT if self.measure == "seen" else None)
    return y_BTD, cache, excess


def score_excess(s_BNTS, own_BT=None):
  """mean of max(s, 5) - 5: over all pairs, or over those that the queries `own_BT` may see."""
  over_BNTS = jnp.maximum(s_BNTS, SCORE_LIMIT) - SCORE_LIMIT
  if own_BT is None:
    return jnp.mean(over_BNTS)
  pairs_BNTS = (s_BNTS > LOWEST_MAX) & own_BT[:, None, :, None]
  return jnp.sum(jnp.where(pairs_BNTS, over_BNTS, 0.0)) / jnp.maximum(jnp.sum(pairs_BNTS), 1)


def logits(
  q_BTNH, k_BSNH, keys: Keys, bias: tuple, index_BT=None, causal: bool = False, row_BT=None
):
  """s = q.k + bias, float32 (B, N, T, S), hugely negative where a pair may not attend."""

  def count(index, length):
    return jnp.arange(length, dtype=jnp.int32)[None] if index is None else index

  mask_inputs = MaskInputs(
    count(index_BT, q_BTNH.shape[1]), count(keys.index_BS, k_BSNH.shape[1]), row_BT, keys.segment_BS
  )
  rule = AttentionSpec(
    scale=1.0, causal=causal, contiguous=index_BT is None and keys.index_BS is None
  )
  return scores(q_BTNH.swapaxes(1, 2), k_BSNH.swapaxes(1, 2), mask_inputs, bias, rule)


class FeedForward(nn.Module):
  """y = (gelu_tanh(x w_gate) * (x w_in)) w_out, or relu(x w_in) w_out."""

  cfg: T5LayerConfig

  @nn.compact
  def __call__(self, x_BTD, deterministic: bool):
    cfg, w = self.cfg, weights(self, self.cfg.dtype)

    def up(name):
      return linear(
        x_BTD,
        w(
          name, (cfg.d_model, cfg.d_ff), ("embed", "mlp"), init=normal(cfg.init * cfg.d_model**-0.5)
        ),
      )

    h_BTF = (
      jax.nn.gelu(up("w_gate"), approximate=True) * up("w_in")
      if cfg.gated
      else jax.nn.relu(up("w_in"))
    )
    h_BTF = nn.Dropout(cfg.dropout)(h_BTF, deterministic=deterministic)
    w_out_FD = w(
      "w_out", (cfg.d_ff, cfg.d_model), ("mlp", "embed"), init=normal(cfg.init * cfg.d_ff**-0.5)
    )
    return linear(tap(self, "mlp_hidden", h_BTF), w_out_FD)


class EncoderBlock(nn.Module):
  """x += attention(norm x); x += ffn(norm x)."""

  cfg: T5LayerConfig
  static = (4, 5)  # of __call__'s arguments, self included

  @nn.compact
  def __call__(self, x_BTD, keys: Keys, table, deterministic: bool, measure: Measure):
    def drop(y):
      return nn.Dropout(self.cfg.dropout)(y, deterministic=deterministic)

    h_BTD = tap(self, "attn_in", Norm(self.cfg.init, name="norm")(x_BTD))
    y_BTD, _, excess = Attention(self.cfg, False, measure, name="attention")(
      h_BTD, h_BTD, keys, table, keys.index_BS, row_BT=keys.row_BS
    )
    x_BTD = x_BTD + drop(tap(self, "attn_out", y_BTD))
    h_BTD = tap(self, "mlp_in", Norm(self.cfg.init, name="mlp_norm")(x_BTD))
    x_BTD = x_BTD + drop(
      tap(self, "mlp_out", FeedForward(self.cfg, name="mlp")(h_BTD, deterministic))
    )
    return tap(
      self, "resid", nn.with_logical_constraint(x_BTD, ("batch", "seq", "embed_act"))
    ), excess


class DecoderCache(NamedTuple):
  """Of one block: its own keys and values so far, and those of the encoder, which never change."""

  own: KV
  cross: KV


class DecoderBlock(nn.Module):
  """x += attention(norm x); x += attention(norm x, memory); x += ffn(norm x).

  A memory buffer that holds the rows of several sequences is asked by all of them at once: (B, T)
  queries become (B / n, n T), each seeing its own row's keys.
  """

  cfg: T5LayerConfig
  static = (9, 10)

  @nn.compact
  def __call__(
    self,
    x_BTD,
    cache: DecoderCache | None,
    memory_BSD,
    memory: Keys,
    own: Keys,
    table,
    index_BT,
    at,
    deterministic: bool,
    measure: Measure,
  ):
    """index_BT, at: None for a whole sequence; in a step, the position and slot of the new token."""

    def drop(y):
      return nn.Dropout(self.cfg.dropout)(y, deterministic=deterministic)

    def norm(name):
      return Norm(self.cfg.init, name=name)

    h_BTD = tap(self, "attn_in", norm("norm")(x_BTD))
    y_BTD, own_kv, _ = Attention(self.cfg, True, name="attention")(
      h_BTD, h_BTD, own, table, index_BT, None if cache is None else cache.own, at
    )
    x_BTD = x_BTD + drop(tap(self, "attn_out", y_BTD))
    h_BTD, row_BT = tap(self, "cross_in", norm("cross_norm")(x_BTD)), None
    if memory.row_BS is not None:
      (B, T, D), R = h_BTD.shape, memory.row_BS.shape[0]
      h_BTD = h_BTD.reshape(R, B // R * T, D)
      row_BT = jnp.repeat(jnp.arange(1, B // R + 1, dtype=jnp.int32), T)[None]
    y_BTD, cross_kv, excess = Attention(self.cfg, False, measure, name="cross")(
      h_BTD,
      memory_BSD,
      memory._replace(index_BS=None),
      cache=None if cache is None else cache.cross,
      row_BT=row_BT,
    )
    x_BTD = x_BTD + drop(tap(self, "cross_out", y_BTD.reshape(x_BTD.shape)))
    h_BTD = tap(self, "mlp_in", norm("mlp_norm")(x_BTD))
    x_BTD = x_BTD + drop(
      tap(self, "mlp_out", FeedForward(self.cfg, name="mlp")(h_BTD, deterministic))
    )
    x_BTD = tap(self, "resid", nn.with_logical_constraint(x_BTD, ("batch", "seq", "embed_act")))
    return x_BTD, (None if at is None else DecoderCache(own_kv, cross_kv), excess)
