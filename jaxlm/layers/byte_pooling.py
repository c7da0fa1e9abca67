"""Shorter encoders by pooling, the baselines of the delete gate: predicted boundaries, and a
strided convolution.

Axes: B batch, L encoder length, C slots, D d_model, F hidden. docs/specs/mrt5.md, section 4.
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.config import ConfigError, checked
from jaxlm.layers.delete_gate import PAD, Mode, Reduced
from jaxlm.layers.t5 import Norm
from jaxlm.layers.weights import normal, weights, zeros
from jaxlm.parameter import matrix
from jaxlm.ranges import Count, Inside, Natural, Positive

xavier = nn.initializers.xavier_uniform()


@dataclasses.dataclass(frozen=True)
@checked
class BoundaryPoolingConfig:
  """Segments end where a relaxed Bernoulli says so (straight through); their states are averaged.

  prior: expected share of boundaries. d_ff: hidden width of the predictor. fillers_visible: slots
  of rows with fewer segments can be seen in the encoder's attention, as in the release.
  """

  tau: ClassVar[None] = None  # bytes are pooled; none is deleted

  layer: Natural = 3
  d_ff: Count = 3584
  temperature: Positive = 0.5
  prior: Inside = 0.2
  fillers_visible: bool = False

  def build(self, init: float, name=None) -> nn.Module:
    return BoundaryPooling(self, init, name=name)


class BoundaryPooling(nn.Module):
  """noise: uniform (B, L), drawn from rng 'noise' if None. Capacity: slots, None = L.

  extra: soft, predicted, hard boundaries (B, L); loss: -mean_b log Binomial(sum hard; L, prior) /
  L.
  """

  cfg: BoundaryPoolingConfig
  init: float = 1.0

  @nn.compact
  def __call__(
    self, h_BLD, tokens_BL, valid_BL, mode: Mode, *, train: bool = False, noise=None
  ) -> Reduced:
    cfg, w, L = self.cfg, weights(self), h_BLD.shape[1]
    minus = nn.initializers.constant(-1.0)
    x_BLD = Norm(self.init, name="norm")(h_BLD).astype(jnp.float32)
    x_BLF = jnp.einsum(
      "bld,df->blf", x_BLD, w("w_in", (x_BLD.shape[-1], cfg.d_ff), ("embed", "mlp"), init=xavier)
    )
    x_BLF = jax.nn.gelu(
      x_BLF + w("b_in", (cfg.d_ff,), ("mlp",), init=minus)[None, None], approximate=False
    )
    z_BL = jnp.einsum(
      "blf,fo->bl", x_BLF, w("w_out", (cfg.d_ff, 1), ("mlp", None), init=xavier, role=matrix())
    )
    z_BL = z_BL + w("b_out", (1,), (None,), init=minus)[None]

    u_BL = jax.random.uniform(self.make_rng("noise"), z_BL.shape) if noise is None else noise
    eps = jnp.finfo(jnp.float32).eps
    u_BL = jnp.clip(u_BL, eps, 1 - eps)
    soft_BL = jax.nn.sigmoid((jnp.log(u_BL) - jnp.log1p(-u_BL) + z_BL) / cfg.temperature)
    predicted_BL = (soft_BL > 0.5).astype(jnp.float32) + soft_BL - jax.lax.stop_gradient(soft_BL)
    real_BL = tokens_BL != PAD
    last_B1 = jnp.max(jnp.where(real_BL, jnp.arange(L)[None], 0), axis=1, keepdims=True)
    hard_BL = jnp.where(jnp.arange(L)[None] == last_B1, 1.0, predicted_BL * real_BL)

    boundary_BL = jax.lax.stop_gradient(hard_BL) > 0.5
    count_B = jnp.sum(boundary_BL, axis=1, dtype=jnp.int32)
    C = mode.capacity or L
    segment_BL = (
      jnp.cumsum(hard_BL, axis=1) - hard_BL
    )  # differentiable: gradients of the members' weights
    offset_BLC = jnp.arange(C, dtype=jnp.float32)[None, None] - segment_BL[..., None]
    member_BLC = jnp.round(jax.lax.stop_gradient(offset_BLC)) == 0
    weight_BLC = jnp.where(member_BLC, 1 - offset_BLC, 0.0)
    weight_BLC = weight_BLC / (jnp.sum(weight_BLC, axis=1, keepdims=True) + 1e-9)
    pooled_BCD = jnp.einsum("blc,bld->bcd", weight_BLC, h_BLD.astype(jnp.float32)).astype(
      h_BLD.dtype
    )
    first_BC = jnp.argmax(member_BLC, axis=1).astype(jnp.int32)
    slot_1C = jnp.arange(C)[None]
    valid_BC = slot_1C < count_B[:, None]
    seen_BC = valid_BC
    if cfg.fillers_visible:  # they stand at the first position
      first_BC = jnp.where(valid_BC, first_BC, 0)
      seen_BC = jnp.take_along_axis(valid_BL, first_BC, axis=1) & (slot_1C < jnp.max(count_B))

    k_B = jnp.sum(hard_BL, axis=1)
    gammaln = jax.scipy.special.gammaln
    log_p_B = (
      gammaln(L + 1.0)
      - gammaln(k_B + 1)
      - gammaln(L - k_B + 1)
      + k_B * jnp.log(cfg.prior)
      + (L - k_B) * jnp.log1p(-cfg.prior)
    )
    return Reduced(
      pooled_BCD,
      seen_BC,
      valid_BC,
      slot_1C.astype(jnp.int32) if cfg.layer == 0 else first_BC,
      keep_BL=boundary_BL,
      count_B=count_B,
      overflow_B=count_B > C,
      extra={
        "soft": soft_BL,
        "predicted": predicted_BL,
        "hard": hard_BL,
        "loss": -jnp.mean(log_p_B) / L,
      },
    )


@dataclasses.dataclass(frozen=True)
@checked
class StridedPoolingConfig:
  """gelu(conv(norm h)), kernel = stride = rate, without padding: a tail shorter than `rate` is
  dropped (CANINE).
  """

  tau: ClassVar[None] = None  # bytes are pooled; none is deleted

  layer: Natural = 3
  rate: Count = 4

  def build(self, init: float, name=None) -> nn.Module:
    return StridedPooling(self, init, name=name)


class StridedPooling(nn.Module):
  cfg: StridedPoolingConfig
  init: float = 1.0

  @nn.compact
  def __call__(
    self, h_BLD, tokens_BL, valid_BL, mode: Mode, *, train: bool = False, noise=None
  ) -> Reduced:
    B, L, D = h_BLD.shape
    r, C, w = self.cfg.rate, L // self.cfg.rate, weights(self, h_BLD.dtype)
    if C == 0:
      raise ConfigError(
        f"rate = {r} is longer than the encoder's input of {L} tokens; use a smaller one"
      )

    def windows(x):
      return x[:, : C * r].reshape(B, C, r, *x.shape[2:])

    x_BCRD = windows(Norm(self.init, name="norm")(h_BLD))
    conv_RDD = w(
      "w", (r, D, D), (None, "embed", None), init=normal((r * D) ** -0.5), role=matrix((0, 1), (2,))
    )
    y_BCD = (
      jnp.einsum("bcrd,rde->bce", x_BCRD, conv_RDD)
      + w("b", (D,), ("embed",), init=zeros)[None, None]
    )
    index_1C = (jnp.arange(C, dtype=jnp.int32) * (1 if self.cfg.layer == 0 else r))[None]
    valid_BC = jnp.any(windows(valid_BL), axis=2)
    return Reduced(
      jax.nn.gelu(y_BCD, approximate=False),
      windows(valid_BL)[:, :, 0],
      valid_BC,
      jnp.broadcast_to(index_1C, (B, C)),
      count_B=jnp.sum(valid_BC, axis=1, dtype=jnp.int32),
      overflow_B=jnp.zeros(B, bool),
    )
