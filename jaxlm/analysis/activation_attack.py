"""Attacks on activations (arXiv 2312.02780): a free perturbation of the first a positions makes the
model predict chosen tokens.

Axes: B batch of attacks, T time, D d_model, V vocab, A attacked positions.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.analysis.activations import edits, sites, traced
from jaxlm.config import ConfigError, checked
from jaxlm.layers.taps import Edit
from jaxlm.ranges import Count, Positive, UpToOne


class Found(NamedTuple):
  """success_B: whether every target was the most probable token at some step. loss_B: the least."""

  success_B: np.ndarray
  loss_B: np.ndarray
  delta: np.ndarray


def minimise(
  logits_of: Callable, shape: tuple, targets_BT, weight_BT, *, steps: int, learning_rate: float
) -> Found:
  """Adam on delta from 0 for the sum of -log p(target) by row. Traceable.

  logits_of: delta -> (B, T, V). weight: 1 where a target counts. Rows do not touch one another.
  """
  optimizer = optax.adam(learning_rate)

  def read(delta):
    logits = logits_of(delta)
    log_p = jax.nn.log_softmax(logits)
    nll = -jnp.take_along_axis(log_p, targets_BT[..., None], axis=-1)[..., 0] * weight_BT
    right = (jnp.argmax(logits, axis=-1) == targets_BT) | (weight_BT == 0)
    return jnp.sum(nll), (jnp.sum(nll, axis=1), jnp.all(right, axis=1))

  def step(carry, _):
    delta, state, success, best = carry
    (_, (nll_B, right_B)), grad = jax.value_and_grad(read, has_aux=True)(delta)
    updates, state = optimizer.update(grad, state)
    carry = optax.apply_updates(delta, updates), state, success | right_B, jnp.minimum(best, nll_B)
    return carry, None

  B = targets_BT.shape[0]
  delta = jnp.zeros(shape, jnp.float32)
  start = (delta, optimizer.init(delta), jnp.zeros(B, bool), jnp.full(B, jnp.inf))
  (delta, _, success, best), _ = jax.lax.scan(step, start, None, length=steps)
  _, (nll_B, right_B) = read(delta)
  return Found(success | right_B, jnp.minimum(best, nll_B), delta)


@dataclasses.dataclass(frozen=True)
@checked
class Attack:
  """layer: None adds to the embedding, a number to the stream behind that layer. fraction: of the
  channels that may change. threshold: share of successes that counts as one."""

  steps: Count = 300
  learning_rate: Positive = 0.1
  layer: int | None = None
  fraction: UpToOne = 1.0
  threshold: UpToOne = 0.8

  def site(self, cfg):
    if self.layer is None:
      return "embed"
    (full,) = [n for n in sites(cfg) if n.rsplit("/", 1)[-1] == "resid"][:1]
    if not 0 <= self.layer < sites(cfg)[full]:
      raise ConfigError(
        f"attack behind layer {self.layer}: there are layers 0 .. {sites(cfg)[full] - 1}"
      )
    return ("resid", self.layer)


def attacker(attack: Attack, opened, context_BS, target_BT) -> Callable:
  """(num_positions, num_targets) -> Found of these contexts and the first num_targets targets.

  context: int32 (B, S); target: int32 (B, T), random, so that the model's prior does not help. One
  program serves all sizes.
  """
  cfg, site = opened.config, attack.site(opened.config)
  context_BS, target_BT = np.asarray(context_BS), np.asarray(target_BT)
  (B, S), T, D = context_BS.shape, target_BT.shape[1], cfg.d_model
  tokens = jnp.asarray(np.concatenate([context_BS, target_BT[:, :-1]], axis=1))
  channels_D = (np.arange(D) < max(1, round(attack.fraction * D))).astype(np.float32)

  @jax.jit
  def run(params, num_positions, num_targets):
    at_T = (jnp.arange(S + T - 1) < num_positions)[:, None] * channels_D[None]

    def logits_of(delta):
      changed = edits(cfg, {site: Edit(add=delta * at_T[None])})
      out = traced(cfg, params, {"tokens": tokens}, edits=changed)["output"]
      return out[:, S - 1 :]

    weight = jnp.broadcast_to((jnp.arange(T) < num_targets)[None], (B, T)).astype(jnp.float32)
    return minimise(
      logits_of,
      (B, S + T - 1, D),
      jnp.asarray(target_BT),
      weight,
      steps=attack.steps,
      learning_rate=attack.learning_rate,
    )

  def sized(num_positions: int, num_targets: int) -> Found:
    if not 1 <= num_positions <= S or not 1 <= num_targets <= T:
      raise ConfigError(
        f"an attack on {num_positions} positions for {num_targets} tokens: the context has {S} tokens, "
        f"and there are {T} targets"
      )
    return Found(*map(np.asarray, run(opened.params, num_positions, num_targets)))

  return sized


def most_targets(sized: Callable, num_positions: int, lengths: Sequence[int], threshold: float):
  """(t_max, {t: success rate}): the largest of the ascending lengths before the first that fails; 0
  if the first does."""
  rates, best = {}, 0
  for t in lengths:
    rates[t] = float(np.mean(sized(num_positions, t).success_B))
    if rates[t] < threshold:
      break
    best = t
  return best, rates


def line(positions: Sequence[float], targets: Sequence[float]) -> dict[str, float]:
  """Least squares t_max = kappa a + b: "kappa", "intercept", "r2"."""
  a, t = np.asarray(positions, float), np.asarray(targets, float)
  kappa, intercept = np.polyfit(a, t, 1)
  rest, spread = t - (kappa * a + intercept), t - t.mean()
  r2 = 1 - (rest @ rest) / (spread @ spread) if spread.any() else float("nan")
  return {"kappa": float(kappa), "intercept": float(intercept), "r2": float(r2)}


def resistance(kappa: float, d_model: int, vocab_size: int, bits: int = 16) -> float:
  """chi = d p / (kappa log2 V): bits of input that control one bit of output."""
  return d_model * bits / (kappa * math.log2(vocab_size)) if kappa > 0 else math.inf


def token_attack(
  log_p_of: Callable, context_S, vocab_size: int, num_positions: int, sweeps: int = 2
):
  """Greedy search over the first `num_positions` tokens: (context, value), the value the largest found.

  log_p_of: int (R, S) -> (R,), what is to be large. One position at a time tries every token; with one
  position it is exact.
  """
  context = np.asarray(context_S).copy()
  best = -math.inf
  for _ in range(sweeps if num_positions > 1 else 1):
    for at in range(num_positions):
      tried = np.repeat(context[None], vocab_size, axis=0)
      tried[:, at] = np.arange(vocab_size)
      values = np.asarray(log_p_of(tried))
      context, best = tried[int(values.argmax())], float(values.max())
  return context, best
