"""Generation by insertion: one token per row and forward pass, anywhere, until the stop head says
enough.

Axes: B batch, L buffer, N candidates, V vocab. docs/specs/ilm.md, sections 4 and 5.

The buffer is static: an insertion at slot s moves what lies behind it one place to the right by a
gather. `generate` runs a `lax.while_loop` in a buffer of growing size, so that early steps are
cheap, and goes on with half the batch when half of the rows have stopped; `stream` yields after
every step.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.config import ConfigError, checked
from jaxlm.generation.base import row_keys
from jaxlm.generation.processors import process
from jaxlm.generation.sampling import Sampling
from jaxlm.objectives.insertion import STOP, open_slots
from jaxlm.ranges import Count, UpToOne

# Steps of an eighth or more: a buffer costs its whole length at every pass, and one compilation.
BUCKETS = (
  *range(32, 257, 32),
  *range(320, 513, 64),
  *range(640, 1025, 128),
  *range(1280, 2049, 256),
  *range(2560, 4097, 512),
)
MIN_ROWS_TO_HALVE = 8  # a batch of at least so many rows is halved when half of them have stopped
FORBIDDEN = -1e30  # finite: an infinite bias would meet 0 * inf in a partition


@dataclasses.dataclass(frozen=True)
@checked
class Filter:
  """Which of the candidates may be drawn. top_k: the k best (1 is greedy). top_p: in falling order,
  those whose inclusive cumulative probability is at most top_p, and the first: the one that crosses
  top_p is out, as released."""

  top_k: Count | None = None
  top_p: UpToOne | None = None

  def __post_init__(self):
    if self.top_k is not None and self.top_p is not None:
      raise ConfigError(f"top_k = {self.top_k} and top_p = {self.top_p}: choose one")


@dataclasses.dataclass(frozen=True)
class InsertionSampling:
  """token: of the flattened (slot, token) distribution, or, with `slot`, of the tokens of a slot
  chosen first from the row partitions. A Filter, whose top_p is the release's, or a Sampling, whose
  filters mean what they mean everywhere else. Without filters both are the model's own
  distribution, exactly."""

  token: Filter | Sampling = Filter(top_k=1)
  slot: Filter | Sampling | None = None

  @property
  def is_joint(self) -> bool:
    """Whether the flattened distribution is changed, so that all of its logits must be there."""
    return self.slot is None and self.token not in (Filter(), Sampling())


def gumbel(u):
  """-log(-log u), with the release's guards."""
  return -jnp.log(-jnp.log(u + 1e-10) + 1e-10)


def pick(logits_BN, keep: Filter | Sampling, draw):
  """Index (B,) of a draw from softmax(logits) restricted to `keep`. draw(shape) -> uniform noise.

  The noise of top_k belongs to the k best in falling order, otherwise to the candidates in their
  own order.
  """
  logits_BN = logits_BN.astype(jnp.float32)
  if isinstance(keep, Sampling):
    logits_BN = process(logits_BN, keep.chain)
    keep = Filter(top_k=1) if keep.is_greedy else Filter()
  if keep.top_k == 1:
    return jnp.argmax(logits_BN, axis=1)
  if keep.top_k is not None:
    best_Bk, index_Bk = jax.lax.top_k(logits_BN, min(keep.top_k, logits_BN.shape[1]))
    chosen_B1 = jnp.argmax(best_Bk + gumbel(draw(best_Bk.shape)), axis=1)[:, None]
    return jnp.take_along_axis(index_Bk, chosen_B1, axis=1)[:, 0]
  if keep.top_p is not None:
    order_BN = jnp.argsort(-logits_BN, axis=1)
    total_BN = jnp.cumsum(
      jax.nn.softmax(jnp.take_along_axis(logits_BN, order_BN, axis=1), axis=1), axis=1
    )
    kept_BN = (total_BN <= keep.top_p).at[:, 0].set(True)
    kept_BN = jnp.take_along_axis(kept_BN, jnp.argsort(order_BN, axis=1), axis=1)
    logits_BN = jnp.where(kept_BN, logits_BN, -jnp.inf)
  return jnp.argmax(logits_BN + gumbel(draw(logits_BN.shape)), axis=1)


def choose_joint(logits_BLV, keep: Filter | Sampling, draw):
  """(slot_B, token_B) from the flattened distribution.

  Top-k of it is the top-k of the rows' top-k.
  """
  B, _, V = logits_BLV.shape
  if isinstance(keep, Filter) and keep.top_k is not None:
    best_BLk, index_BLk = jax.lax.top_k(logits_BLV, min(keep.top_k, V))
    k = best_BLk.shape[-1]
    at_B = pick(best_BLk.reshape(B, -1), keep, draw)
    return at_B // k, jnp.take_along_axis(index_BLk.reshape(B, -1), at_B[:, None], axis=1)[:, 0]
  at_B = pick(logits_BLV.reshape(B, -1), keep, draw)
  return at_B // V, at_B % V


def choose_in_stages(log_z_BL, row_logits, sampling: InsertionSampling, draw_slot, draw_token):
  """(slot_B, token_B): the slot from its partitions, then the token from row_logits(slot_B), (B,
  V).
  """
  slot_B = pick(log_z_BL, sampling.slot or Filter(), draw_slot)
  return slot_B, pick(row_logits(slot_B), sampling.token, draw_token)


class Sequences(NamedTuple):
  """Rows under construction. blocked_BL: slots that stay closed. alive_B: not stopped yet. steps:
  forward passes.

  most_B: tokens that each row may hold, None: Inserter.max_len for all.
  """

  tokens_BL: jax.Array
  length_B: jax.Array
  blocked_BL: jax.Array
  alive_B: jax.Array
  steps: jax.Array
  most_B: jax.Array | None = None


class Step(NamedTuple):
  """What one forward pass decided: probability of stopping, and, where `inserted`, which token went
  right of where.
  """

  stop_B: jax.Array
  inserted_B: jax.Array
  slot_B: jax.Array
  token_B: jax.Array


def insert(rows: Sequences, slot_B, token_B, where_B) -> Sequences:
  """The token at slot + 1, all behind it one place on; its own slot is open."""
  index_1L = jnp.arange(rows.tokens_BL.shape[1])[None]
  at_B1 = slot_B[:, None] + 1
  source_BL = index_1L - (index_1L > at_B1)

  def put(x_BL, new_B1):
    moved_BL = jnp.where(index_1L == at_B1, new_B1, jnp.take_along_axis(x_BL, source_BL, axis=1))
    return jnp.where(where_B[:, None], moved_BL, x_BL)

  return rows._replace(
    tokens_BL=put(rows.tokens_BL, token_B[:, None].astype(jnp.int32)),
    blocked_BL=put(rows.blocked_BL, jnp.zeros_like(where_B)[:, None]),
    length_B=rows.length_B + where_B,
  )


@dataclasses.dataclass(frozen=True)
class Inserter:
  """An insertion model's settings of generation, hashable.

  config: InsertionConfig. suppressed: ids that are never inserted (mask, eos, pad, cls, bos). pad:
  fills the buffer.
  stop_threshold: a row ends when P(stop) reaches it. max_len: tokens of a row, prompt included.
  max_steps: forward passes. force_first: the first pass always inserts.
  eos: of a model without stop head (Insertion Transformer): a slot is finished when EOS is its best
  token, or more probable than stop_threshold if that is set, and a row when all its slots are.
  """

  config: Any
  suppressed: tuple[int, ...]
  pad: int
  max_len: int
  max_steps: int
  sampling: InsertionSampling = InsertionSampling()
  stop_threshold: float | None = 0.9
  force_first: bool = False
  eos: int | None = None

  def __post_init__(self):
    if self.stop_threshold is not None and not 0 < self.stop_threshold < 1:
      raise ConfigError(
        f"stop_threshold = {self.stop_threshold}: wanted a probability inside (0, 1)"
      )
    if self.stop_threshold is None and self.eos is None:
      raise ConfigError(
        "stop_threshold = None: a model with a stop head needs one; 0.9 is the release's"
      )
    if (self.eos is None) != self.config.stop_head:
      raise ConfigError("eos: set it for a model without stop head, and only for such a one")
    if self.max_steps < 1:
      raise ConfigError(f"max_steps = {self.max_steps}: wanted at least one forward pass")
    wrong = [t for t in (*self.suppressed, self.pad) if not 0 <= t < self.config.vocab_size]
    if wrong:
      raise ConfigError(f"token {wrong[0]} is outside the vocabulary of {self.config.vocab_size}")

  def start(
    self,
    prompts: Sequence[Sequence[int]],
    blocked: Sequence[Sequence[bool]] | None = None,
    buffer: int | None = None,
    most: Sequence[int] | None = None,
  ) -> Sequences:
    """Rows from prompts, each with its first token CLS. blocked: closed slots per prompt; default
    CLS's alone.

    most: tokens that each row may come to hold, prompt included (the release's oracle length);
    never above max_len. Raises ConfigError for an empty prompt, ids outside the vocabulary, a
    prompt that fills max_len, no open slot.
    """
    if not prompts:
      raise ConfigError(
        "no prompt: give at least one, the first token and BOS for a sequence from nothing"
      )
    longest = max(map(len, prompts))
    size = (
      bucket(longest + 1, max(self.max_len, longest + self.force_first))
      if buffer is None
      else buffer
    )
    tokens_BL, closed_BL = (
      np.full((len(prompts), size), self.pad, np.int32),
      np.zeros((len(prompts), size), bool),
    )
    for b, prompt in enumerate(prompts):
      if len(prompt) == 0:
        raise ConfigError(
          f"prompt {b} is empty: give at least its first token (CLS) and one with a slot (BOS)"
        )
      wrong = [int(t) for t in prompt if not 0 <= t < self.config.vocab_size]
      if wrong:
        raise ConfigError(
          f"prompt {b} holds token {wrong[0]}, outside the vocabulary of {self.config.vocab_size}"
        )
      if len(prompt) > min(self.max_len, size):
        raise ConfigError(
          f"prompt {b} has {len(prompt)} tokens, the buffer {min(self.max_len, size)} (max_len, which "
          f"counts the prompt): shorten it or raise max_len"
        )
      tokens_BL[b, : len(prompt)] = prompt
      if blocked is not None:
        if len(blocked[b]) != len(prompt):
          raise ConfigError(f"prompt {b}: {len(blocked[b])} slots named for {len(prompt)} tokens")
        closed_BL[b, : len(prompt)] = blocked[b]
      closed_BL[b, 0] = True
      if closed_BL[b, : len(prompt)].all():
        raise ConfigError(
          f"prompt {b} has no open slot: open at least one besides the first token's"
        )
    length_B = np.asarray([len(p) for p in prompts], np.int32)
    if most is not None and (
      len(most) != len(prompts) or any(m < n for m, n in zip(most, length_B.tolist()))
    ):
      raise ConfigError(
        f"most = {list(most)}: wanted a length per prompt, at least the prompt's own ({length_B.tolist()})"
      )
    return Sequences(
      jnp.asarray(tokens_BL),
      jnp.asarray(length_B),
      jnp.asarray(closed_BL),
      jnp.ones(len(prompts), bool),
      jnp.zeros((), jnp.int32),
      None if most is None else jnp.asarray(most, jnp.int32),
    )

  def stream(self, params, rows: Sequences, key) -> Iterator[tuple[Sequences, Step]]:
    """The rows after every forward pass, until all have stopped. key: as of `generate`."""
    key = row_keys(key, len(rows.alive_B))
    while int(rows.steps) < self.max_steps:
      rows = grow(rows, self)
      rows, step = one_step(params, rows, key, self)
      if not bool(jnp.any(rows.alive_B)):
        return
      yield rows, step

  def generate(self, params, rows: Sequences, key) -> Sequences:
    """The finished rows, in their order; the device is asked once per bucket and when half of the
    rows have stopped. key: a typed PRNG key, or one per row: a row's noise is folded from its own.
    """
    places, aside, keys_B = np.arange(len(rows.alive_B)), [], row_keys(key, len(rows.alive_B))
    while True:
      rows = run(params, grow(rows, self), keys_B, self)
      alive_B = np.asarray(rows.alive_B)
      if int(rows.steps) >= self.max_steps or not alive_B.any():
        return merge_rows([*aside, (places, rows)], self.pad)
      if should_halve_batch(alive_B.sum(), len(alive_B)):
        order = np.argsort(~alive_B, kind="stable")
        going, gone = order[: len(order) // 2], order[len(order) // 2 :]

        def take(x, index):
          return x[index] if jnp.ndim(x) else x

        aside.append((places[gone], jax.tree.map(lambda x: take(x, gone), rows)))
        places, rows, keys_B = (
          places[going],
          jax.tree.map(lambda x: take(x, going), rows),
          keys_B[going],
        )


def should_halve_batch(alive, batch_size: int):
  """Whether half a batch holds all that is left of it."""
  return (batch_size >= MIN_ROWS_TO_HALVE) & (2 * alive <= batch_size)


def merge_rows(parts: Sequence[tuple[np.ndarray, Sequences]], pad: int) -> Sequences:
  """One batch again of rows that were parted; parts: (their places, the rows), the last has seen
  all steps.
  """
  if len(parts) == 1:
    return parts[0][1]
  size = max(rows.tokens_BL.shape[1] for _, rows in parts)

  def wide(x_BL, fill):
    return np.pad(np.asarray(x_BL), ((0, 0), (0, size - x_BL.shape[1])), constant_values=fill)

  order = np.argsort(np.concatenate([places for places, _ in parts]))

  def join(arrays):
    return jnp.asarray(np.concatenate(arrays)[order])

  return Sequences(
    join([wide(r.tokens_BL, pad) for _, r in parts]),
    join([np.asarray(r.length_B) for _, r in parts]),
    join([wide(r.blocked_BL, False) for _, r in parts]),
    join([np.asarray(r.alive_B) for _, r in parts]),
    parts[-1][1].steps,
    None if parts[0][1].most_B is None else join([np.asarray(r.most_B) for _, r in parts]),
  )


def bucket(length: int, most: int) -> int:
  """Smallest buffer that holds `length`, never more than `most` where that suffices."""
  return min((size for size in (*BUCKETS, most) if size >= length), default=most)


def grow(rows: Sequences, cfg: Inserter) -> Sequences:
  """A larger buffer if a living row fills this one and may hold more: never longer than a row may
  become, as a learned table of positions has no place behind that."""
  size = rows.tokens_BL.shape[1]
  if not bool(jnp.any(needs_larger_buffer(rows, cfg))):
    return rows
  more = ((0, 0), (0, bucket(size + 1, max(size + 1, cfg.max_len)) - size))
  return rows._replace(
    tokens_BL=jnp.pad(rows.tokens_BL, more, constant_values=cfg.pad),
    blocked_BL=jnp.pad(rows.blocked_BL, more),
  )


def needs_larger_buffer(rows: Sequences, cfg: Inserter):
  """Bool (B,): rows that fill the buffer and may yet get a token."""
  may_B = (rows.length_B < max_length(rows, cfg)) | (cfg.force_first & (rows.steps == 0))
  return rows.alive_B & (rows.length_B >= rows.tokens_BL.shape[1]) & may_B


def max_length(rows: Sequences, cfg: Inserter):
  """Tokens that each row may hold, (B,) or one number."""
  return cfg.max_len if rows.most_B is None else jnp.minimum(rows.most_B, cfg.max_len)


@functools.partial(jax.jit, static_argnames="cfg")
def run(params, rows: Sequences, key, cfg: Inserter) -> Sequences:
  """Steps until all rows have stopped or half of them, max_steps, or a living row fills the buffer."""

  def going(rows):
    full = jnp.any(needs_larger_buffer(rows, cfg))
    left = jnp.sum(rows.alive_B)
    return (
      (rows.steps < cfg.max_steps)
      & (left > 0)
      & ~full
      & ~should_halve_batch(left, len(rows.alive_B))
    )

  return jax.lax.while_loop(going, lambda rows: take_step(params, rows, key, cfg)[0], rows)


@functools.partial(jax.jit, static_argnames="cfg")
def one_step(params, rows: Sequences, key, cfg: Inserter) -> tuple[Sequences, Step]:
  return take_step(params, rows, key, cfg)


def take_step(params, rows: Sequences, key, cfg: Inserter) -> tuple[Sequences, Step]:
  """One forward pass: stop or insert, for every row that is alive. A stopped row never goes on."""
  model, V = cfg.config.build(), cfg.config.vocab_size
  apply = functools.partial(model.apply, {"params": params})
  inside_BL = jnp.arange(rows.tokens_BL.shape[1])[None] < rows.length_B[:, None]
  segment_ids_BL = inside_BL.astype(jnp.int32)
  h_BLD, stop_B2 = apply(rows.tokens_BL, segment_ids_BL, None, rows.blocked_BL, method="encode")
  open_BL = open_slots(segment_ids_BL, rows.blocked_BL)
  bias_V = jnp.zeros(V).at[jnp.asarray(cfg.suppressed, jnp.int32)].set(FORBIDDEN)

  if cfg.eos is None:
    stop_B = jax.nn.softmax(stop_B2, axis=1)[:, STOP]
    go_B = stop_B < cfg.stop_threshold
  else:
    logits_BLV = apply(h_BLD, method="row_logits") + bias_V[None, None]
    best_is_eos_BL = jnp.argmax(logits_BLV, axis=-1) == cfg.eos
    p_BL = jax.nn.softmax(logits_BLV, axis=-1)[..., cfg.eos]
    done_BL = best_is_eos_BL if cfg.stop_threshold is None else p_BL > cfg.stop_threshold
    stop_B = jnp.min(jnp.where(open_BL, p_BL, 1.0), axis=1)
    open_BL = open_BL & ~done_BL
    go_B = jnp.any(open_BL, axis=1)
  go_B = (go_B & (rows.length_B < max_length(rows, cfg))) | (
    cfg.force_first & (rows.steps == 0) & jnp.any(open_BL, axis=1)
  )
  alive_B = rows.alive_B & go_B

  noise_B = jax.vmap(jax.random.fold_in, (0, None))(row_keys(key, len(rows.alive_B)), rows.steps)

  def draw(stage):
    """Uniform (B, N) from the rows' own keys. The first N numbers of a key do not depend on N, and
    so not on the buffer."""

    def uniform(shape):
      keys_B = jax.vmap(jax.random.fold_in, (0, None))(noise_B, stage)
      return jax.vmap(lambda k: jax.random.uniform(k, shape[1:]))(keys_B)

    return uniform

  def closed(x_BL):
    return jnp.where(open_BL, x_BL, FORBIDDEN)

  if cfg.sampling.is_joint:
    if cfg.eos is None:
      logits_BLV = apply(h_BLD, method="row_logits") + bias_V[None, None]
    logits_BLV = jnp.where(open_BL[..., None], logits_BLV, -jnp.inf)
    slot_B, token_B = choose_joint(logits_BLV, cfg.sampling.token, draw(0))
  else:

    def row_logits(slot_B):
      h_B1D = jnp.take_along_axis(h_BLD, slot_B[:, None, None], axis=1)
      return apply(h_B1D, method="row_logits")[:, 0] + bias_V[None]

    log_z_BL = apply(h_BLD, bias_V, open_BL, method="row_log_z")
    slot_B, token_B = choose_in_stages(closed(log_z_BL), row_logits, cfg.sampling, draw(0), draw(1))
  inserted_B = alive_B if cfg.eos is None else alive_B & (token_B != cfg.eos)
  rows = insert(rows._replace(alive_B=alive_B, steps=rows.steps + 1), slot_B, token_B, inserted_B)
  return rows, Step(stop_B, inserted_B, slot_B, token_B)
