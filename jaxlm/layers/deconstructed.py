"""Token mixers that lack one part of attention each, at attention's number of parameters
(arXiv 2510.11602, section 3). The Taylor kernel is `similarity_attention` with similarity "taylor".

Axes: B batch, T time, D d_model, N heads, K kv heads, H head_dim, F d_ff.
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.config import ConfigError, checked
from jaxlm.layers.attention import Attention, AttentionConfig
from jaxlm.layers.linear import linear
from jaxlm.layers.mixer import Mixer
from jaxlm.layers.weights import normal, weights
from jaxlm.ranges import Count


@dataclasses.dataclass(frozen=True)
@checked
class ChannelMLPConfig(Mixer):
  """y = (SiLU(x w_gate) * (x w_in)) w_out: no token sees another.

  d_ff: None is 4 d_model / 3, the parameters of attention's four matrices.
  """

  d_ff: Count | None = None

  def width(self, d_model: int) -> int:
    if self.d_ff is None and d_model % 3:
      raise ConfigError(
        f"d_model = {d_model} is not a multiple of 3, so no d_ff of a channel_mlp has the parameters "
        "of attention; set its d_ff"
      )
    return self.d_ff or 4 * d_model // 3

  def heads(self, d_model: int):
    self.width(d_model)  # a width that does not fit is refused here

  def build(self, d_model: int, dtype: str, name=None) -> nn.Module:
    return ChannelMLP(self, d_model, dtype, name=name)

  def init_state(self, d_model: int, batch_size: int, max_len: int, dtype, rewindable: int = 0):
    self.width(d_model)
    return ()


class ChannelMLP(nn.Module):
  """See the config. It carries no state."""

  cfg: ChannelMLPConfig
  d_model: int
  dtype: str

  @nn.compact
  def __call__(self, x_BTD, context, state=None):
    D, F, w = self.d_model, self.cfg.width(self.d_model), weights(self, self.dtype)
    gate_BTF = jax.nn.silu(linear(x_BTD, w("w_gate", (D, F), ("embed", "mlp"))))
    h_BTF = gate_BTF * linear(x_BTD, w("w_in", (D, F), ("embed", "mlp")))
    w_out = w("w_out", (F, D), ("mlp", "embed"), init=normal(0.02 / context.depth**0.5))
    return linear(h_BTF, w_out), state


@dataclasses.dataclass(frozen=True)
@checked
class KeyOnlyAttentionConfig(AttentionConfig):
  """The score depends on the key alone: s_j = sum_c SiLU(q_jc) k_jc / sqrt(H), softmax over j <= i.

  "Non-approximate" in the paper. q_j and k_j are behind the position encoding.
  """

  def __post_init__(self):
    AttentionConfig.__post_init__(self)
    if self.num_kv_heads not in (None, self.num_heads):
      raise ConfigError(
        f"num_kv_heads = {self.num_kv_heads}: a score of the key alone needs a key for each of "
        f"num_heads = {self.num_heads}; leave num_kv_heads out"
      )

  def build(self, d_model: int, dtype: str, name=None) -> nn.Module:
    return KeyOnlyAttention(self, d_model, dtype, name=name)


class KeyOnlyAttention(Attention):
  """As Attention. The score is stored in the key's first channel, and every query is e_0."""

  def compared(self, q_BTNH, k_BTKH, context):
    H = q_BTNH.shape[-1]
    scale = H**-0.5 if self.cfg.scale is None else self.cfg.scale
    s_BTN = jnp.sum(jax.nn.silu(q_BTNH.astype(jnp.float32)) * k_BTKH.astype(jnp.float32), -1)
    s_BTN = s_BTN * (H**-0.5 / scale)
    first_H = (jnp.arange(H) == 0).astype(q_BTNH.dtype)
    k_BTNH = s_BTN[..., None].astype(k_BTKH.dtype) * first_H[None, None, None]
    return jnp.broadcast_to(first_H[None, None, None], q_BTNH.shape), k_BTNH


@dataclasses.dataclass(frozen=True)
@checked
class StreamAttentionConfig(AttentionConfig):
  """Queries and keys come from another stream than the values.

  stream: "embedding" is the input of the first layer, scaled to root mean square 1 (static QK);
  "fixed" is the model's `fixed_stream`, which no input changes.
  """

  stream: Literal["embedding", "fixed"] = "embedding"

  @property
  def reads_embedding(self) -> bool:
    return self.stream == "embedding"

  def build(self, d_model: int, dtype: str, name=None) -> nn.Module:
    return StreamAttention(self, d_model, dtype, name=name)

  def init_state(self, d_model: int, batch_size: int, max_len: int, dtype, rewindable: int = 0):
    if self.stream == "fixed":
      raise ConfigError(
        "stream = 'fixed' has no decoding state: its queries and keys are those of whole rows; run "
        "the model on the whole sequence again"
      )
    return super().init_state(d_model, batch_size, max_len, dtype, rewindable)


class StreamAttention(Attention):
  """As Attention."""

  def scored_by(self, x_BTD, context):
    if self.cfg.stream == "fixed":
      return x_BTD  # the rows of the fixed stream are among them
    if context.embedding_BTD is None:
      raise ConfigError(
        "stream = 'embedding' needs a model that hands the first layer's input on; this one does not"
      )
    e_BTD = context.embedding_BTD.astype(jnp.float32)
    square_BT1 = jnp.mean(jnp.square(e_BTD), axis=-1, keepdims=True)
    return (e_BTD * jax.lax.rsqrt(square_BT1 + 1e-12)).astype(x_BTD.dtype)

  def compared(self, q_BTNH, k_BTKH, context):
    if self.cfg.stream == "embedding":
      return q_BTNH, k_BTKH
    if not context.num_fixed_rows:
      raise ConfigError(
        "stream = 'fixed' needs a decoder with fixed_stream; set model.fixed_stream"
      )
    return tuple(jnp.broadcast_to(x[-1:], x.shape) for x in (q_BTNH, k_BTKH))
