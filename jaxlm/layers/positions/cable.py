"""CABLE: an additive penalty that grows with content (arXiv 2503.08067), the sister method of CARoPE.

Axes: B batch, T time, S keys, D d_model, N heads.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxlm.kernels.attention import KeyBias
from jaxlm.layers.positions import Encoded, Position
from jaxlm.layers.weights import weights, zeros


@dataclasses.dataclass(frozen=True)
class CABLE(Position):
  """s_mn += B_m - B_n, B_m = -sum_{t<=m} softplus(x_t W + c): ALiBi whose slope is chosen by every token."""

  def encode(self, module, heads, q_BTNH, k_BTKH, x_BTD, context, shared, state):
    w = weights(module)
    kernel_DN = w("cable_kernel", (heads.d_model, heads.num_heads), ("embed", "heads"))
    bias_N = w("cable_bias", (heads.num_heads,), ("heads",), init=zeros)
    step_BTN = jax.nn.softplus(jnp.einsum("btd,dn->btn", x_BTD, kernel_DN, preferred_element_type=jnp.float32)
                               + bias_N[None, None])
    step_BTN = jnp.where((context.segment_ids_BT != 0)[..., None], step_BTN, 0.0)
    total_BTN = -jnp.cumsum(step_BTN, axis=1)
    if state is None:
      return Encoded(q_BTNH, k_BTKH, total_BTN)
    total_BTN += state[:, None]
    return Encoded(q_BTNH, k_BTKH, total_BTN, total_BTN[:, -1])

  def bias(self, module, heads, query_info, key_info, shared):
    return KeyBias(query_info, key_info)

  def init_state(self, heads, batch_size):
    return jnp.zeros((batch_size, heads.num_heads), jnp.float32)

  def init_key_info(self, heads, batch_size, num_keys):
    return jnp.zeros((batch_size, num_keys, heads.num_heads), jnp.float32)
