r"""The branching factor: how many continuations a model effectively chooses among, per token.

Axes: B batch: samples, T positions of the answer, V vocab.

With H_t the entropy of the distribution that token t is drawn from (truncated by the sampling's
filters and renormalised), over samples y of a prompt x,

  BF(x) = exp(mean_y (1/|y|) sum_t H_t)

(Yang and Holtzman, "How Alignment Shrinks the Generative Horizon", arXiv 2506.17871, and the authors'
estimator). For long answers -log p(y) / |y| has the same limit as the mean entropy (asymptotic
equipartition). The exponential of the mean is reported as BF, not the mean of exponentials.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.config import ConfigError
from jaxlm.generation.processors import process, refuse_until
from jaxlm.generation.sampling import Sampling


class Branching(NamedTuple):
  """Estimates of one prompt. bf: see above. aep: exp(mean_y -log p(y) / |y|). mean_of_exp: the mean
  over samples of exp(mean entropy). by_position_T: exp(mean entropy) at each position over samples
  that reach it, smoothed over `window` positions. alive_T: how many reach it. product: exp of the mean
  over positions of the mean entropy there. The draw that ends a sample (its stop) is not counted.
  """

  bf: float
  aep: float
  mean_of_exp: float
  product: float
  by_position_T: np.ndarray
  alive_T: np.ndarray


def entropies(logits_BTV, tokens_BT, sampling: Sampling):
  """(H, log p(token)), float32 (B, T), of the distributions that sampling draws from.

  ConfigError: greedy decoding, which draws from nothing (its entropy is 0, its BF 1), and processors
  with `until`.
  """
  if sampling.is_greedy:
    raise ConfigError("greedy decoding has a branching factor of 1; give a temperature above 0")
  refuse_until(sampling.processors, "the branching factor")
  (B, T, V) = logits_BTV.shape
  num_new_N = jnp.broadcast_to(jnp.arange(T)[None], (B, T)).reshape(-1)
  flat_NV = process(logits_BTV.reshape(-1, V), sampling.chain, num_new_N)
  log_p_NV = jax.nn.log_softmax(flat_NV)
  p_NV = jnp.exp(log_p_NV)
  h_N = -jnp.sum(jnp.where(p_NV > 0, p_NV * log_p_NV, 0.0), axis=1)
  chosen_N = jnp.take_along_axis(log_p_NV, tokens_BT.reshape(-1, 1), axis=1)[:, 0]
  return h_N.reshape(B, T), chosen_N.reshape(B, T)


def branching(entropy_BT, log_prob_BT, inside_BT, window: int = 5) -> Branching:
  """Estimates from the samples of one prompt. inside_BT: bool, tokens of the answer; every sample
  has one at least.
  """
  h_BT, lp_BT, in_BT = (np.asarray(x, np.float64) for x in (entropy_BT, log_prob_BT, inside_BT))
  length_B, alive_T = in_BT.sum(1), in_BT.sum(0)
  if (length_B < 1).any():
    raise ValueError("a sample without tokens has no branching factor; leave it out")
  mean_B = np.where(in_BT > 0, h_BT, 0).sum(1) / length_B
  aep_B = -np.where(in_BT > 0, lp_BT, 0).sum(1) / length_B
  reached = alive_T > 0
  sum_T = np.where(in_BT > 0, h_BT, 0).sum(0)[reached]
  count_T = alive_T[reached]
  kernel = np.ones(min(window, len(sum_T)))
  smooth = np.convolve(sum_T, kernel, "same") / np.convolve(count_T, kernel, "same")
  return Branching(
    float(np.exp(mean_B.mean())),
    float(np.exp(aep_B.mean())),
    float(np.exp(mean_B).mean()),
    float(np.exp((sum_T / count_T).mean())),
    np.exp(smooth),
    alive_T[reached].astype(int),
  )


def of_answers(model, params, prompt, answers, sampling: Sampling, window: int = 5) -> Branching:
  """Estimates for answers (lists of ids, not empty) that a decoder gave to one prompt."""
  longest = max(map(len, answers))
  tokens_BT = np.zeros((len(answers), len(prompt) + longest), np.int32)
  inside_BT = np.zeros((len(answers), longest), bool)
  for b, answer in enumerate(answers):
    tokens_BT[b, : len(prompt) + len(answer)] = [*prompt, *answer]
    inside_BT[b, : len(answer)] = True
  width = -(-tokens_BT.shape[1] // 32) * 32  # a few programs for all lengths
  padded_BT = np.pad(tokens_BT, ((0, 0), (0, width - tokens_BT.shape[1])))
  h_BT, lp_BT = _of_rows(params, padded_BT, model, sampling)
  at = slice(len(prompt) - 1, len(prompt) - 1 + longest)
  return branching(h_BT[:, at], lp_BT[:, at], inside_BT, window)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _of_rows(params, tokens_BT, model, sampling):
  """(H, log p) of every token but the first, (B, T - 1)."""
  logits_BTV = model.build().apply({"params": params}, tokens_BT)
  return entropies(logits_BTV[:, :-1], tokens_BT[:, 1:], sampling)
