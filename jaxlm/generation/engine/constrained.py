r"""Answers under a constraint: adaptive weighted rejection sampling with particles, or masks.

Axes: P particles of a row, N rows times particles, V vocab.

The target is p(x) 1{x allowed} / Z over whole answers. Per token (Lipkin et al., "Fast Controlled
Generation from Language Models with Adaptive Weighted Rejection Sampling", arXiv 2504.05410; the
recursive form of the authors' code): order the tokens by log p + Gumbel, largest first, which draws
without replacement. With R = 0 and m = 1, for each token x in order

  q = p(x) / (1 - R)
  allowed:      weight m f,  f = 1 if the next token in order is allowed too or x is the last, else q
  not allowed:  R <- R + p(x),   m <- m (1 - q)

Then E[weight 1{x}] = p(x) 1{x allowed}, so that the mean weight is the probability of an allowed
token. The constraint is asked about a few tokens, whatever V is.

Per answer, a particle's weight is the product of its tokens'; when the effective sample size
(sum w)^2 / sum w^2 falls below tau P, particles are drawn anew in proportion (systematically). The
answer is drawn from the particles by weight. As P grows it follows the target.

method "mask" draws every token from the allowed ones with weight 1, one particle: a biased answer
where a prefix is likely and its ends are not. "mask_smc" weights it with the mass of the allowed.
"""

import dataclasses
import functools
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.config import ConfigError, checked
from jaxlm.generation.base import Batch, Engine, Row
from jaxlm.generation.engine.constraints import DONE, Constraint, Grammar, TokenMachine
from jaxlm.generation.engine.step import extend, padded, prefill, round_up, take_rows
from jaxlm.generation.left_to_right import LeftToRight
from jaxlm.generation.sampling import Sampling, probabilities
from jaxlm.ranges import Count, Natural, UpToOne

LEAST_LEFT = 1e-12  # 1 - R below which nothing is left to accept (float64)


class Weighted(NamedTuple):
  """Particles of one row. answers: int32 arrays. log_weights: of each; -inf where not allowed.
  log_z: of the probability that an answer is allowed, estimated. calls: of the constraint; tokens:
  that were drawn.
  """

  answers: list[np.ndarray]
  log_weights: np.ndarray
  log_z: float
  calls: int
  tokens: int


def adaptive_rejection(p_V, allowed, rng) -> tuple[int | None, float]:
  """(token, weight) of one step; (None, 0) if no token is allowed. p_V: float64, sums to 1.

  allowed(token) -> bool.
  """
  with np.errstate(divide="ignore"):
    order = np.argsort(-(np.log(p_V) + rng.gumbel(size=len(p_V))))
  order = order[p_V[order] > 0]
  rejected, m = 0.0, 1.0
  for at, token in enumerate(order):
    left = 1.0 - rejected
    if left < LEAST_LEFT:
      break
    q = min(p_V[token] / left, 1.0)
    if allowed(int(token)):
      is_last = at + 1 == len(order)
      f = 1.0 if is_last or allowed(int(order[at + 1])) else q
      return int(token), m * f
    rejected += p_V[token]
    m *= 1.0 - q
  return None, 0.0


def masked_step(p_V, allowed, rng) -> tuple[int | None, float]:
  """(a token drawn from the allowed ones, their mass); every token is looked at."""
  mask_V = np.array([p > 0 and allowed(v) for v, p in enumerate(p_V)])
  mass = float(p_V[mask_V].sum())
  if mass <= 0:
    return None, 0.0
  kept_V = np.where(mask_V, p_V, 0.0)
  return int(rng.choice(len(p_V), p=kept_V / kept_V.sum())), mass


def systematic(weights, rng) -> np.ndarray:
  """Indices of P particles drawn in proportion to their weights with one uniform number."""
  P = len(weights)
  edges = np.cumsum(weights) / np.sum(weights)
  # side="right": a particle of weight 0 has an empty interval, and no number falls into it.
  at = np.searchsorted(edges, (rng.random() + np.arange(P)) / P, side="right")
  return np.minimum(at, np.flatnonzero(weights)[-1])


@dataclasses.dataclass(frozen=True, eq=False)
@checked
class Constrained(Engine):
  """constraint: what an answer may be. tokens: the bytes of every id. particles: P. tau: see above.

  An answer ends with a stop, which the constraint allows where the text is complete; without stops
  it ends where it has no more room, and must be complete there.
  """

  token_by_token: ClassVar[bool] = True
  is_default: ClassVar[bool] = False

  model: object
  constraint: Constraint | None = None
  tokens: tuple[bytes, ...] = ()
  sampling: Sampling = Sampling()
  stops: tuple[Natural, ...] = ()
  method: Literal["awrs", "mask", "mask_smc"] = "awrs"
  particles: Count = 8
  tau: UpToOne = 0.5
  deterministic: bool = False

  def __post_init__(self):
    super().__post_init__()
    if self.constraint is None:
      raise ConfigError(
        "engine 'constrained' needs a constraint: give --constraint=REGEX, or `constraint` in Python"
      )
    if len(self.tokens) != self.model.vocab_size:
      raise ConfigError(
        f"tokens: the bytes of {len(self.tokens)} ids for a vocabulary of {self.model.vocab_size}; give one for each"
      )
    if self.constraint.satisfiable() is False:
      raise ConfigError(
        f"no text satisfies the constraint {type(self.constraint).__name__}: no state that may end a text can be "
        f"reached from its first; change the constraint"
      )
    if any(p.until is not None for p in self.sampling.processors):
      raise ConfigError(
        "a logit processor with `until` does not go with particles; leave `until` out"
      )

  @classmethod
  def from_data(cls, data):
    tokenizer = data.load_tokenizer()
    tokens = tuple(tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size))
    return LeftToRight.from_data(data) | {"tokens": tokens}

  @classmethod
  def from_options(cls, options):
    chosen = super().from_options(options._replace(constraint=None, particles=None))
    if options.constraint is not None:
      chosen["constraint"] = Grammar.regex(options.constraint)
    return chosen | ({} if options.particles is None else {"particles": options.particles})

  def decode_batch(self, params, batch: Batch):
    rows, passes = [], 0
    found, passes = self.decode_weighted(params, batch)
    for b, (prompt, one) in enumerate(zip(batch.prompts, found)):
      if not np.isfinite(one.log_weights).any():
        raise ConfigError(
          f"prompt {b}: none of {len(one.answers)} particles satisfies the constraint within "
          f"{int(batch.room_B[b])} tokens; raise --particles or --max_new_tokens, or change the constraint"
        )
      weights = np.exp(one.log_weights - one.log_weights.max())
      pick = self._rng(batch.keys_B[b], 1).choice(len(weights), p=weights / weights.sum())
      answer = one.answers[pick]
      tokens = np.concatenate([np.asarray(prompt.tokens, np.int32), answer]).astype(np.int32)
      rows.append(Row(tokens, len(prompt), len(answer)))
    return rows, passes

  def _rng(self, key, number: int):
    """NumPy's generator of a row; number: 0 for tokens, 1 for the choice among particles."""
    return np.random.default_rng([*np.asarray(jax.random.key_data(key)).tolist(), number])

  def decode_weighted(self, params, batch: Batch) -> tuple[list[Weighted], int]:
    """(the particles of every row, forward passes)."""
    P = 1 if self.method == "mask" else self.particles
    length_B = np.asarray([len(p) for p in batch.prompts], np.int32)
    logits_BV, state = prefill(
      self.model,
      params,
      padded(batch.prompts, length_B, batch.max_len is not None),
      length_B,
      self.model.init_state(len(length_B), round_up(batch.longest)),
      deterministic=self.deterministic,
    )
    every_N = np.repeat(np.arange(len(length_B)), P)
    state, logits_NV = take_rows(self.model, state, every_N), logits_BV[every_N]
    rows = [
      _Particles(self, P, int(n), self._rng(k, 0)) for n, k in zip(batch.room_B, batch.keys_B)
    ]
    for step in range(int(batch.room_B.max())):
      p_NV = np.asarray(_probabilities(logits_NV, step, sampling=self.sampling), np.float64)
      source_N, token_N = np.arange(len(every_N)), np.zeros(len(every_N), np.int32)
      valid_N = np.zeros(len(every_N), np.int32)
      for b, row in enumerate(rows):
        part = slice(b * P, (b + 1) * P)
        source, token_N[part], valid_N[part] = row.step(step, p_NV[part])
        source_N[part] = b * P + source
      if not valid_N.any():
        break
      logits_NV, state = _advance(
        params,
        state,
        jnp.asarray(source_N),
        jnp.asarray(token_N),
        jnp.asarray(valid_N),
        engine=(self.model, self.deterministic),
      )
    return [row.result() for row in rows], step + 1


class _Particles:
  """The particles of one row, on the host."""

  def __init__(self, engine: Constrained, P: int, room: int, rng):
    self.engine, self.P, self.room, self.rng = engine, P, room, rng
    self.machine = TokenMachine(engine.constraint, engine.tokens, engine.stops)
    self.states = [self.machine.start()] * P
    self.texts: list[list[int]] = [[] for _ in range(P)]
    self.log_w = np.zeros(P)
    self.log_z = 0.0
    self.drawn = 0

  def step(self, step: int, p_PV):
    """(source, token, valid) of the next forward pass: which particle each place goes on from."""
    engine = self.engine
    if step >= self.room:
      return np.arange(self.P), np.zeros(self.P, np.int32), np.zeros(self.P, np.int32)
    local = adaptive_rejection if engine.method == "awrs" else masked_step
    token_P, valid_P = np.zeros(self.P, np.int32), np.zeros(self.P, np.int32)
    for i in range(self.P):
      if self.states[i] is None or self.states[i] == DONE:
        continue
      p_V = p_PV[i] / p_PV[i].sum()
      token, weight = local(
        p_V, lambda v, i=i: self.machine.after(self.states[i], v) is not None, self.rng
      )
      if engine.method == "mask" and token is not None:
        weight = 1.0
      self.drawn += 1
      self._weigh(i, weight)
      if token is None:
        self.states[i] = None
        continue
      self.states[i] = self.machine.after(self.states[i], token)
      self.machine.calls -= 1  # known: it was asked when the token was chosen
      if self.states[i] == DONE:
        continue
      self.texts[i] = [*self.texts[i], token]
      token_P[i], valid_P[i] = token, step + 1 < self.room
      if step + 1 == self.room and not (
        not engine.stops and engine.constraint.complete(self.states[i])
      ):
        self._weigh(i, 0.0)  # no room for its end
    source = np.arange(self.P)
    if self.P > 1 and np.isfinite(self.log_w).any():
      w = np.exp(self.log_w - self.log_w.max())
      if w.sum() ** 2 / np.sum(w**2) < engine.tau * self.P:
        source = systematic(w, self.rng)
        self.log_z += self.log_w.max() + np.log(w.mean())
        self.log_w = np.zeros(self.P)
        self.states = [self.states[i] for i in source]
        self.texts = [self.texts[i] for i in source]
        token_P, valid_P = token_P[source], valid_P[source]
    return source, token_P, valid_P

  def _weigh(self, i: int, weight: float) -> None:
    with np.errstate(divide="ignore"):
      self.log_w[i] += np.log(weight)

  def result(self) -> Weighted:
    with np.errstate(divide="ignore", invalid="ignore"):
      top = self.log_w.max()
      mean = -np.inf if top == -np.inf else top + np.log(np.mean(np.exp(self.log_w - top)))
    answers = [np.asarray(text, np.int32) for text in self.texts]
    return Weighted(answers, self.log_w, self.log_z + mean, self.machine.calls, self.drawn)


@functools.partial(jax.jit, static_argnames="sampling")
def _probabilities(logits_NV, step, *, sampling):
  return probabilities(logits_NV, sampling, jnp.full(len(logits_NV), step, jnp.int32))


@functools.partial(jax.jit, static_argnames="engine", donate_argnums=1)
def _advance(params, state, source_N, token_N, valid_N, *, engine):
  model, deterministic = engine
  state = take_rows(model, state, source_N)
  logits_N1V, state = extend(
    model, params, token_N[:, None], state, valid_N[:, None], deterministic=deterministic
  )
  return logits_N1V[:, 0], state
