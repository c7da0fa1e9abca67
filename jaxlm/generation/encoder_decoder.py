"""Greedy decoding of an encoder-decoder: the encoder runs once, its keys and values are projected
once.

Axes: B batch, L encoder length, T decoded tokens, V vocab.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.data import byte_t5
from jaxlm.layers.delete_gate import Mode

START, END, PAD = 0, 1, 0


class Decoded(NamedTuple):
  """tokens_BT: int32 from the start token on, pad after the end; logits_BTV: of each step, float32,
  or None.
  overflow_B: bool, tokens of the encoder were lost to the capacity."""

  tokens_BT: jax.Array
  logits_BTV: jax.Array | None
  overflow_B: jax.Array | None


def greedy(
  model,
  params,
  tokens_BL,
  max_len: int,
  *,
  valid_BL=None,
  mode: Mode = Mode(),
  noise=None,
  with_logits: bool = False,
) -> Decoded:
  """The most likely token `max_len` times, or until every row has ended.

  Jit with model, max_len, mode static.
  """

  def apply(*args, **kwargs):
    return model.apply({"params": params}, *args, **kwargs)

  memory = apply(tokens_BL, valid_BL, mode=mode, noise=noise, method="encode")
  B = tokens_BL.shape[0]
  tokens_BT = jnp.full((B, max_len + 1), PAD, jnp.int32).at[:, 0].set(START)
  state = apply(memory, max_len, method="start")
  logits_BTV = jnp.zeros((B, max_len, model.cfg.vocab_size), jnp.float32) if with_logits else None

  def step(carry):
    state, tokens_BT, ended_B, logits_BTV = carry
    t = state.length
    logits_B1V, state = apply(
      jax.lax.dynamic_slice_in_dim(tokens_BT, t, 1, 1), memory, state, method="extend"
    )
    token_B = jnp.where(ended_B, PAD, jnp.argmax(logits_B1V[:, 0], -1).astype(jnp.int32))
    tokens_BT = jax.lax.dynamic_update_slice_in_dim(tokens_BT, token_B[:, None], t + 1, 1)
    if with_logits:
      logits_BTV = jax.lax.dynamic_update_slice_in_dim(logits_BTV, logits_B1V, t, 1)
    return state, tokens_BT, ended_B | (token_B == END), logits_BTV

  def more(carry):
    return (carry[0].length < max_len) & ~jnp.all(carry[2])

  _, tokens_BT, _, logits_BTV = jax.lax.while_loop(
    more, step, (state, tokens_BT, jnp.zeros(B, bool), logits_BTV)
  )
  return Decoded(
    tokens_BT, logits_BTV, None if memory.reduced is None else memory.reduced.overflow_B
  )


def answers(model, params, texts: list[str], max_len: int, mode: Mode) -> list[str]:
  """What a model over ByT5's bytes makes of each text, greedily; one batch as long as the longest."""
  tokens_BL = byte_t5.pad([byte_t5.encode(text) for text in texts])
  decode = jax.jit(functools.partial(greedy, model, max_len=max_len, mode=mode))
  return [
    byte_t5.decode(ids[1:]) for ids in np.asarray(decode(params, jnp.asarray(tokens_BL)).tokens_BT)
  ]
