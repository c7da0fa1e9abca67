"""The gated-linear-attention mixer (arXiv 2312.06635).

Axes: B batch, T time, D d_model, N heads, H key width of a head, E value width, R rank of the
decay.
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.config import ConfigError, checked
from jaxlm.kernels.gla import BLOCK, gla
from jaxlm.layers.mixer import Context, Mixer, given_or_plain
from jaxlm.layers.norms import rms_norm
from jaxlm.layers.rewind import trail, walk
from jaxlm.layers.taps import tap
from jaxlm.layers.weights import normal, ones, weights, zeros
from jaxlm.parameter import matrix
from jaxlm.ranges import Count, NonNegative, Positive


@dataclasses.dataclass(frozen=True)
@checked
class GLAConfig(Mixer):
  """expand_k, expand_v: all heads' key and value channels over d_model. decay_rank: of the map to
  the decays.

  chunk: a multiple of 16. decay_temperature: log decay = log sigmoid(.) / temperature; 16 starts
  near exp(-0.04) per token.
  """

  num_heads: Count = 4
  expand_k: Positive = 0.5
  expand_v: Positive = 1.0
  decay_rank: Count = 16
  decay_temperature: Positive = 16.0
  norm_eps: NonNegative = 1e-5
  chunk: Count = 64
  implementation: Literal["xla", "reference", "pallas"] | None = None

  def __post_init__(self):
    if self.chunk % BLOCK:
      raise ConfigError(
        f"chunk = {self.chunk} of gla: wanted a multiple of {BLOCK}; use {-(-self.chunk // BLOCK) * BLOCK}"
      )

  def widths(self, d_model: int) -> tuple[int, int]:
    """(H, E) of one head."""
    sizes = [int(d_model * x) for x in (self.expand_k, self.expand_v)]
    for name, size in zip(("expand_k", "expand_v"), sizes):
      if size < 1 or size % self.num_heads:
        raise ConfigError(
          f"{name} of gla gives {size} channels, which num_heads = {self.num_heads} does not divide"
        )
    return sizes[0] // self.num_heads, sizes[1] // self.num_heads

  def build(self, d_model: int, dtype: str, name=None) -> nn.Module:
    self.widths(d_model)
    return GLA(self, d_model, dtype, name=name)

  def init_state(self, d_model: int, batch_size: int, max_len: int, dtype, rewindable: int = 0):
    """S_t, float32: all that is remembered."""
    start_BNHE = jnp.zeros((batch_size, self.num_heads, *self.widths(d_model)), jnp.float32)
    return trail(start_BNHE, rewindable)


class GLA(nn.Module):
  """y = (rms_norm(S_t^T q_t) * silu(x w_gate)) w_o, with S_t = diag(decay_t) S_{t-1} + k_t v_t^T."""

  cfg: GLAConfig
  d_model: int
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x_BTD, context: Context | None = None, state=None):
    context = given_or_plain(context, x_BTD, state)
    cfg, w, D, N = self.cfg, weights(self, self.dtype), self.d_model, self.cfg.num_heads
    H, E = cfg.widths(D)

    def project(name, width):
      return jnp.einsum(
        "btd,dnh->btnh", x_BTD, w(name, (D, N, width), ("embed", "heads", "head_dim"))
      )

    q_BTNH, k_BTNH, v_BTNE = (
      tap(self, name, project(f"w_{name}", width)) for name, width in zip("qkv", (H, H, E))
    )
    low_BTR = jnp.einsum(
      "btd,dr->btr", x_BTD, w("w_decay_in", (D, cfg.decay_rank), ("embed", None))
    )
    w_RNH = w(
      "w_decay_out", (cfg.decay_rank, N, H), (None, "heads", "head_dim"), role=matrix((0,), (1, 2))
    )
    decay_BTNH = jnp.einsum("btr,rnh->btnh", low_BTR, w_RNH)
    decay_BTNH = (
      decay_BTNH.astype(jnp.float32)
      + weights(self)("b_decay", (N, H), ("heads", "head_dim"), init=zeros)[None, None]
    )
    decay_BTNH = jax.nn.log_sigmoid(decay_BTNH) / cfg.decay_temperature

    ids_BT = context.segment_ids_BT if context.packed and state is None else None

    def recur(inputs, valid_BT, state_BNHE):
      q_BTNH, k_BTNH, v_BTNE, decay_BTNH = inputs
      if valid_BT is not None:  # a token that is not there writes nothing and lets nothing fade
        valid = valid_BT[:, :, None, None]
        k_BTNH, decay_BTNH = k_BTNH * valid, decay_BTNH * valid
      return gla(
        q_BTNH,
        k_BTNH,
        v_BTNE,
        decay_BTNH,
        initial_state_BNHE=state_BNHE,
        segment_ids_BT=ids_BT,
        chunk=cfg.chunk,
        implementation=cfg.implementation,
        spec=nn.logical_to_mesh_axes(("batch", None, "heads", None)),
      )

    valid_BT = None if state is None else context.segment_ids_BT != 0
    o_BTNE, last = walk(recur, state, (q_BTNH, k_BTNH, v_BTNE, decay_BTNH), valid_BT)
    o_BTNE = rms_norm(o_BTNE, weights(self)("scale", (E,), ("head_dim",), init=ones), cfg.norm_eps)
    o_BTNE = o_BTNE * jax.nn.silu(project("w_gate", E))
    w_o = w(
      "w_o", (N, E, D), ("heads", "head_dim", "embed"), init=normal(0.02 / context.depth**0.5)
    )
    o_BTNE = tap(self, "heads", o_BTNE.astype(self.dtype))
    return jnp.einsum("btne,ned->btd", o_BTNE, w_o), None if state is None else last
