r"""Beam search with the meaning that it has in Hugging Face's `generate`.

Axes: B batch, K beams, V vocab, C candidates.

A row has K running beams and K finished ones. Of all continuations of the running beams, the
C = K max(2, 1 + number of stops) with the largest sum of log probabilities are candidates. One that
ends (a stop, or no room) is finished if it is among the first K; its score is

  sum of log p / (number of its new tokens, the stop included)^length_penalty.

The K best of old and new finished ones stay; the K best candidates that do not end run on. A row is
done when the best running beam, at its present length, is not above the worst finished one
(early_stopping False), or when K are finished (True); "never" compares at the longest length if
length_penalty > 0. The answer is the finished beam with the best score.

Source: `_beam_search` of transformers 5, whose tokens a test compares with ours.
"""

import dataclasses
import functools
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.config import checked
from jaxlm.generation.base import Batch, Engine, Row, refuse_options
from jaxlm.generation.engine.step import extend, padded, prefill, round_up, take_rows
from jaxlm.generation.left_to_right import LeftToRight
from jaxlm.generation.processors import Processor, process, refuse_until
from jaxlm.ranges import Count, Finite, Natural

LOW = -1e9


@dataclasses.dataclass(frozen=True)
@checked
class Beam(Engine):
  """num_beams: K. processors: of the log probabilities, in order."""

  token_by_token: ClassVar[bool] = True
  is_default: ClassVar[bool] = False

  model: object
  stops: tuple[Natural, ...] = ()
  num_beams: Count = 4
  length_penalty: Finite = 1.0
  early_stopping: Literal[True, False, "never"] = False
  processors: tuple[Processor, ...] = ()
  deterministic: bool = False

  def __post_init__(self):
    super().__post_init__()
    refuse_until(self.processors, "beam search")

  @classmethod
  def from_data(cls, data):
    return LeftToRight.from_data(data)

  @classmethod
  def from_options(cls, options):
    refuse_options(cls, options, [n for n in options._fields if n not in ("beams", "processors")])
    chosen = {} if options.beams is None else {"num_beams": options.beams}
    return chosen | {"processors": options.processors or ()}

  def decode_batch(self, params, batch: Batch):
    B, K = len(batch.prompts), self.num_beams
    length_B = np.asarray([len(p) for p in batch.prompts], np.int32)
    logits_BV, state = prefill(
      self.model,
      params,
      padded(batch.prompts, length_B, batch.max_len is not None),
      length_B,
      self.model.init_state(B, round_up(batch.longest)),
      deterministic=self.deterministic,
    )
    beams_N = np.repeat(np.arange(B), K)
    state = take_rows(self.model, state, beams_N)
    logits_NV = logits_BV[beams_N]
    score_BK = np.full((B, K), LOW, np.float32)
    score_BK[:, 0] = 0.0
    rows = [_RowBeams(self, int(n)) for n in batch.room_B]
    count = K * max(2, 1 + len(self.stops))
    passes = 1
    for step in range(int(batch.room_B.max())):
      top_BC, index_BC = _candidates(
        logits_NV, jnp.asarray(score_BK), step, count=count, engine=self
      )
      top_BC, index_BC = np.asarray(top_BC), np.asarray(index_BC)
      V, parent_BK = logits_NV.shape[-1], np.zeros((B, K), np.int32)
      token_BK = np.zeros((B, K), np.int32)
      for b, row in enumerate(rows):
        if not row.done:
          score_BK[b], parent_BK[b], token_BK[b] = row.step(
            step, top_BC[b], index_BC[b] // V, index_BC[b] % V
          )
      if all(row.done for row in rows):
        break
      source_N = (np.arange(B)[:, None] * K + parent_BK).reshape(-1)
      logits_NV, state = _advance(
        params, state, jnp.asarray(source_N), jnp.asarray(token_BK.reshape(-1)), engine=self
      )
      passes += 1
    out = []
    for prompt, row in zip(batch.prompts, rows):
      new = row.best()
      tokens = np.concatenate([np.asarray(prompt.tokens, np.int32), new]).astype(np.int32)
      out.append(Row(tokens, len(prompt), len(new)))
    return out, passes


class _RowBeams:
  """The bookkeeping of one row, on the host."""

  def __init__(self, engine: Beam, room: int):
    self.engine, self.room, self.done = engine, room, room == 0
    K = engine.num_beams
    self.running: list[list[int]] = [[] for _ in range(K)]
    self.finished = [(np.float32(LOW), [], False) for _ in range(K)]
    self.may_improve = True

  def step(self, step, score_C, parent_C, token_C):
    """(scores, parents, tokens) of the next running beams; candidates come in decreasing order."""
    engine, K = self.engine, self.engine.num_beams
    ends_C = np.isin(token_C, engine.stops) | (step + 1 >= self.room)
    sequences = [self.running[p] + [int(t)] for p, t in zip(parent_C, token_C)]
    run_C = score_C + ends_C.astype(np.float32) * np.float32(LOW)
    kept_K = np.argsort(-run_C, kind="stable")[:K]
    full = all(f for _, _, f in self.finished) and engine.early_stopping is True
    final_C = score_C / np.float32((step + 1) ** engine.length_penalty)
    closed_C = ~(ends_C & (np.arange(len(ends_C)) < K))
    final_C = final_C + np.float32(LOW) * (
      np.float32(full) + np.float32(not self.may_improve) + closed_C.astype(np.float32)
    )
    merged = self.finished + [(s, seq, not c) for s, seq, c in zip(final_C, sequences, closed_C)]
    best = np.argsort([-s for s, _, _ in merged], kind="stable")[:K]
    self.finished = [merged[i] for i in best]
    self.running = [sequences[i] for i in kept_K]
    longest = engine.early_stopping == "never" and engine.length_penalty > 0
    length = self.room if longest else step + 1
    best_running = run_C[kept_K[0]] / np.float32(length**engine.length_penalty)
    worst = min(s for s, _, _ in self.finished)
    bounds = [worst if f else np.float32(LOW) for _, _, f in self.finished]
    self.may_improve &= any(best_running > bound for bound in bounds)
    all_finished = all(f for _, _, f in self.finished) and engine.early_stopping is True
    self.done = not self.may_improve or all_finished or bool(ends_C.all())
    return run_C[kept_K], parent_C[kept_K], token_C[kept_K]

  def best(self) -> np.ndarray:
    """The answer without its stop."""
    score, sequence, is_finished = self.finished[0]
    sequence = sequence if is_finished else self.running[0]
    if sequence and sequence[-1] in self.engine.stops:
      sequence = sequence[:-1]
    return np.asarray(sequence, np.int32)


@functools.partial(jax.jit, static_argnames=("count", "engine"))
def _candidates(logits_NV, score_BK, step, *, count: int, engine: Beam):
  (B, K), V = score_BK.shape, logits_NV.shape[-1]
  log_p_NV = jax.nn.log_softmax(logits_NV.astype(jnp.float32))
  log_p_NV = process(log_p_NV, engine.processors, jnp.full(B * K, step, jnp.int32))
  total_BC = (log_p_NV.reshape(B, K, V) + score_BK[..., None]).reshape(B, K * V)
  return jax.lax.top_k(total_BC, min(count, K * V))


@functools.partial(jax.jit, static_argnames="engine", donate_argnums=1)
def _advance(params, state, source_N, token_N, *, engine: Beam):
  state = take_rows(engine.model, state, source_N)
  logits_N1V, state = extend(
    engine.model,
    params,
    token_N[:, None],
    state,
    jnp.ones((len(token_N), 1), jnp.int32),
    deterministic=engine.deterministic,
  )
  return logits_N1V[:, 0], state
