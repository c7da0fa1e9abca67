"""Encoder-decoders, T5 and MrT5: the encoder runs once, its keys and values are projected once.

Axes: B batch, L encoder length, T decoded tokens, V vocab.
"""

import dataclasses
import functools
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.config import ConfigError, check_number, checked
from jaxlm.data import byte_t5
from jaxlm.generation.base import Batch, Engine, Row, refuse_options
from jaxlm.generation.hard_deletion import evaluation_mode
from jaxlm.generation.sampling import GREEDY, Sampling, sample
from jaxlm.layers.delete_gate import Mode
from jaxlm.ranges import Count

START, END, PAD = 0, byte_t5.END, byte_t5.PAD
WIDTH = 32  # without input_len, prompts are padded to a multiple of it


@dataclasses.dataclass(frozen=True)
@checked
class EncoderDecoderEngine(Engine):
  """The encoder reads the prompt, the decoder writes the answer, which is the whole row.

  A learned delete gate deletes hard. Prompts and answers hold ByT5's ids. input_len: tokens that
  prompts are padded to; None: as many as the longest has, rounded up. A row's limits, max_len among
  them, count the tokens of the answer alone.
  """

  scores: ClassVar[tuple[str, ...]] = ("target_sequence",)
  form: ClassVar[str] = "encoder_decoder"

  model: object
  sampling: Sampling = GREEDY
  input_len: Count | None = None

  @classmethod
  def from_options(cls, options):
    refuse_options(cls, options, ("slot_top_k", "slot_top_p", "stop_threshold"))
    return {"sampling": options.sampling(default_temperature=0.0)}

  def decode_batch(self, params, batch: Batch):
    longest = max(map(len, batch.prompts))
    width = self.input_len or -(-longest // WIDTH) * WIDTH
    width = min(width, self.model.max_positions or width)
    if longest > width:
      raise ConfigError(
        f"a prompt of {longest} tokens exceeds the encoder's {width} (input_len, or the model's "
        f"position table); shorten it"
      )
    tokens_BL = np.full((len(batch.prompts), width), PAD, np.int32)
    for b, prompt in enumerate(batch.prompts):
      tokens_BL[b, : len(prompt)] = prompt.tokens
    steps = int(batch.max_len or batch.room_B.max())
    tokens_BT = np.asarray(
      _decode(params, tokens_BL, batch.room_B, batch.keys_B, engine=self, max_len=steps)
    )[:, 1:]
    rows, passes = [], 0
    for row, room in zip(tokens_BT, batch.room_B):
      row = row[:room]
      ends = np.flatnonzero(row == END)
      answer = row[: ends[0]] if len(ends) else row
      rows.append(Row(answer.astype(np.int32), 0, len(answer)))
      passes = max(passes, min(len(answer) + 1, int(room)))
    return rows, passes

  def _room(self, prompts, max_new_tokens, max_len):
    check_number(max_new_tokens, Count, "max_new_tokens")
    limits = (max_new_tokens, max_len, self.model.max_positions)
    return np.full(len(prompts), min(n for n in limits if n is not None), np.int32)


class Decoded(NamedTuple):
  """tokens_BT: int32 from the start token on, pad after the end; logits_BTV: of each step, float32,
  or None.
  overflow_B: bool, tokens of the encoder were lost to the capacity."""

  tokens_BT: jax.Array
  logits_BTV: jax.Array | None
  overflow_B: jax.Array | None


def decode(
  model,
  params,
  tokens_BL,
  max_len: int,
  *,
  valid_BL=None,
  mode: Mode = Mode(),
  noise=None,
  with_logits: bool = False,
  sampling: Sampling = GREEDY,
  keys_B=None,
  room_B=None,
) -> Decoded:
  """A token `max_len` times, or until every row has ended: the most likely one, or a draw.

  Jit with model, max_len, mode, sampling static. keys_B: typed PRNG keys, one per row, of draws.
  room_B: int32, tokens that each row may have; None: max_len.
  """

  def apply(*args, **kwargs):
    return model.apply({"params": params}, *args, **kwargs)

  memory = apply(tokens_BL, valid_BL, mode=mode, noise=noise, method="encode")
  B = tokens_BL.shape[0]
  tokens_BT = jnp.full((B, max_len + 1), PAD, jnp.int32).at[:, 0].set(START)
  state = apply(memory, max_len, method="start")
  logits_BTV = jnp.zeros((B, max_len, model.cfg.vocab_size), jnp.float32) if with_logits else None
  room_B = jnp.full(B, max_len, jnp.int32) if room_B is None else room_B

  def step(carry):
    state, tokens_BT, ended_B, logits_BTV = carry
    t = state.length
    logits_B1V, state = apply(
      jax.lax.dynamic_slice_in_dim(tokens_BT, t, 1, 1), memory, state, method="extend"
    )
    draw_keys_B = None if keys_B is None else jax.vmap(jax.random.fold_in, (0, None))(keys_B, t)
    token_B = sample(draw_keys_B, logits_B1V[:, 0], sampling, jnp.full(B, t, jnp.int32))
    token_B = jnp.where(ended_B, PAD, token_B)
    tokens_BT = jax.lax.dynamic_update_slice_in_dim(tokens_BT, token_B[:, None], t + 1, 1)
    if with_logits:
      logits_BTV = jax.lax.dynamic_update_slice_in_dim(logits_BTV, logits_B1V, t, 1)
    return state, tokens_BT, ended_B | (token_B == END) | (t + 1 >= room_B), logits_BTV

  def more(carry):
    return (carry[0].length < max_len) & ~jnp.all(carry[2])

  _, tokens_BT, _, logits_BTV = jax.lax.while_loop(
    more, step, (state, tokens_BT, room_B <= 0, logits_BTV)
  )
  return Decoded(
    tokens_BT, logits_BTV, None if memory.reduced is None else memory.reduced.overflow_B
  )


@functools.partial(jax.jit, static_argnames=("engine", "max_len"))
def _decode(params, tokens_BL, room_B, keys_B, *, engine: EncoderDecoderEngine, max_len: int):
  """tokens_BT of `decode`."""
  return decode(
    engine.model.build(),
    params,
    tokens_BL,
    max_len,
    mode=evaluation_mode(engine.model),
    sampling=engine.sampling,
    keys_B=keys_B,
    room_B=room_B,
  ).tokens_BT
