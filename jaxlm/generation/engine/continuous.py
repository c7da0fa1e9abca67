"""Left to right with a scheduler: a row that has finished makes room for the next prompt at once.

Axes: B batch: slots (rows that are decoded together), C tokens of a dispatch, N prompts that begin together.

A batch of fixed rows runs until its longest row ends. Here a slot is refilled between two dispatches:
the waiting prompts are read together, in a batch of their own of 1, 2, 4, .. rows, and their states
take the places of finished rows. Prompts wait in the order of their lengths, the longest first, so
that those which are read together have similar lengths. Rows draw with the keys of their numbers, so
the tokens are those of `left_to_right`; with `deterministic`, to the last bit of the logits.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.config import check_seed, checked
from jaxlm.generation.base import Batch, Generations, Row, row_keys
from jaxlm.generation.engine.step import padded, prefill, put_rows, round_up
from jaxlm.generation.engine.unrolled import opened
from jaxlm.generation.left_to_right import Drawn, LeftToRight, dispatch, first_tokens
from jaxlm.generation.processors import none_met
from jaxlm.generation.sampling import Sampling
from jaxlm.ranges import Count, Natural


@dataclasses.dataclass(frozen=True)
@checked
class Continuous(LeftToRight):
  """batch_size of `generate` is the number of slots. tokens_per_dispatch: slots are refilled after so
  many tokens. by_length: prompts wait in the order of their lengths, not in their own.
  """

  is_default: ClassVar[bool] = False
  form: ClassVar[str | None] = None

  model: object
  sampling: Sampling = Sampling()
  stops: tuple[Natural, ...] = ()
  tokens_per_dispatch: Count = 8
  deterministic: bool = False
  by_length: bool = True

  def decode_batch(self, params, batch: Batch):
    """One batch, without waiting rows: as LeftToRight."""
    return super().decode_batch(params, batch)

  def generate(
    self,
    params,
    prompts: Sequence,
    max_new_tokens: int,
    *,
    max_len: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    on_tokens: Callable[[int, list[int]], None] | None = None,
  ) -> Generations:
    """As `Engine.generate`. on_tokens(row, new tokens) is called after every dispatch."""
    engine, params = opened(self, params)
    prompts = self._checked(prompts)
    room = self._room(prompts, max_new_tokens, max_len)
    keys = row_keys(jax.random.key(check_seed(seed)), len(prompts))
    B = min(batch_size or len(prompts), len(prompts))
    batch = Batch(prompts, room, keys, max_len)
    order = np.arange(len(prompts))
    if self.by_length:
      order = np.argsort([-len(p) for p in prompts], kind="stable")
    waiting, owner = collections.deque(order.tolist()), np.full(B, -1)
    state = engine.model.init_state(B, round_up(batch.longest))
    zero_B = jnp.zeros(B, jnp.int32)
    drawn = Drawn(zero_B, zero_B, jnp.zeros(B, bool), zero_B, none_met(self.sampling.chain, B))
    room_B, keys_B = np.zeros(B, np.int32), keys[np.zeros(B, np.int32)]
    new: list[list[int]] = [[] for _ in prompts]
    passes = 0

    def tell(row: int, tokens):
      new[row] += tokens
      if on_tokens is not None and tokens:
        on_tokens(row, tokens)

    while True:
      free = np.flatnonzero(~np.asarray(drawn.alive_B))
      if waiting and len(free):
        rows = [waiting.popleft() for _ in range(min(len(free), len(waiting)))]
        slots = free[: len(rows)]
        N = 1 << (len(rows) - 1).bit_length()
        filled = [*rows, *[rows[-1]] * (N - len(rows))]
        length_N = np.asarray([len(prompts[i]) for i in filled], np.int32)
        logits_NV, fresh = prefill(
          engine.model,
          params,
          padded([prompts[i] for i in filled], length_N, max_len is not None),
          length_N,
          engine.model.init_state(N, round_up(batch.longest)),
          deterministic=self.deterministic,
        )
        begun = first_tokens(
          logits_NV, jnp.asarray(room[filled]), keys[np.asarray(filled)], engine=engine
        )
        at_N = np.concatenate([slots, np.full(N - len(rows), B)]).astype(np.int32)
        state, drawn = _admit(state, drawn, fresh, begun, jnp.asarray(at_N), model=engine.model)
        owner[slots], room_B[slots] = rows, room[rows]
        keys_B = keys_B.at[slots].set(keys[np.asarray(rows)])
        passes += 1
        for row, token in zip(rows, np.asarray(begun.kept_B)):
          tell(row, [int(token)] if token >= 0 else [])
        continue  # a row may have ended with its first token
      if not bool(drawn.alive_B.any()):
        break
      kept_BC, drawn, state = dispatch(
        params, state, drawn, jnp.asarray(room_B), keys_B, self.tokens_per_dispatch, engine=engine
      )
      kept_BC = np.asarray(kept_BC)
      passes += int((kept_BC >= 0).any(axis=0).sum())
      for row, kept_C in zip(owner, kept_BC):
        if row >= 0:
          tell(row, kept_C[kept_C >= 0].tolist())
      owner[~np.asarray(drawn.alive_B)] = -1
    done = [
      Row(np.asarray([*p.tokens, *tokens], np.int32), len(p), len(tokens))
      for p, tokens in zip(prompts, new)
    ]
    return Generations(done, passes, sum(min(len(t) + 1, int(n)) for t, n in zip(new, room)))


@functools.partial(jax.jit, static_argnames="model", donate_argnums=0)
def _admit(state, drawn: Drawn, fresh, begun: Drawn, at_N, *, model):
  """The rows of `fresh` and `begun` in the slots at_N; a slot outside is dropped."""
  state = put_rows(model, state, fresh, at_N)
  return state, jax.tree.map(lambda x, new: x.at[at_N].set(new, mode="drop"), drawn, begun)
