"""Normalisation of the last axis: root mean square and LayerNorm.

Axes: ... any leading axes, D the width, which is normalised.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.config import Kinds, checked
from jaxlm.kernels.recomputed import recomputed_on_cpu
from jaxlm.layers.weights import ones, weights, zeros
from jaxlm.ranges import NonNegative

NORMS = Kinds(
  "norm",
  {
    "rms": "jaxlm.layers.norms:RMSNormConfig",
    "layer": "jaxlm.layers.norms:LayerNormConfig",
  },
)


@dataclasses.dataclass(frozen=True)
@checked
class RMSNormConfig:
  """unit_offset: the parameter is w - 1 and starts at 0 (Gemma); decaying it pulls the scale to 1."""

  eps: NonNegative = 1e-6
  unit_offset: bool = False

  def build(self, dtype, name=None, axis="embed") -> nn.Module:
    return RMSNorm(self, dtype, axis, name=name)


@dataclasses.dataclass(frozen=True)
@checked
class LayerNormConfig:
  eps: NonNegative = 1e-5
  use_bias: bool = True

  def build(self, dtype, name=None, axis="embed") -> nn.Module:
    return LayerNorm(self, dtype, axis, name=name)


@recomputed_on_cpu(static_argnums=(2,))
def rms_norm(x, scale_D, eps):
  """x / sqrt(mean(x^2) + eps) * scale over the last axis, float32 inside, x's dtype out."""
  x32 = _without_ones(x.astype(jnp.float32))
  x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), -1, keepdims=True) + eps)
  return (x32 * _last(scale_D, x32.ndim)).astype(x.dtype).reshape(x.shape)


@recomputed_on_cpu(static_argnums=(3,))
def layer_norm(x, scale_D, bias_D, eps):
  """(x - mean) / sqrt(var + eps) * scale + bias over the last axis, float32 inside, x's dtype out."""
  x32 = _without_ones(x.astype(jnp.float32))
  x32 = x32 - jnp.mean(x32, -1, keepdims=True)
  x32 = (
    x32
    * jax.lax.rsqrt(jnp.mean(jnp.square(x32), -1, keepdims=True) + eps)
    * _last(scale_D, x32.ndim)
  )
  return (x32 if bias_D is None else x32 + _last(bias_D, x32.ndim)).astype(x.dtype).reshape(x.shape)


def _without_ones(x):
  """x without leading axes of size 1, with which the sums of a norm's gradient are slow on a CPU
  (kernels.sums).
  """
  return x.reshape(*(size for size in x.shape[:-1] if size != 1), x.shape[-1])


def _last(w, ndim):
  """w: (D,), or that and axes before it, as the groups of a grouped norm."""
  w = _without_ones(w)
  return w.reshape((1,) * (ndim - w.ndim) + w.shape)


class RMSNorm(nn.Module):
  """axis: logical name of the normalised axis."""

  cfg: RMSNormConfig
  dtype: str = "float32"
  axis: str = "embed"

  @nn.compact
  def __call__(self, x):
    offset = float(self.cfg.unit_offset)
    scale_D = weights(self)("scale", (x.shape[-1],), (self.axis,), init=zeros if offset else ones)
    return rms_norm(x.astype(self.dtype), scale_D + offset if offset else scale_D, self.cfg.eps)


class LayerNorm(nn.Module):
  """axis: logical name of the normalised axis."""

  cfg: LayerNormConfig
  dtype: str = "float32"
  axis: str = "embed"

  @nn.compact
  def __call__(self, x):
    w = weights(self)
    scale_D = w("scale", (x.shape[-1],), (self.axis,), init=ones)
    bias_D = w("bias", (x.shape[-1],), (self.axis,), init=zeros) if self.cfg.use_bias else None
    return layer_norm(x.astype(self.dtype), scale_D, bias_D, self.cfg.eps)
