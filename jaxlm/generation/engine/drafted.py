"""What engines with a draft model share: two models, rounds, and the tokens that rounds commit.

Axes: B batch, V vocab, K tokens that a round may commit, G tokens that a row may get.

A round drafts tokens with a small model, scores them with the target in one forward pass, accepts
some and draws one more from the target, so that every row gets at least one token per pass of the
target. Rows accept different numbers: each has a write index of its own in the caches, and nothing
is moved or realigned.

Draws of a round use the key fold_in(fold_in(key of the row, tokens so far), number of the draw). A
row's tokens hence depend neither on the rows beside it nor on how many rounds a dispatch has.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.config import ConfigError
from jaxlm.generation.base import ENGINES, Batch, Engine, Row, Snapshot, registered_name
from jaxlm.generation.engine.step import padded, prefill, round_up
from jaxlm.generation.engine.unrolled import opened_pair
from jaxlm.generation.left_to_right import LeftToRight
from jaxlm.generation.sampling import sample
from jaxlm.models import MODELS

ROUNDS = 16  # of a dispatch


class Committed(NamedTuple):
  """What rows have so far. new_BG: int32. num_new_B: tokens. last_B: the newest, not yet read by the
  target. alive_B: bool. calls_B: passes of the target that the row took part in. accepted_B: draft
  tokens that became part of it.
  """

  new_BG: jax.Array
  num_new_B: jax.Array
  last_B: jax.Array
  alive_B: jax.Array
  calls_B: jax.Array
  accepted_B: jax.Array


class Carry(NamedTuple):
  """Between two rounds. pending_B2: the last tokens, of which the draft has not read the last
  num_pending_B (1 or 2), left-aligned.
  """

  target: Any
  draft: Any
  pending_B2: jax.Array
  num_pending_B: jax.Array
  committed: Committed


class Counts(NamedTuple):
  """Of one batch, int64 NumPy arrays per row: new tokens, passes of the target, accepted drafts."""

  new: np.ndarray
  calls: np.ndarray
  accepted: np.ndarray

  @property
  def block_efficiency(self) -> float:
    """Tokens per pass of the target, the pass over the prompt and its token left out."""
    return float(np.sum(self.new - 1) / max(np.sum(self.calls), 1))


@dataclasses.dataclass(frozen=True)
class DraftedEngine(Engine):
  """Base. Override `round`, `back` and `check_pair`; fields `model`, `draft`, `sampling`, `stops`,
  `deterministic`. params of `generate`: {"target": tree, "draft": tree}.
  """

  token_by_token: ClassVar[bool] = True
  is_default: ClassVar[bool] = False

  def __post_init__(self):
    super().__post_init__()
    if self.draft is None:
      raise ConfigError(
        f"engine {registered_name(ENGINES, type(self))!r} needs a second model that drafts: give "
        f"--draft=RUN, a run with the same tokenizer"
      )
    names = [registered_name(MODELS, type(m)) for m in (self.model, self.draft)]
    if self.model.vocab_size != self.draft.vocab_size:
      raise ConfigError(
        f"the target (model.kind = {names[0]!r}) has a vocabulary of {self.model.vocab_size} tokens and the "
        f"draft (model.kind = {names[1]!r}) one of {self.draft.vocab_size}; draft with a model that was trained with "
        f"the target's tokenizer"
      )
    for role, model, name in zip(("target", "draft"), (self.model, self.draft), names):
      why = self.why_not(model)
      if why is not None:
        raise ConfigError(f"the {role} (model.kind = {name!r}) {why}; use another model as {role}")
    if any(p.until is not None for p in self.sampling.processors):
      raise ConfigError(
        "a logit processor with `until` needs to know each token before the next is drafted; use algorithm = "
        "'left_to_right', or a processor without `until`"
      )

  def why_not(self, model) -> str | None:
    """Why a model can be neither target nor draft, None: it can."""
    return None if model.decodes else "does not decode token by token, so it cannot go back"

  @property
  def back(self) -> int:
    """Tokens by which states go back: those that a round may read and not keep."""
    raise NotImplementedError(f"{type(self).__name__} does not say how far it goes back")

  def round(self, params, carry: Carry, keys_B, room_B) -> Carry:
    """One round of all rows; keys_B: of the rows and of this round. Traced."""
    raise NotImplementedError(f"{type(self).__name__} has no rounds")

  @classmethod
  def from_data(cls, data):
    return LeftToRight.from_data(data)

  def decode_batch(self, params, batch: Batch):
    rows, counts = self.decode_counted(params, batch)
    return rows, int(counts.calls.max()) + 1

  def decode_counted(self, params: Mapping, batch: Batch) -> tuple[list[Row], Counts]:
    """(rows, what they took)."""
    *_, carry = self.dispatches(params, batch)
    done = jax.device_get(carry.committed)
    rows = []
    for prompt, new_G, count in zip(batch.prompts, done.new_BG, done.num_new_B):
      tokens = np.concatenate([np.asarray(prompt.tokens, np.int32), new_G[:count]])
      rows.append(Row(tokens.astype(np.int32), len(prompt), int(count)))
    return rows, Counts(
      *(x.astype(np.int64) for x in (done.num_new_B, done.calls_B, done.accepted_B))
    )

  def dispatches(self, params: Mapping, batch: Batch, rounds: int = ROUNDS):
    """Yields the carry after the first token, then after every `rounds` rounds; its states are those of
    the models of `opened_pair`.
    """
    if set(params) != {"target", "draft"}:
      raise ConfigError('params of a drafted engine are {"target": ..., "draft": ...}')
    engine, params = opened_pair(self, params)
    length_B = np.asarray([len(p) for p in batch.prompts], np.int32)
    tokens_BT, room_B = (
      padded(batch.prompts, length_B, batch.max_len is not None),
      jnp.asarray(batch.room_B),
    )
    states, logits_BV = {}, None
    for role, model in (("draft", engine.draft), ("target", engine.model)):
      state = model.init_state(
        len(length_B), round_up(batch.longest + self.back + 2), self.back + 2
      )
      logits_BV, states[role] = prefill(
        model, params[role], tokens_BT, length_B, state, deterministic=self.deterministic
      )
    committed = _first(
      logits_BV, room_B, batch.keys_B, engine=engine, room=int(max(batch.room_B.max(), 1))
    )
    pending_B2 = jnp.stack([committed.last_B] * 2, axis=1)
    carry = Carry(
      states["target"], states["draft"], pending_B2, jnp.ones_like(committed.last_B), committed
    )
    yield carry
    while bool(carry.committed.alive_B.any()):
      carry = _rounds(params, carry, batch.keys_B, room_B, engine=engine, rounds=rounds)
      yield carry

  def watch(self, params, prompt, max_new_tokens: int, *, seed: int = 0):
    batch = self.single(prompt, max_new_tokens, seed)
    begun, passes = [int(t) for t in batch.prompts[0].tokens], 0
    for carry in self.dispatches(params, batch, rounds=1):
      passes += 1
      count = int(carry.committed.num_new_B[0])
      tokens = begun + np.asarray(carry.committed.new_BG)[0, :count].tolist()
      yield Snapshot(tokens, None, passes)
    yield Snapshot(tokens, None, passes, final=True)


@functools.partial(jax.jit, static_argnames=("engine", "room"))
def _first(logits_BV, room_B, keys_B, *, engine, room: int) -> Committed:
  """The token behind each prompt, drawn as `LeftToRight` draws it."""
  zero_B = jnp.zeros_like(room_B)
  token_B = sample(jax.vmap(jax.random.fold_in)(keys_B, zero_B), logits_BV, engine.sampling, zero_B)
  begun = Committed(
    jnp.zeros((len(room_B), room), jnp.int32), zero_B, token_B, room_B > 0, zero_B, zero_B
  )
  done = commit(begun, token_B[:, None], jnp.ones_like(room_B), engine.stops, room_B)
  return done._replace(calls_B=zero_B, accepted_B=zero_B)


@functools.partial(jax.jit, static_argnames=("engine", "rounds"), donate_argnums=1)
def _rounds(params, carry: Carry, keys_B, room_B, *, engine, rounds: int) -> Carry:
  def more(at):
    return (at[0] < rounds) & jnp.any(at[1].committed.alive_B)

  def take(at):
    number, carry = at
    round_keys_B = jax.vmap(jax.random.fold_in)(keys_B, carry.committed.num_new_B)
    return number + 1, engine.round(params, carry, round_keys_B, room_B)

  return jax.lax.while_loop(more, take, (0, carry))[1]


def commit(done: Committed, tokens_BK, count_B, stops, room_B) -> Committed:
  """Appends the first count tokens of every living row, up to a stop (left out) and its room.

  tokens_BK: the accepted drafts and the target's own token behind them.
  """
  count_B = jnp.where(done.alive_B, count_B, 0)
  K, row_B = tokens_BK.shape[1], jnp.arange(len(count_B))
  number_1K = jnp.arange(K)[None]
  stop_BK = jnp.isin(tokens_BK, jnp.asarray(stops, jnp.int32)) & (number_1K < count_B[:, None])
  stop_B = jnp.where(jnp.any(stop_BK, axis=1), jnp.argmax(stop_BK, axis=1), K)
  kept_B = jnp.minimum(jnp.minimum(count_B, stop_B), room_B - done.num_new_B)
  at_BK = jnp.where(
    number_1K < kept_B[:, None], done.num_new_B[:, None] + number_1K, done.new_BG.shape[1]
  )
  new_BG = done.new_BG.at[row_B[:, None], at_BK].set(tokens_BK, mode="drop")
  num_new_B = done.num_new_B + kept_B
  last_B = jnp.where(count_B > 0, tokens_BK[row_B, jnp.maximum(count_B - 1, 0)], done.last_B)
  alive_B = done.alive_B & (stop_B >= count_B) & (num_new_B < room_B)
  return Committed(
    new_BG,
    num_new_B,
    last_B,
    alive_B,
    done.calls_B + done.alive_B,
    done.accepted_B + jnp.minimum(jnp.maximum(count_B - 1, 0), kept_B),
  )


def next_pending(tokens_BK, count_B, read_B):
  """(pending_B2, num_pending_B) after a round that committed the first count of tokens_BK, of which
  the draft keeps the state of the first read_B; count - read is 1 or 2.
  """
  row_B1 = jnp.arange(len(count_B))[:, None]
  num_B = count_B - read_B
  at_B2 = jnp.minimum(read_B[:, None] + jnp.arange(2)[None], tokens_BK.shape[1] - 1)
  return tokens_BK[row_B1, at_B2], num_B


def residual(p_BV, q_BV):
  """norm([p - q]_+); p itself where nothing is left, which rounding alone can bring about."""
  rest_BV = jnp.maximum(p_BV - q_BV, 0.0)
  total_B1 = jnp.sum(rest_BV, axis=-1, keepdims=True)
  return jnp.where(total_B1 > 0, rest_BV / jnp.where(total_B1 > 0, total_B1, 1.0), p_BV)
