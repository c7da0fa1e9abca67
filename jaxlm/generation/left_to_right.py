"""Token by token, from left to right, of any model that answers `extend`: decoders of all mixers,
H-Net.

Axes: B batch, T time, V vocab, C tokens of a dispatch. Shapes are static: prompts are padded to
whole pieces and the cache to a multiple of `PIECE`, so that a handful of programs serves every
length. One program draws up to `tokens_per_dispatch` tokens and ends early when all rows have; the
host reads the device once per dispatch.
"""

import dataclasses
import functools
import time
from collections.abc import Iterator
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.config import checked
from jaxlm.data.base import FramedDataConfig
from jaxlm.generation.base import Batch, Engine, Row, Snapshot
from jaxlm.generation.sampling import Sampling, sample
from jaxlm.ranges import Count, Natural

PIECE = 64  # prompt tokens per prefill call; the cache grows in this unit
SMOOTH_S = 1 / 30  # of a dispatch while someone watches, so that text does not come in jerks


@dataclasses.dataclass(frozen=True)
@checked
class LeftToRight(Engine):
  """Each token is drawn from p(token | those before it).

  stops: ids after which a row is finished (they are not returned); without any it never stops
  early. tokens_per_dispatch: the tokens do not depend on it.
  """

  token_by_token: ClassVar[bool] = True
  form: ClassVar[str] = "causal"

  model: object
  sampling: Sampling = Sampling()
  stops: tuple[Natural, ...] = ()
  tokens_per_dispatch: Count = 32

  @classmethod
  def from_data(cls, data):
    framed = isinstance(data, FramedDataConfig)
    if not framed:
      return {"stops": tuple(data.load_tokenizer().stops)}
    eos = data.special_tokens.eos
    return {"stops": () if eos is None else (eos,)}

  def decode_batch(self, params, batch: Batch):
    columns = list(self.stream(params, batch))
    new_BT = np.stack(columns, axis=1) if columns else np.zeros((len(batch.prompts), 0), np.int32)
    rows = []
    for prompt, new_T in zip(batch.prompts, new_BT):
      new = new_T[new_T >= 0]
      tokens = np.concatenate([np.asarray(prompt.tokens, np.int32), new]).astype(np.int32)
      rows.append(Row(tokens, len(prompt), len(new)))
    # The pass that draws the end counts; a row at its limit never gets there.
    return rows, max(min(r.num_new + 1, int(n)) for r, n in zip(rows, batch.room_B))

  def stream(self, params, batch: Batch, *, smooth: bool = False) -> Iterator[np.ndarray]:
    """Yields, per token, int32 (B,): the next token of each row, -1 where the row has finished.

    smooth: dispatches begin at one token and grow while they are short.
    """
    model, length_B = self.model, np.asarray([len(p) for p in batch.prompts], np.int32)
    state = model.init_state(len(length_B), round_up(batch.longest))
    logits_BV, state = prefill(model, params, _pad(batch.prompts, length_B), length_B, state)
    drawn = _first(logits_BV, jnp.asarray(batch.room_B), batch.keys_B, engine=self)
    yield from _columns(np.asarray(drawn.kept_B)[:, None])
    limit = 1 if smooth else self.tokens_per_dispatch
    while bool(drawn.alive_B.any()):
      start = time.perf_counter()
      kept_BC, drawn, state = _dispatch(
        params, state, drawn, jnp.asarray(batch.room_B), batch.keys_B, limit, engine=self
      )
      kept_BC = np.asarray(kept_BC)[:, :limit]
      seconds = time.perf_counter() - start
      yield from _columns(kept_BC)
      if smooth:  # the first dispatch compiles
        limit = (
          min(2 * limit, self.tokens_per_dispatch) if seconds < SMOOTH_S else max(limit // 2, 1)
        )

  def watch(self, params, prompt, max_new_tokens: int, *, seed: int = 0):
    batch = self.single(prompt, max_new_tokens, seed)
    tokens, passes = [int(t) for t in batch.prompts[0].tokens], 0
    for (token,) in self.stream(params, batch, smooth=True):
      tokens.append(int(token))
      passes += 1
      yield Snapshot(tokens, len(tokens) - 1, passes)
    yield Snapshot(tokens, None, passes, final=True)


class Drawn(NamedTuple):
  """token_B: drawn last. kept_B: that token, -1 where the row has finished. alive_B: bool, rows that
  take another. num_new_B: int32, tokens of each row so far."""

  token_B: jax.Array
  kept_B: jax.Array
  alive_B: jax.Array
  num_new_B: jax.Array


def prefill(model, params, tokens_BT, length_B, state):
  """Feeds right-padded prompts in pieces.

  Returns (logits_BV after each row's last token, state).
  """
  logits_BV, size = None, min(PIECE, model.max_len or PIECE)  # a table of positions may be shorter
  for start in range(0, int(length_B.max()), size):
    piece_BT = jnp.asarray(tokens_BT[:, start : start + size])
    logits_BV, state = _prefill_piece(
      params, state, piece_BT, jnp.asarray(length_B), start, logits_BV, config=model
    )
  return logits_BV, state


@functools.partial(jax.jit, static_argnames="config", donate_argnums=1)
def _prefill_piece(params, state, tokens_BT, length_B, start, logits_BV, *, config):
  index_BT = start + jnp.arange(tokens_BT.shape[1])[None, :]
  valid_BT = (index_BT < length_B[:, None]).astype(jnp.int32)
  out_BTV, state = config.build().apply(
    {"params": params}, tokens_BT, state, valid_BT, method="extend"
  )
  last_B = length_B - 1 - start
  here_B1 = ((last_B >= 0) & (last_B < tokens_BT.shape[1]))[:, None]
  picked_BV = jnp.take_along_axis(
    out_BTV, jnp.clip(last_B, 0, tokens_BT.shape[1] - 1)[:, None, None], axis=1
  )[:, 0]
  return (picked_BV if logits_BV is None else jnp.where(here_B1, picked_BV, logits_BV)), state


@functools.partial(jax.jit, static_argnames="engine")
def _first(logits_BV, room_B, keys_B, *, engine: LeftToRight) -> Drawn:
  """The token behind each prompt."""
  return _draw(engine, keys_B, logits_BV, room_B > 0, jnp.zeros_like(room_B), room_B)


@functools.partial(jax.jit, static_argnames="engine", donate_argnums=1)
def _dispatch(params, state, drawn: Drawn, room_B, keys_B, limit, *, engine: LeftToRight):
  """(kept_BC, drawn, state) after `limit` more tokens, or fewer if all rows have finished.

  C = tokens_per_dispatch; columns behind the last token are -1. limit is traced: one program.
  """

  def more(carry):
    step, _, drawn, _ = carry
    return (step < limit) & jnp.any(drawn.alive_B)

  def take(carry):
    step, kept_BC, drawn, state = carry
    # A finished row feeds padding: its state stays, and its draw is ignored.
    logits_BTV, state = engine.model.build().apply(
      {"params": params},
      drawn.token_B[:, None],
      state,
      drawn.alive_B[:, None].astype(jnp.int32),
      method="extend",
    )
    drawn = _draw(engine, keys_B, logits_BTV[:, 0], drawn.alive_B, drawn.num_new_B, room_B)
    kept_BC = jax.lax.dynamic_update_slice_in_dim(kept_BC, drawn.kept_B[:, None], step, axis=1)
    return step + 1, kept_BC, drawn, state

  empty_BC = jnp.full((len(room_B), engine.tokens_per_dispatch), -1, jnp.int32)
  return jax.lax.while_loop(more, take, (0, empty_BC, drawn, state))[1:]


def _draw(engine, keys_B, logits_BV, alive_B, num_new_B, room_B) -> Drawn:
  draw_keys_B = jax.vmap(jax.random.fold_in)(keys_B, num_new_B)
  token_B = sample(draw_keys_B, logits_BV, engine.sampling, num_new_B)
  stopped_B = jnp.isin(token_B, jnp.asarray(engine.stops, jnp.int32))
  going_B = alive_B & ~stopped_B
  num_new_B = num_new_B + going_B
  kept_B = jnp.where(going_B, token_B, -1)
  return Drawn(token_B, kept_B, going_B & (num_new_B < room_B), num_new_B)


def _columns(kept_BC) -> Iterator[np.ndarray]:
  """The columns up to the first in which no row has a token."""
  for kept_B in kept_BC.T:
    if (kept_B < 0).all():
      return
    yield kept_B


def round_up(n: int) -> int:
  return -(-n // PIECE) * PIECE


def _pad(prompts, length_B):
  tokens_BT = np.zeros((len(prompts), round_up(int(length_B.max()))), np.int32)
  for b, prompt in enumerate(prompts):
    tokens_BT[b, : len(prompt)] = prompt.tokens
  return tokens_BT
