"""Token by token, from left to right, of any model that answers `extend`: decoders of all mixers,
H-Net.

Axes: B batch, T time, V vocab, C tokens of a dispatch. Shapes are static: prompts are padded to
pieces (`engine.step.padded`) and the cache to a multiple of `PIECE`, so that a handful of programs serves every
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
from jaxlm.generation.engine.step import extend, padded, prefill, round_up
from jaxlm.generation.engine.unrolled import opened
from jaxlm.generation.processors import met_by, none_met
from jaxlm.generation.sampling import Sampling, sample
from jaxlm.ranges import Count, Natural

SMOOTH_S = 1 / 30  # of a dispatch while someone watches, so that text does not come in jerks


@dataclasses.dataclass(frozen=True)
@checked
class LeftToRight(Engine):
  """Each token is drawn from p(token | those before it).

  stops: ids after which a row is finished (they are not returned); without any it never stops
  early. tokens_per_dispatch: the tokens do not depend on it. deterministic: passes row by row
  (`generation.engine.step`), so that a row's tokens cannot depend on the batch around it.
  """

  token_by_token: ClassVar[bool] = True
  form: ClassVar[str] = "causal"

  model: object
  sampling: Sampling = Sampling()
  stops: tuple[Natural, ...] = ()
  tokens_per_dispatch: Count = 32
  deterministic: bool = False

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
    engine, params = opened(self, params)
    logits_BV, state, shift_B = engine.begin(params, batch)
    drawn = first_tokens(logits_BV, jnp.asarray(batch.room_B), batch.keys_B, engine=engine)
    yield from _columns(np.asarray(drawn.kept_B)[:, None])
    limit = 1 if smooth else self.tokens_per_dispatch
    while bool(drawn.alive_B.any()):
      start = time.perf_counter()
      kept_BC, drawn, state = dispatch(
        params, state, drawn, jnp.asarray(batch.room_B), batch.keys_B, limit, shift_B, engine=engine
      )
      kept_BC = np.asarray(kept_BC)[:, :limit]
      seconds = time.perf_counter() - start
      yield from _columns(kept_BC)
      if smooth:  # the first dispatch compiles
        limit = (
          min(2 * limit, self.tokens_per_dispatch) if seconds < SMOOTH_S else max(limit // 2, 1)
        )

  def begin(self, params, batch: Batch):
    """(logits_BV behind each prompt, the state, shift_B of `dispatch`)."""
    length_B = np.asarray([len(p) for p in batch.prompts], np.int32)
    state = self.model.init_state(len(length_B), round_up(batch.longest))
    tokens_BT = padded(batch.prompts, length_B, batch.max_len is not None)
    logits_BV, state = prefill(
      self.model, params, tokens_BT, length_B, state, deterministic=self.deterministic
    )
    return logits_BV, state, None

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
  take another. num_new_B: int32, tokens of each row so far. met_BP: see `processors.process`."""

  token_B: jax.Array
  kept_B: jax.Array
  alive_B: jax.Array
  num_new_B: jax.Array
  met_BP: jax.Array


@functools.partial(jax.jit, static_argnames="engine")
def first_tokens(logits_BV, room_B, keys_B, *, engine: LeftToRight) -> Drawn:
  """The token behind each prompt."""
  met_BP = none_met(engine.sampling.chain, len(room_B))
  return draw(engine, keys_B, logits_BV, room_B > 0, jnp.zeros_like(room_B), room_B, met_BP)


@functools.partial(jax.jit, static_argnames="engine", donate_argnums=1)
def dispatch(
  params, state, drawn: Drawn, room_B, keys_B, limit, shift_B=None, *, engine: LeftToRight
):
  """(kept_BC, drawn, state) after `limit` more tokens, or fewer if all rows have finished.

  C = tokens_per_dispatch; columns behind the last token are -1. limit is traced: one program.
  shift_B: int32, a token's position is the number of tokens before it less this; None: it is that.
  """

  def more(carry):
    step, _, drawn, _ = carry
    return (step < limit) & jnp.any(drawn.alive_B)

  def take(carry):
    step, kept_BC, drawn, state = carry
    # A finished row feeds padding: its state stays, and its draw is ignored.
    shifted = {} if shift_B is None else {"positions_BT": (state.length_B - shift_B)[:, None]}
    logits_BTV, state = extend(
      engine.model,
      params,
      drawn.token_B[:, None],
      state,
      drawn.alive_B[:, None].astype(jnp.int32),
      deterministic=engine.deterministic,
      **shifted,
    )
    drawn = draw(
      engine,
      keys_B,
      logits_BTV[:, 0],
      drawn.alive_B,
      drawn.num_new_B,
      room_B,
      drawn.met_BP,
    )
    kept_BC = jax.lax.dynamic_update_slice_in_dim(kept_BC, drawn.kept_B[:, None], step, axis=1)
    return step + 1, kept_BC, drawn, state

  empty_BC = jnp.full((len(room_B), engine.tokens_per_dispatch), -1, jnp.int32)
  return jax.lax.while_loop(more, take, (0, empty_BC, drawn, state))[1:]


def draw(engine, keys_B, logits_BV, alive_B, num_new_B, room_B, met_BP) -> Drawn:
  """The next token of each row that is alive, and what follows from it.

  engine: with `sampling` and `stops`.
  """
  draw_keys_B = jax.vmap(jax.random.fold_in)(keys_B, num_new_B)
  token_B = sample(draw_keys_B, logits_BV, engine.sampling, num_new_B, met_BP)
  stopped_B = jnp.isin(token_B, jnp.asarray(engine.stops, jnp.int32))
  going_B = alive_B & ~stopped_B
  num_new_B = num_new_B + going_B
  met_BP = met_by(engine.sampling.chain, token_B, going_B, met_BP)
  kept_B = jnp.where(going_B, token_B, -1)
  return Drawn(token_B, kept_B, going_B & (num_new_B < room_B), num_new_B, met_BP)


def _columns(kept_BC) -> Iterator[np.ndarray]:
  """The columns up to the first in which no row has a token."""
  for kept_B in kept_BC.T:
    if (kept_B < 0).all():
      return
    yield kept_B
