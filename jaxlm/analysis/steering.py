"""Steering by gradient attribution (arXiv 2507.18043): ablate the tokens that matter most for a
preference, and move hidden states along what that changes, with their norms kept.

Axes: B batch, T time, D d_model, P tokens of the prompt.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.analysis.activations import record, sites
from jaxlm.analysis.attribution.base import Method, Question
from jaxlm.config import ConfigError
from jaxlm.layers.taps import Edit

SELECTIONS = ("pos", "neg", "abs", "rand")


class Preference(NamedTuple):
  """F = log p(y+_last | x y+_<last) - log p(y-_last | x y-_<last). plus, minus: one question each.

  Both embeddings are free, so a gradient of F is that of each question by itself.
  """

  plus: Question
  minus: Question


def preference(config, params, prompt_BP, plus_BR, minus_BR) -> Preference:
  """Responses int32 (B, R), R >= 1, may differ in length. ConfigError: an empty response."""

  def question(response_BR):
    response = np.asarray(response_BR, np.int32)
    if response.ndim != 2 or response.shape[1] < 1:
      raise ConfigError("an empty response has no last token to prefer; give one token at least")
    tokens = np.concatenate([np.asarray(prompt_BP, np.int32), response[:, :-1]], axis=1)
    return Question(config, params, tokens, response[:, -1])

  return Preference(question(plus_BR), question(minus_BR))


def attribute(method: Method, pair: Preference, num_prompt: int, key) -> np.ndarray:
  """How much each token of the prompt speaks for the preferred response, float64 (B, P)."""
  k1, k2 = jax.random.split(key)
  plus, minus = (
    np.asarray(method(q, k), np.float64)[:, :num_prompt]
    for q, k in ((pair.plus, k1), (pair.minus, k2))
  )
  return plus - minus


def choose(attribution_BP, count: int, selection: str, rng: np.random.Generator, keep_BP=None):
  """bool (B, P): the `count` tokens of each row with the largest ("pos"), the lowest ("neg"), the
  largest absolute ("abs") number, or random ones. keep: tokens that are never chosen. More than there
  are takes all.
  """
  if selection not in SELECTIONS:
    raise ConfigError(f"selection {selection!r}: one of {', '.join(SELECTIONS)}")
  a = np.asarray(attribution_BP, np.float64)
  order = {"pos": a, "neg": -a, "abs": np.abs(a), "rand": rng.random(a.shape)}[selection]
  free = np.ones(a.shape, bool) if keep_BP is None else ~np.asarray(keep_BP, bool)
  order = np.where(free, order, -np.inf)
  rank = np.argsort(np.argsort(-order, axis=1, kind="stable"), axis=1)
  return (rank < count) & free


def states(config, params, tokens_BT, layer: int) -> np.ndarray:
  """The residual stream behind `layer` at the last position, float64 (B, D)."""
  (full,) = [n for n in sites(config) if n.rsplit("/", 1)[-1] == "resid"][:1]
  if not 0 <= layer < sites(config)[full]:
    raise ConfigError(
      f"steering behind layer {layer}: there are layers 0 .. {sites(config)[full] - 1}"
    )
  found = record(config, params, {"tokens": jnp.asarray(tokens_BT)}, [full])[full][layer]
  return np.asarray(found[:, -1], np.float64)


def shifts(question: Question, chosen_BP, mask_id: int, layer: int) -> np.ndarray:
  """h(tokens) - h(tokens with the chosen ones replaced by the mask), (B, D)."""
  tokens = np.asarray(question.tokens_BT)
  if not 0 <= mask_id < question.config.vocab_size:
    raise ConfigError(
      f"mask_id = {mask_id}: the vocabulary has tokens 0 .. {question.config.vocab_size - 1}; name the "
      "one that stands for a removed token"
    )
  hidden = np.zeros(tokens.shape, bool)
  hidden[:, : chosen_BP.shape[1]] = chosen_BP
  args = (question.config, question.params)
  ablated = states(*args, np.where(hidden, mask_id, tokens), layer)
  return states(*args, tokens, layer) - ablated


def direction(differences_BD, how: str = "mean") -> np.ndarray:
  """ "mean", or "pca": the first principal component (not centred), turned towards the mean and as
  long as it. (D,)."""
  d = np.asarray(differences_BD, np.float64)
  mean = d.mean(axis=0)
  if how == "mean":
    return mean
  if how != "pca":
    raise ConfigError(f"direction {how!r}: 'mean' or 'pca'")
  if not d.any():
    return mean
  first = np.linalg.svd(d, full_matrices=False)[2][0]
  first = first if first @ mean >= 0 else -first
  return first * np.linalg.norm(mean)


def steered(v_D, alpha: float, layer: int, *, scale: float = 1.0, at_T=None) -> dict:
  """h' = (h + scale alpha v) |h| / |h + scale alpha v| behind `layer`, at the positions of at_T (bool);
  None: at every one. {} where nothing is added. The release has scale = 10.
  """
  add = scale * alpha * np.asarray(v_D, np.float32)
  if at_T is not None:
    add = np.asarray(at_T, np.float32)[:, None] * add[None]
  return {("resid", layer): Edit(add=add, keep_norm=True)} if add.any() else {}


def as_released(v_D, alpha: float, layer: int, *, scale: float = 10.0) -> dict:
  """The release's hook: norms are kept over time instead of over features, for comparison."""
  add = jnp.asarray(scale * alpha * np.asarray(v_D, np.float32))

  def shift(h_BTD, number):  # one function serves all layers of a stack
    moved = h_BTD + add[None, None]
    over_time = lambda x: jnp.sqrt(jnp.sum(x * x, axis=1, keepdims=True))  # noqa: E731
    kept = moved * over_time(h_BTD) / jnp.maximum(over_time(moved), 1e-12)
    return jnp.where(number == layer, kept, h_BTD)

  return {("resid", None): Edit(fn=shift)}


def continued(opened, prompt_BP, count: int, changes, key, temperature: float = 1.0) -> np.ndarray:
  """`count` sampled tokens behind each prompt under edits, int32 (B, count). temperature 0: greedy.

  Whole passes over a row of fixed length: for a few tokens of small models.
  """
  from jaxlm.analysis.opened import intervene

  prompt = np.asarray(prompt_BP, np.int32)
  rows = np.concatenate([prompt, np.zeros((len(prompt), count), np.int32)], axis=1)
  for i in range(prompt.shape[1], rows.shape[1]):
    out = np.asarray(intervene(opened, rows, changes)["output"][:, i - 1], np.float64)
    if temperature:
      key, one = jax.random.split(key)
      out = out / temperature + np.asarray(jax.random.gumbel(one, out.shape), np.float64)
    rows[:, i] = out.argmax(axis=-1)
  return rows[:, prompt.shape[1] :]
