"""Softmax attention with grouped queries, any position encoding and windows.

Its key-value cache: `layers.cache`. Axes: B batch, T time, S cached keys, D d_model, N heads, K kv heads, H head_dim.
"""

import dataclasses
from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.config import ConfigError, checked
from jaxlm.layers.attend import attend
from jaxlm.layers.cache import Keys, KVCache, empty_cache, written_and_seen
from jaxlm.layers.linear import linear
from jaxlm.layers.mixer import Context, Mixer, given_or_plain
from jaxlm.layers.norms import NORMS
from jaxlm.layers.positions import POSITIONS, Heads, NoPosition
from jaxlm.layers.taps import tap
from jaxlm.layers.weights import normal, weights, zeros
from jaxlm.ranges import Count, Natural, Positive


@dataclasses.dataclass(frozen=True)
@checked
class AttentionConfig(Mixer):
  """num_kv_heads: default num_heads. head_dim: default d_model / num_heads.

  causal: False lets every token see both sides; there is no decoding state then.
  position: default the model's. window: a query sees itself and the window - 1 keys before it; None
  = all.
  use_bias: on q, k, v and the output; output_bias: on the output, None = as use_bias. qk_norm: of q
  and k before the position encoding; qk_norm_over: its statistics are those of each head, or of all
  heads together.
  softcap: c tanh(score / c). scale: of the scores, default 1 / sqrt(head_dim).
  implementation: of the attention kernel; None = best for the platform.
  prefix: the first so many tokens of a document see one another whole (prefix LM); there is no
  decoding state then, and biases of position count a token of the prefix as its last.
  """

  num_heads: Count
  num_kv_heads: Count | None = None
  head_dim: Count | None = None
  position: Annotated[object | None, POSITIONS] = None
  window: Count | None = None
  use_bias: bool = False
  output_bias: bool | None = None
  qk_norm: Annotated[object | None, NORMS] = None
  qk_norm_over: Literal["head", "heads"] = "head"
  softcap: Positive | None = None
  scale: Positive | None = None
  softmax1: bool = False
  implementation: Literal["reference", "xla", "cudnn", "splash", "pallas", "pallas_gpu"] | None = (
    None
  )
  causal: bool = True
  prefix: Natural = 0

  def __post_init__(self):
    if self.prefix and not self.causal:
      raise ConfigError("prefix with causal = False: every token sees all others already; set one")
    if self.num_kv_heads is not None and (
      self.num_kv_heads < 1 or self.num_heads % self.num_kv_heads
    ):
      raise ConfigError(
        f"num_kv_heads = {self.num_kv_heads} does not divide num_heads = {self.num_heads}"
      )

  def heads(self, d_model: int) -> Heads:
    if self.head_dim is None and d_model % self.num_heads:
      raise ConfigError(
        f"d_model = {d_model} is not divisible by num_heads = {self.num_heads}; set head_dim, or "
        "change one of them"
      )
    heads = Heads(
      d_model,
      self.num_heads,
      self.num_kv_heads or self.num_heads,
      self.head_dim or d_model // self.num_heads,
    )
    if self.position is not None:
      self.position.check(heads)
    return heads

  def with_position(self, position):
    return self if self.position is not None else dataclasses.replace(self, position=position)

  @property
  def stack_key(self):
    """All that decides which parameters there are."""
    return dataclasses.replace(
      self,
      window=None,
      softcap=None,
      scale=None,
      softmax1=False,
      implementation=None,
      causal=True,
      prefix=0,
    )

  def build(self, d_model: int, dtype: str, name=None) -> nn.Module:
    return Attention(self, d_model, dtype, name=name)

  def init_state(
    self, d_model: int, batch_size: int, max_len: int, dtype, rewindable: int = 0
  ) -> KVCache:
    if self.prefix:
      raise ConfigError(
        f"prefix = {self.prefix}: the tokens of a prefix see later ones, so there is nothing to cache; "
        "run the model on the whole sequence again"
      )
    if not self.causal:
      raise ConfigError(
        "causal = False: every token changes all others, so there is nothing to cache; run the model on "
        "the whole sequence again"
      )
    heads, position = self.heads(d_model), self.position or NoPosition()
    return empty_cache(heads, position, self.window, batch_size, max_len, dtype, rewindable)


class Attention(nn.Module):
  """y = concat_n(softmax(q_n k^T) v) w_o, with q, k changed by the position encoding."""

  cfg: AttentionConfig
  d_model: int
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x_BTD, context: Context | None = None, state: KVCache | None = None):
    context = given_or_plain(context, x_BTD, state)
    cfg, w, D = self.cfg, weights(self, self.dtype), self.d_model
    heads, position = cfg.heads(D), cfg.position or NoPosition()
    N, K, H = heads.num_heads, heads.num_kv_heads, heads.head_dim

    source_BTD = self.scored_by(x_BTD, context)

    def project(letter, count, axis):
      y = linear(
        x_BTD if letter == "v" else source_BTD,
        w(f"w_{letter}", (D, count, H), ("embed", axis, "head_dim")),
      )
      return (
        y + w(f"b_{letter}", (count, H), (axis, "head_dim"), init=zeros)[None, None]
        if cfg.use_bias
        else y
      )

    q_BTNH, k_BTKH, v_BTKH = (
      project("q", N, "heads"),
      project("k", K, "kv_heads"),
      project("v", K, "kv_heads"),
    )
    if cfg.qk_norm is not None:
      q_BTNH, k_BTKH = (
        self._normed("q_norm", q_BTNH, "heads"),
        self._normed("k_norm", k_BTKH, "kv_heads"),
      )

    shared = context.shared
    if context.shared_by != (position, heads):
      own = position.init_model_state(heads, x_BTD.shape[0])
      if jax.tree.leaves(own):
        raise ConfigError(
          f"{type(position).__name__} is shared by all layers here: set it as model.position, and give "
          "every layer the same heads"
        )
      shared, _ = position.prepare(self, heads, context, own)
    q_BTNH, k_BTKH, info, position_state = position.encode(
      self, heads, q_BTNH, k_BTKH, x_BTD, context, shared, None if state is None else state.position
    )
    q_BTNH, k_BTKH, v_BTKH = tap(self, "q", q_BTNH), tap(self, "k", k_BTKH), tap(self, "v", v_BTKH)
    q_BTNH, k_BTKH = self.compared(q_BTNH, k_BTKH, context)

    def bias(key_info):
      return position.bias(self, heads, info, key_info, shared)

    if state is None:
      segment_ids_BT = context.segment_ids_BT if context.packed else None
      mask_inputs = {}
      if cfg.prefix:
        late_BT = jnp.maximum(cfg.prefix - 1 - context.positions_BT, 0)
        mask_inputs["q_index_BT"] = jnp.arange(late_BT.shape[1], dtype=jnp.int32)[None] + late_BT
      o_BTNH = self._attend(
        q_BTNH,
        k_BTKH,
        v_BTKH,
        bias(info),
        q_segment_ids_BT=segment_ids_BT,
        kv_segment_ids_BS=context.key_segment_ids_BT,
        **mask_inputs,
        structure=context.structure,
      )
    else:
      order_BT = context.positions_BT if context.order_BT is None else context.order_BT
      index_BT = jnp.where(context.segment_ids_BT != 0, order_BT, -1)
      new = Keys(k_BTKH, v_BTKH, index_BT, info)
      written, keys = written_and_seen(state, new, cfg.window, position)
      o_BTNH = self._attend(
        q_BTNH,
        keys.k_BSKH,
        keys.v_BSKH,
        bias(keys.info),
        q_index_BT=index_BT,
        kv_index_BS=keys.index_BS,
        structure=context.structure,
      )
      state = KVCache(*written, position_state)

    w_o_NHD = w(
      "w_o", (N, H, D), ("heads", "head_dim", "embed"), init=normal(0.02 / context.depth**0.5)
    )
    y_BTD = linear(tap(self, "heads", o_BTNH.astype(self.dtype)), w_o_NHD, contract=2)
    biased = cfg.use_bias if cfg.output_bias is None else cfg.output_bias
    return (y_BTD + w("b_o", (D,), ("embed",), init=zeros)[None, None] if biased else y_BTD), state

  def scored_by(self, x_BTD, context):
    """What queries and keys are projected from, (B, T, D); values are always of x."""
    return x_BTD

  def compared(self, q_BTNH, k_BTKH, context):
    """The queries and keys whose products are the scores, of those behind the position encoding."""
    return q_BTNH, k_BTKH

  def _normed(self, name, x_BTNH, axis):
    norm = self.cfg.qk_norm
    if self.cfg.qk_norm_over == "head":
      return norm.build(self.dtype, name, "head_dim")(x_BTNH)
    return norm.build(self.dtype, name, axis)(x_BTNH.reshape(*x_BTNH.shape[:2], -1)).reshape(
      x_BTNH.shape
    )

  def _attend(self, q, k, v, bias, **mask_inputs):
    cfg = self.cfg
    rule = dict(
      causal=cfg.causal,
      window=cfg.window,
      bias=bias,
      softcap=cfg.softcap,
      scale=cfg.scale,
      softmax1=cfg.softmax1,
      **mask_inputs,
    )
    return attend(self, q, k, v, implementation=cfg.implementation, **rule)
