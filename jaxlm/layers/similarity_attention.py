"""Attention with another similarity, another normaliser, feature maps, or a slot: a key that is a
parameter (arXiv 2410.10781, 2410.13835, 2510.11602).

Axes: B batch, T queries, S keys, N heads, K kv heads, H head_dim.
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.config import ConfigError, checked
from jaxlm.kernels.attention import (
  Kind,
  Weights,
  as_distribution,
  similarity_attention,
  similarity_weights,
)
from jaxlm.layers.attend import with_key_bias
from jaxlm.layers.attention import Attention, AttentionConfig
from jaxlm.layers.attention_statistics import attention_statistics
from jaxlm.layers.taps import STATISTICS, wants_attention
from jaxlm.layers.weights import weights
from jaxlm.parameter import matrix
from jaxlm.ranges import Finite


@dataclasses.dataclass(frozen=True)
@checked
class SimilarityAttentionConfig(AttentionConfig):
  """o_i = (sum_j f(s_ij) v_j + f(s_i*) v_*) / Z_i, see `jaxlm.kernels.attention.similarity`.

  similarity: f. normaliser: Z: the sum, 1, the number of keys seen, or max(|sum|, 1).
  shift: added to the scores; about -log T keeps the unnormalised sigmoid small.
  features: map of q and k before their product: none, elu + 1, or an MLP of one hidden layer that
  all heads share.
  slot: the learned key and value that every query sees: "k" (its value is 0), "v" (its key is 0),
  "kv". slot_shared: one for all heads.
  """

  similarity: Literal["exp", "sigmoid", "elu1", "relu", "identity", "taylor"] = "exp"
  normaliser: Literal["sum", "none", "count", "abs"] = "sum"
  shift: Finite = 0.0
  features: Literal["none", "elu1", "mlp"] = "none"
  slot: Literal["none", "k", "v", "kv"] = "none"
  slot_shared: bool = False

  def __post_init__(self):
    AttentionConfig.__post_init__(self)
    if self.similarity == "exp" and self.normaliser != "sum":
      raise ConfigError(
        f"similarity = 'exp' with normaliser = {self.normaliser!r} overflows; set normaliser = "
        "'sum', or another similarity"
      )
    if self.softmax1 and self.similarity != "exp":
      raise ConfigError("softmax1 belongs to similarity = 'exp'; leave it out")
    if self.implementation not in (None, "reference", "xla"):
      raise ConfigError(
        f"implementation = {self.implementation!r} has softmax only; set 'reference', 'xla' or None"
      )

  @property
  def stack_key(self):
    """All that decides which parameters there are."""
    return dataclasses.replace(
      super().stack_key, similarity="identity", normaliser="sum", shift=0.0
    )

  @property
  def kernel(self) -> Kind:
    return Kind(self.similarity, self.normaliser, self.shift)

  def build(self, d_model: int, dtype: str, name=None) -> nn.Module:
    return SimilarityAttention(self, d_model, dtype, name=name)


class SimilarityAttention(Attention):
  """As Attention, with what the config says in place of softmax."""

  def compared(self, q_BTNH, k_BTKH, context):
    H, w = q_BTNH.shape[-1], weights(self, self.dtype)
    if self.cfg.features == "elu1":
      return jax.nn.elu(q_BTNH) + 1, jax.nn.elu(k_BTKH) + 1
    if self.cfg.features == "mlp":
      std = nn.initializers.normal(H**-0.5)
      w_in = w("w_feature_in", (H, H), (None, None), init=std, role=matrix())
      w_out = w("w_feature_out", (H, H), (None, None), init=std, role=matrix())

      def mapped(x):
        return jnp.einsum("btnh,hg->btng", jax.nn.gelu(jnp.einsum("btnh,hg->btng", x, w_in)), w_out)

      return mapped(q_BTNH), mapped(k_BTKH)
    return q_BTNH, k_BTKH

  def _slot(self, K: int, H: int) -> dict:
    """The slot's key and value, (K, H) each; {} without one."""
    cfg, w = self.cfg, weights(self, self.dtype)
    if cfg.slot == "none":
      return {}

    def of(letter):
      if letter not in cfg.slot:
        return jnp.zeros((K, H), self.dtype)
      count = 1 if cfg.slot_shared else K
      x = w(f"slot_{letter}", (count, H), (None if cfg.slot_shared else "kv_heads", "head_dim"))
      return jnp.broadcast_to(x, (K, H))

    return {"slot_k_KH": of("k"), "slot_v_KF": of("v")}

  def _attend(self, q, k, v, bias, **mask_inputs):
    cfg = self.cfg
    slot = self._slot(k.shape[2], k.shape[3])
    rule = dict(
      causal=cfg.causal,
      window=cfg.window,
      bias=bias,
      softcap=cfg.softcap,
      scale=cfg.scale,
      softmax1=cfg.softmax1,
      **mask_inputs,
    )
    rule = with_key_bias(self, q, k, rule)
    slot_k = {name: x for name, x in slot.items() if name == "slot_k_KH"}
    if self.is_mutable_collection(STATISTICS) and not self.is_initializing():

      def distribution(q, k, **rule) -> Weights:
        return as_distribution(similarity_weights(q, k, kind=cfg.kernel, **slot_k, **rule))

      found = attention_statistics(q, k, weights=distribution, **rule)
      for name, x in found._asdict().items():
        self.sow(STATISTICS, f"attention_{name.split('_')[0]}", x)
    edited = self.has_variable("edits", "weights")
    if edited or wants_attention(self):
      p_BNTS, slot_BNT = similarity_weights(q, k, kind=cfg.kernel, **slot_k, **rule)
      if edited:
        p_BNTS = self.get_variable("edits", "weights")(p_BNTS)
      self.sow("attention", "weights", p_BNTS)
      if edited:
        N = p_BNTS.shape[1]
        v_BSNF = jnp.repeat(v.astype(jnp.float32), N // v.shape[2], axis=2)
        o_BTNF = jnp.einsum("bnts,bsnf->btnf", p_BNTS, v_BSNF)
        if slot:
          v_NF = jnp.repeat(slot["slot_v_KF"].astype(jnp.float32), N // v.shape[2], axis=0)
          o_BTNF += jnp.einsum("bnt,nf->btnf", slot_BNT, v_NF)
        return o_BTNF.astype(v.dtype)
    return similarity_attention(
      q, k, v, kind=cfg.kernel, implementation=cfg.implementation, **slot, **rule
    )
