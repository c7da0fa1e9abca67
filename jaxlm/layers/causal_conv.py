"""A short convolution of every channel with its own past, and silu.

Axes: B batch, T time, J taps, S = T + J - 1: the J - 1 inputs before the first, then the row; U = T
+ 2 (J - 1); F channels.
"""

import jax
import jax.numpy as jnp

from jaxlm.kernels.sums import sum_of_products
from jaxlm.layers.rewind import Past


def causal_conv(x_BTF, w_JF, b_F, reset_BT=None, history_BJF=None):
  """silu(sum_j w_j x_{t-(J-1)+j} + b), over the inputs of t's own document. Float32.

  reset_BT: bool, a document starts at t. history: the inputs before the first; zeros if absent.
  """
  J = w_JF.shape[0]
  if history_BJF is None:
    history_BJF = jnp.zeros((x_BTF.shape[0], J, x_BTF.shape[2]), x_BTF.dtype)
  run_BS = None if reset_BT is None else jnp.pad(jnp.cumsum(reset_BT, axis=1), ((0, 0), (J - 1, 0)))
  return _conv_silu(jnp.concatenate([history_BJF[:, 1:], x_BTF], axis=1), w_JF, b_F, run_BS)


def no_inputs(batch_size: int, num_taps: int, width: int, dtype, rewindable: int = 0):
  """The decoding state before the first token: zeros (B, J, F), or a Past where it can go back."""
  inputs = jnp.zeros((batch_size, num_taps + rewindable, width), dtype)
  return Past(inputs, jnp.zeros(batch_size, jnp.int32)) if rewindable else inputs


def history(past, num_taps: int):
  """The last J inputs, (B, J, F), of a decoding state; None of None."""
  return past.inputs_BSF[:, -num_taps:] if isinstance(past, Past) else past


def last_inputs(x_BTF, past, valid_BT):
  """The decoding state after the last valid token of each row. Padding is on the right."""
  old_BSF = past.inputs_BSF if isinstance(past, Past) else past
  S, count_B = old_BSF.shape[1], jnp.sum(valid_BT, axis=1)
  all_BTF = jnp.concatenate([old_BSF, x_BTF.astype(old_BSF.dtype)], axis=1)

  def cut(x_TF, n):
    return jax.lax.dynamic_slice_in_dim(x_TF, n, S)

  inputs_BSF = jax.vmap(cut)(all_BTF, count_B)
  if not isinstance(past, Past):
    return inputs_BSF
  return Past(inputs_BSF, past.length_B + count_B.astype(jnp.int32))


@jax.custom_vjp
def _conv_silu(x_BSF, w_JF, b_F, run_BS):
  return jax.nn.silu(_conv(x_BSF, w_JF, b_F, run_BS))


def _conv(x_BSF, w_JF, b_F, run_BS):
  y_BTF = b_F[None, None].astype(jnp.float32)
  for j in range(len(w_JF)):
    y_BTF = y_BTF + w_JF[j][None, None].astype(jnp.float32) * _tap(x_BSF, run_BS, j, len(w_JF))
  return y_BTF


def _tap(x_BSF, run_BS, j, num_taps):
  """x_{t-(J-1)+j} at every t, zero where that is of another document."""
  tap_BTF = x_BSF[:, j : x_BSF.shape[1] - (num_taps - 1) + j].astype(jnp.float32)
  own_BT = _own(run_BS, j, num_taps)
  return tap_BTF if own_BT is None else jnp.where(own_BT[..., None], tap_BTF, 0)


def _own(run_BS, j, num_taps):
  """Whether the input at tap j is of t's document; None where all are."""
  if run_BS is None or j == num_taps - 1:
    return None
  return run_BS[:, j : run_BS.shape[1] - (num_taps - 1) + j] == run_BS[:, num_taps - 1 :]


def _backward(saved, dy_BTF):
  """All is computed again from the inputs: element by element, that is cheaper than to keep it."""
  x_BSF, w_JF, b_F, run_BS = saved
  J, (B, T, F) = len(w_JF), dy_BTF.shape
  y_BTF = _conv(x_BSF, w_JF, b_F, run_BS)
  sigmoid_BTF = jax.nn.sigmoid(y_BTF)
  dy_BTF = dy_BTF * sigmoid_BTF * (1 + y_BTF * (1 - sigmoid_BTF))
  dw_JF = jnp.stack([sum_of_products(dy_BTF, _tap(x_BSF, run_BS, j, J), (0, 1)) for j in range(J)])
  # Slices of a padded dy: left to itself, the transpose of each tap is an array with a pad of its
  # own.
  edge_BJF = jnp.zeros((B, J - 1, F), jnp.float32)
  padded_BUF, dx_BSF = jnp.concatenate([edge_BJF, dy_BTF, edge_BJF], axis=1), 0
  for j in range(J):
    part_BSF = padded_BUF[:, J - 1 - j : 2 * (J - 1) - j + T]
    if (own_BT := _own(run_BS, j, J)) is not None:
      part_BSF = jnp.where(jnp.pad(own_BT, ((0, 0), (j, J - 1 - j)))[..., None], part_BSF, 0)
    dx_BSF = dx_BSF + w_JF[j][None, None].astype(jnp.float32) * part_BSF
  return (
    dx_BSF.astype(x_BSF.dtype),
    dw_JF.astype(w_JF.dtype),
    jnp.sum(dy_BTF, axis=(0, 1)).astype(b_F.dtype),
    None,
  )


_conv_silu.defvjp(lambda *inputs: (_conv_silu(*inputs), inputs), _backward)
