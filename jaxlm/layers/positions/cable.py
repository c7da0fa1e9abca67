"""CABLE: an additive penalty that grows with content (arXiv 2503.08067), the sister method of
CARoPE.

Axes: B batch, T time, S keys, D d_model, N heads.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.kernels.attention import KeyBias
from jaxlm.layers.positions import Encoded, Position
from jaxlm.layers.rewind import walk
from jaxlm.layers.weights import weights, zeros


@dataclasses.dataclass(frozen=True)
class CABLE(Position):
  """s_mn += B_m - B_n, B_m = -sum_{t<=m} softplus(x_t W + c): ALiBi whose slope is chosen by every
  token.
  """

  def encode(self, module, heads, q_BTNH, k_BTKH, x_BTD, context, shared, state):
    w = weights(module)
    kernel_DN = w("cable_kernel", (heads.d_model, heads.num_heads), ("embed", "heads"))
    bias_N = w("cable_bias", (heads.num_heads,), ("heads",), init=zeros)
    step_BTN = jax.nn.softplus(
      jnp.einsum("btd,dn->btn", x_BTD, kernel_DN, preferred_element_type=jnp.float32)
      + bias_N[None, None]
    )
    if state is None:
      step_BTN = jnp.where((context.segment_ids_BT != 0)[..., None], step_BTN, 0.0)
      total = running_sum(step_BTN, None)
      return Encoded(q_BTNH, k_BTKH, jax.tree.map(jnp.negative, total))

    def add(step_BTN, valid_BT, before):
      total = running_sum(jnp.where(valid_BT[..., None], step_BTN, 0.0), before)
      return total, jax.tree.map(lambda x_BTN: x_BTN[:, -1], total)

    total, state = walk(add, state, step_BTN, context.segment_ids_BT != 0)
    return Encoded(q_BTNH, k_BTKH, jax.tree.map(jnp.negative, total), state)

  def bias(self, module, heads, query_info, key_info, shared):
    return tuple(KeyBias(q_BTN, k_BSN) for q_BTN, k_BSN in zip(query_info, key_info))

  def init_state(self, heads, batch_size):
    zero_BN = jnp.zeros((batch_size, heads.num_heads), jnp.float32)
    return Total(zero_BN, zero_BN)

  def init_key_info(self, heads, batch_size, num_keys):
    zero_BSN = jnp.zeros((batch_size, num_keys, heads.num_heads), jnp.float32)
    return Total(zero_BSN, zero_BSN)


class Total(NamedTuple):
  """A sum as a whole number and a rest in [0, 1), each (B, T, N).

  The bias of a pair is a difference of two sums. Whole numbers below 2^24 are subtracted without an
  error, and rests are small: so the difference is as exact at the end of a long row as at its
  start.
  """

  whole: jax.Array
  rest: jax.Array


def running_sum(step_BTN, before: Total | None) -> Total:
  """sum_{t <= m} step_t. before: (B, N), what came before the first token.

  The gradient is that of the plain sum.
  """

  def carry(whole, rest):
    over = jax.lax.stop_gradient(jnp.floor(rest))
    return Total(whole + over, rest - over)

  def add(a, b):
    return carry(a.whole + b.whole, a.rest + b.rest)

  steps = carry(jnp.zeros_like(step_BTN), step_BTN)
  if before is not None:
    first = add(before, jax.tree.map(lambda x_BTN: x_BTN[:, 0], steps))
    steps = jax.tree.map(lambda x_BTN, x_BN: x_BTN.at[:, 0].set(x_BN), steps, first)
  return jax.lax.associative_scan(add, steps, axis=1)
