"""The Mamba-2 mixer: a short convolution, a selective state space, a gated norm (arXiv 2405.21060).

Axes: B batch, T time, J convolution taps, D d_model, N heads, H head_dim, K groups of heads that
share B and C, E state size, F channels of one convolution.
"""

import dataclasses
import math
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.config import ConfigError, checked
from jaxlm.kernels.ssd import ssd
from jaxlm.layers.causal_conv import causal_conv, history, last_inputs, no_inputs
from jaxlm.layers.linear import linear
from jaxlm.layers.mixer import Context, Mixer, given_or_plain
from jaxlm.layers.norms import rms_norm
from jaxlm.layers.rewind import trail, walk
from jaxlm.layers.taps import tap
from jaxlm.layers.weights import normal, ones, weights, zeros
from jaxlm.parameter import SPARED
from jaxlm.ranges import Count, NonNegative


@dataclasses.dataclass(frozen=True)
@checked
class Mamba2Config(Mixer):
  """d_inner = expand * d_model channels in heads of head_dim; d_state: E; d_conv: taps J.

  num_groups: of heads that share B and C. norm_per_group: the gated norm's statistics are those of
  a group (as released), not of all channels; the same with one group. use_bias: on the input and
  output projections.
  followed_by_mlp: the block has an MLP after this mixer (the layout letter M), or ends with it (m).
  """

  d_state: Count = 128
  d_conv: Count = 4
  expand: Count = 2
  head_dim: Count = 64
  num_groups: Count = 1
  norm_per_group: bool = True
  norm_eps: NonNegative = 1e-5
  use_bias: bool = False
  followed_by_mlp: bool = False
  implementation: Literal["xla", "reference", "pallas", "pallas_gpu"] | None = None

  def num_heads(self, d_model: int) -> int:
    d_inner = self.expand * d_model
    if d_inner % self.head_dim:
      raise ConfigError(
        f"expand * d_model = {d_inner} is not a multiple of head_dim = {self.head_dim} of mamba2; "
        f"choose d_model a multiple of {self.head_dim // math.gcd(self.head_dim, self.expand)}"
      )
    if d_inner // self.head_dim % self.num_groups:
      raise ConfigError(
        f"num_groups = {self.num_groups} does not divide the {d_inner // self.head_dim} heads of mamba2"
      )
    return d_inner // self.head_dim

  def build(self, d_model: int, dtype: str, name=None) -> nn.Module:
    return Mamba2(self, d_model, dtype, name=name)

  def init_state(
    self, d_model: int, batch_size: int, max_len: int, dtype, rewindable: int = 0
  ) -> "Mamba2State":
    N, H, K, E = self.num_heads(d_model), self.head_dim, self.num_groups, self.d_state
    return Mamba2State(
      no_inputs(batch_size, self.d_conv, N * H, dtype, rewindable),
      no_inputs(batch_size, self.d_conv, 2 * K * E, dtype, rewindable),
      trail(jnp.zeros((batch_size, N, H, E), jnp.float32), rewindable),
    )


class Mamba2State(NamedTuple):
  """The last J inputs of the convolutions, oldest first, zeros before the first token; and S_t,
  float32. Each as `layers.rewind` keeps it where the state can go back.
  """

  x_BJF: jax.Array
  bc_BJF: jax.Array
  ssm_BNHE: jax.Array


def starts(segment_ids_BT):
  """True where the segment differs from that of the token before; False at the row's start, where
  nothing is carried in."""
  return jnp.pad(segment_ids_BT[:, 1:] != segment_ids_BT[:, :-1], ((0, 0), (1, 0)))


def gated_norm(y_BTF, z_BTF, scale_F, num_groups, eps):
  """RMSNorm(y * silu(z)) * scale, statistics over the channels of a group of heads. Float32."""
  y_BTF = y_BTF.astype(jnp.float32) * jax.nn.silu(z_BTF.astype(jnp.float32))
  y_BTKF = y_BTF.reshape(*y_BTF.shape[:2], num_groups, -1)
  return rms_norm(y_BTKF, scale_F.reshape(num_groups, -1), eps).reshape(y_BTF.shape)


def init_dt_bias(key, shape, dtype=jnp.float32):
  """Inverse softplus of a step log-uniform in [1e-3, 1e-1]."""
  low, high = math.log(1e-3), math.log(1e-1)
  dt = jnp.maximum(jnp.exp(jax.random.uniform(key, shape, minval=low, maxval=high)), 1e-4)
  return (dt + jnp.log(-jnp.expm1(-dt))).astype(dtype)


def init_a_log(key, shape, dtype=jnp.float32):
  return jnp.log(jax.random.uniform(key, shape, minval=1.0, maxval=16.0)).astype(dtype)


def init_conv(num_taps: int):
  """Uniform within 1 / sqrt(fan in), the fan-in of a depthwise convolution being its taps."""
  limit = num_taps**-0.5
  return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -limit, limit)


class Mamba2(nn.Module):
  """[z, x, B, C, dt] = u w;  x, B, C = silu(conv);  S_t = e^{a dt} S_{t-1} + dt x (x) B;  y =
  norm((S C + D x) silu(z)) w_out.

  The weights of the official fused in_proj and conv1d are apart here, because z, x and dt are split
  over heads on a tensor axis while B and C, which all heads of a group read, are replicated.
  """

  cfg: Mamba2Config
  d_model: int
  dtype: str = "float32"

  @nn.compact
  def __call__(self, u_BTD, context: Context | None = None, state: Mamba2State | None = None):
    context = given_or_plain(context, u_BTD, state)
    cfg, w, stored, D = self.cfg, weights(self, self.dtype), weights(self), self.d_model
    N, H, K, E, J = cfg.num_heads(D), cfg.head_dim, cfg.num_groups, cfg.d_state, cfg.d_conv
    B, T, _ = u_BTD.shape

    def project(suffix, shape, axes):
      flat = math.prod(shape)
      y = linear(u_BTD, w(f"w_{suffix}", (D, *shape), ("embed", *axes)).reshape(D, flat))
      return (
        y + w(f"b_{suffix}", shape, axes, init=zeros).reshape(1, 1, flat) if cfg.use_bias else y
      )

    z_BTF, x_BTF = (
      project("z", (N, H), ("heads", "head_dim")),
      project("x", (N, H), ("heads", "head_dim")),
    )
    bc_BTF, dt_BTN = project("bc", (2, K, E), (None, None, None)), project("dt", (N,), ("heads",))

    if state is None:
      reset_BT = starts(context.segment_ids_BT) if context.packed else None
      valid_BT = None
    else:  # a row that goes on is one document; what is invalid must not touch the state
      reset_BT, valid_BT = None, context.segment_ids_BT != 0

    def conv(suffix, x_BTF, shape, axes, history_BJF):
      w_JF = stored(
        f"conv_{suffix}", (J, *shape), (None, *axes), init=init_conv(J), role=SPARED
      ).reshape(J, -1)
      b_F = stored(f"b_conv_{suffix}", shape, axes, init=init_conv(J)).reshape(-1)
      return causal_conv(x_BTF, w_JF, b_F, reset_BT, history_BJF).astype(self.dtype)

    old = Mamba2State(None, None, None) if state is None else state
    x_BTF_, bc_BTF_ = history(old.x_BJF, J), history(old.bc_BJF, J)
    x_BTNH = conv("x", x_BTF, (N, H), ("heads", "head_dim"), x_BTF_).reshape(B, T, N, H)
    bc_BT2KE = conv("bc", bc_BTF, (2, K, E), (None, None, None), bc_BTF_).reshape(B, T, 2, K, E)

    dt_BTN = jax.nn.softplus(
      dt_BTN.astype(jnp.float32)
      + stored("dt_bias", (N,), ("heads",), init=init_dt_bias)[None, None]
    )
    a_N = -jnp.exp(stored("a_log", (N,), ("heads",), init=init_a_log))
    d_N = stored("d_skip", (N,), ("heads",), init=ones)

    def recur(inputs, valid_BT, ssm_BNHE):
      x_BTNH, dt_BTN, bc_BT2KE = inputs
      return ssd(
        x_BTNH,
        dt_BTN if valid_BT is None else jnp.where(valid_BT[..., None], dt_BTN, 0),
        a_N,
        bc_BT2KE[:, :, 0],
        bc_BT2KE[:, :, 1],
        d_N=d_N,
        reset_BT=reset_BT,
        initial_state_BNHE=ssm_BNHE,
        implementation=cfg.implementation,
        spec=nn.logical_to_mesh_axes(("batch", None, "heads", None)),
      )

    y_BTNH, ssm_BNHE = walk(recur, old.ssm_BNHE, (x_BTNH, dt_BTN, bc_BT2KE), valid_BT)

    scale_NH = stored("norm_scale", (N, H), ("heads", "head_dim"), init=ones)

    def normed(y_BTF, z_BTF, scale_F):
      return gated_norm(y_BTF, z_BTF, scale_F, K if cfg.norm_per_group else 1, cfg.norm_eps).astype(
        self.dtype
      )

    y_BTF = jax.checkpoint(normed)(y_BTNH.reshape(B, T, -1), z_BTF, scale_NH.reshape(-1))
    y_BTNH = y_BTF.reshape(B, T, N, H)
    w_out_NHD = w(
      "w_out", (N, H, D), ("heads", "head_dim", "embed"), init=normal(0.02 / context.depth**0.5)
    )
    y_BTD = linear(tap(self, "heads", y_BTNH), w_out_NHD, contract=2)
    if cfg.use_bias:
      y_BTD = y_BTD + w("b_out", (D,), ("embed",), init=zeros)[None, None]
    if state is not None:
      state = Mamba2State(
        last_inputs(x_BTF, state.x_BJF, valid_BT),
        last_inputs(bc_BTF, state.bc_BJF, valid_BT),
        ssm_BNHE,
      )
    return y_BTD, state
