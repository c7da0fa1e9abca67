"""The DeltaNet mixer (arXiv 2406.06484) and its gated form (arXiv 2412.06464).

Axes: B batch, T time, J convolution taps, D d_model, N heads, H key width of a head, E value width,
F channels.
"""

import dataclasses
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.config import ConfigError, checked
from jaxlm.kernels.delta_rule import delta_rule
from jaxlm.layers.causal_conv import causal_conv, history, last_inputs, no_inputs
from jaxlm.layers.mamba2 import init_a_log, init_conv, init_dt_bias, starts
from jaxlm.layers.mixer import Context, Mixer, given_or_plain
from jaxlm.layers.norms import rms_norm
from jaxlm.layers.rewind import trail, walk
from jaxlm.layers.taps import tap
from jaxlm.layers.weights import normal, ones, weights
from jaxlm.parameter import SPARED
from jaxlm.ranges import Count, NonNegative, Positive


@dataclasses.dataclass(frozen=True)
@checked
class DeltaRuleConfig(Mixer):
  """expand_k, expand_v: all heads' key and value channels over d_model. d_conv: taps of the short
  convolutions.
  """

  num_heads: Count = 4
  expand_k: Positive = 1.0
  expand_v: Positive = 1.0
  d_conv: Count = 4
  norm_eps: NonNegative = 1e-5
  chunk: Count = 64
  implementation: Literal["xla", "reference", "pallas"] | None = None

  gated = False  # not a field: the class says it

  def widths(self, d_model: int) -> tuple[int, int]:
    """(H, E) of one head."""
    sizes = [int(d_model * x) for x in (self.expand_k, self.expand_v)]
    for name, size in zip(("expand_k", "expand_v"), sizes):
      if size < 1 or size % self.num_heads:
        raise ConfigError(
          f"{name} of the delta rule gives {size} channels, which num_heads = {self.num_heads} does not "
          "divide"
        )
    return sizes[0] // self.num_heads, sizes[1] // self.num_heads

  def build(self, d_model: int, dtype: str, name=None) -> nn.Module:
    self.widths(d_model)
    return DeltaRule(self, d_model, dtype, name=name)

  def init_state(
    self, d_model: int, batch_size: int, max_len: int, dtype, rewindable: int = 0
  ) -> "DeltaState":
    (H, E), N = self.widths(d_model), self.num_heads

    def past(width):
      return no_inputs(batch_size, self.d_conv, N * width, dtype, rewindable)

    start_BNHE = jnp.zeros((batch_size, N, H, E), jnp.float32)
    return DeltaState((past(H), past(H), past(E)), trail(start_BNHE, rewindable))


@dataclasses.dataclass(frozen=True)
class GatedDeltaRuleConfig(DeltaRuleConfig):
  """With a decay per head and token, and an output gate."""

  gated = True


class DeltaState(NamedTuple):
  """The last J inputs of the convolutions of q, k, v, oldest first; and S_t, float32. Each as
  `layers.rewind` keeps it where the state can go back.
  """

  past: tuple
  recurrent_BNHE: jax.Array


class DeltaRule(nn.Module):
  """y = rms_norm(S_t^T q_t) w_o, with S_t = S_{t-1} + k_t (beta_t (v_t - S_{t-1}^T k_t))^T and unit
  q, k.
  """

  cfg: DeltaRuleConfig
  d_model: int
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x_BTD, context: Context | None = None, state: DeltaState | None = None):
    context = given_or_plain(context, x_BTD, state)
    cfg, w, D, N = self.cfg, weights(self, self.dtype), self.d_model, self.cfg.num_heads
    H, E = cfg.widths(D)
    valid_BT = context.segment_ids_BT != 0
    reset_BT = starts(context.segment_ids_BT) if context.packed and state is None else None

    def project(name, width):
      return jnp.einsum(
        "btd,dnh->btnh", x_BTD, w(name, (D, N, width), ("embed", "heads", "head_dim"))
      )

    def short(letter, width, past):
      """silu(conv(x w)), and the inputs that the next tokens will need."""
      y_BTF = project(f"w_{letter}", width).reshape(*x_BTD.shape[:2], N * width)
      taps_JNH = weights(self)(
        f"w_conv_{letter}",
        (cfg.d_conv, N, width),
        (None, "heads", "head_dim"),
        init=init_conv(cfg.d_conv),
        role=SPARED,
      )
      out_BTF = causal_conv(
        y_BTF,
        taps_JNH.reshape(cfg.d_conv, -1),
        jnp.zeros(N * width),
        reset_BT,
        history(past, cfg.d_conv),
      )
      past = None if past is None else last_inputs(y_BTF, past, valid_BT)
      return out_BTF.reshape(*x_BTD.shape[:2], N, width), past

    pasts = (None,) * 3 if state is None else state.past
    (q_BTNH, past_q), (k_BTNH, past_k), (v_BTNE, past_v) = (
      short(letter, width, past) for letter, width, past in zip("qkv", (H, H, E), pasts)
    )

    q_BTNH, k_BTNH, v_BTNE = tap(self, "q", q_BTNH), tap(self, "k", k_BTNH), tap(self, "v", v_BTNE)

    def per_head(name):
      return jnp.einsum("btd,dn->btn", x_BTD, w(name, (D, N), ("embed", "heads"))).astype(
        jnp.float32
      )

    beta_BTN, decay_BTN = jax.nn.sigmoid(per_head("w_beta")), None
    if cfg.gated:
      rate_N = jnp.exp(weights(self)("a_log", (N,), ("heads",), init=init_a_log))
      bias_N = weights(self)("b_decay", (N,), ("heads",), init=init_dt_bias)
      decay_BTN = -rate_N[None, None] * jax.nn.softplus(per_head("w_decay") + bias_N[None, None])

    ids_BT = context.segment_ids_BT if context.packed and state is None else None

    def recur(inputs, valid_BT, state_BNHE):
      q_BTNH, k_BTNH, v_BTNE, beta_BTN, decay_BTN = inputs
      if state_BNHE is not None:  # a token that is not there writes nothing and lets nothing fade
        beta_BTN = beta_BTN * valid_BT[..., None]
        decay_BTN = None if decay_BTN is None else decay_BTN * valid_BT[..., None]
      return delta_rule(
        _unit(q_BTNH),
        _unit(k_BTNH),
        v_BTNE,
        beta_BTN,
        decay_BTN,
        chunk=cfg.chunk,
        implementation=cfg.implementation,
        initial_state_BNHE=state_BNHE,
        segment_ids_BT=ids_BT,
        spec=nn.logical_to_mesh_axes(("batch", None, "heads", None)),
      )

    inputs = q_BTNH, k_BTNH, v_BTNE, beta_BTN, decay_BTN
    o_BTNE, last = walk(recur, None if state is None else state.recurrent_BNHE, inputs, valid_BT)
    o_BTNE = rms_norm(o_BTNE, weights(self)("scale", (E,), ("head_dim",), init=ones), cfg.norm_eps)
    if cfg.gated:
      o_BTNE = o_BTNE * jax.nn.silu(project("w_gate", E))
    w_o = w(
      "w_o", (N, E, D), ("heads", "head_dim", "embed"), init=normal(0.02 / context.depth**0.5)
    )
    y_BTD = jnp.einsum("btne,ned->btd", tap(self, "heads", o_BTNE.astype(self.dtype)), w_o)
    return y_BTD, None if state is None else DeltaState((past_q, past_k, past_v), last)


def _unit(x):
  """x / sqrt(|x|^2 + 1e-6), as the libraries have it: differentiable at 0."""
  x32 = x.astype(jnp.float32)
  return x32 * jax.lax.rsqrt(jnp.sum(jnp.square(x32), -1, keepdims=True) + 1e-6)
