"""The feed-forward layer, plain or gated.

Axes: B batch, T time, D d_model, F d_ff.
"""

import dataclasses
import functools
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.config import checked
from jaxlm.kernels.platform import target_platform
from jaxlm.kernels.recomputed import recomputed_on_cpu
from jaxlm.layers.linear import linear
from jaxlm.layers.taps import tap
from jaxlm.layers.weights import normal, weights, zeros
from jaxlm.ranges import Count

ACTIVATIONS = {
  "gelu": functools.partial(jax.nn.gelu, approximate=False),
  "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
  "silu": jax.nn.silu,
  "relu": jax.nn.relu,
  "relu2": lambda x: jnp.square(jax.nn.relu(x)),
  "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
  "tanh": jnp.tanh,
}


@dataclasses.dataclass(frozen=True)
@checked
class MLPConfig:
  """d_ff None: 4 d_model. gated: act(x w_gate) * (x w_in); SwiGLU is silu, GeGLU gelu_tanh."""

  d_ff: Count | None = None
  activation: Literal["gelu", "gelu_tanh", "silu", "relu", "relu2", "quick_gelu", "tanh"] = (
    "gelu_tanh"
  )
  gated: bool = False
  use_bias: bool = False

  def build(self, d_model: int, dtype: str, name=None) -> nn.Module:
    return MLP(self, d_model, dtype, name=name)


def activated(inner: tuple, activation: str):
  """act(x) of (x,), act(gate) * x of (gate, x)."""
  h = ACTIVATIONS[activation](inner[0])
  return h * inner[1] if len(inner) == 2 else h


@recomputed_on_cpu(static_argnums=(2,))
def activated_linear(inner: tuple, w_FD, activation: str):
  """(act(gate) * x) w or act(x) w, of which the backward pass keeps `inner` and w alone."""
  return linear(activated(inner, activation), w_FD)


class MLP(nn.Module):
  """y = act(x w_in) w_out, or (act(x w_gate) * (x w_in)) w_out. depth: residual branches of the
  network.
  """

  cfg: MLPConfig
  d_model: int
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x_BTD, depth: int = 1):
    cfg, w, D = self.cfg, weights(self, self.dtype), self.d_model
    F = cfg.d_ff or 4 * D

    def up(suffix):
      h_BTF = linear(x_BTD, w(f"w_{suffix}", (D, F), ("embed", "mlp")))
      return (
        h_BTF + w(f"b_{suffix}", (F,), ("mlp",), init=zeros)[None, None] if cfg.use_bias else h_BTF
      )

    inner = (up("gate"), up("in")) if cfg.gated else (up("in"),)
    h_BTF = activated(inner, cfg.activation)
    tapped_BTF = tap(self, "mlp_hidden", h_BTF)
    w_out_FD = w("w_out", (F, D), ("mlp", "embed"), init=normal(0.02 / depth**0.5))
    # An edited hidden state is not a function of `inner`, so it is multiplied as it is.
    if tapped_BTF is h_BTF and target_platform() == "cpu":
      y_BTD = activated_linear(inner, w_out_FD, cfg.activation)
    else:
      y_BTD = linear(tapped_BTF, w_out_FD)
    return y_BTD + w("b_out", (D,), ("embed",), init=zeros)[None, None] if cfg.use_bias else y_BTD
