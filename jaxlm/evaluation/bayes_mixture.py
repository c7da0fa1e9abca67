"""The exact lexinvariant predictor of a small source: Bayes over every substitution cipher
(docs/specs/lexinvariant.md, 1).

  p'(x_t | x_<t) = sum_pi P(pi | x_<t) p(pi^-1(x_t) | pi^-1(x_<t)),  pi uniform.

Float64 throughout. Axes: N texts, T time, V symbols, P = V! ciphers.
"""

import dataclasses
import itertools
import math

import numpy as np

from jaxlm.data.bigram import Bigram

MAX_SYMBOLS = 8  # 40,320 ciphers


@dataclasses.dataclass(frozen=True)
class Mixture:
  """What the exact predictor says about ciphered texts.

  predictive_NTV: p'(x_t = v | x_<t). log_prob_NT: of x_t itself. log_posterior_NTP: of each cipher
  of ciphers_PV (cipher = ciphers[p, plain]) after x_<=t.
  """

  ciphers_PV: np.ndarray
  predictive_NTV: np.ndarray
  log_prob_NT: np.ndarray
  log_posterior_NTP: np.ndarray

  def posterior_of(self, cipher_NV) -> np.ndarray:
    """P(cipher | x_<=t), (N, T)."""
    index_N = [
      int(np.flatnonzero((self.ciphers_PV == c).all(axis=1))[0]) for c in np.asarray(cipher_NV)
    ]
    return np.exp(np.stack([self.log_posterior_NTP[n, :, p] for n, p in enumerate(index_N)]))

  def decipher(self) -> np.ndarray:
    """P(cipher symbol c stands for plain p | x_<=t), (N, T, c, p)."""
    V = self.ciphers_PV.shape[1]
    stands_PVV = (np.arange(V)[None, :, None] == self.ciphers_PV[:, None, :]).astype(
      np.float64
    )  # [P, c, p]
    return np.einsum("ntq,qcp->ntcp", np.exp(self.log_posterior_NTP), stands_PVV)


def mixture(source: Bigram, text_NT) -> Mixture:
  """Enumerates all V! ciphers; V at most 8."""
  V, text_NT = len(source.initial_V), np.asarray(text_NT)
  if V > MAX_SYMBOLS:
    raise ValueError(
      f"{V} symbols have {math.factorial(V)} ciphers; the exact mixture enumerates at most "
      f"{MAX_SYMBOLS} symbols"
    )
  ciphers_PV = np.array(list(itertools.permutations(range(V))), np.int32)
  plain_PV = np.argsort(ciphers_PV, axis=1)
  N, T = text_NT.shape
  log_prior = np.full((N, len(ciphers_PV)), -math.log(len(ciphers_PV)))
  step_NTP = np.stack([source.log_prob(plain[text_NT]) for plain in plain_PV], axis=-1)
  log_joint_NTP = log_prior[:, None] + np.cumsum(step_NTP, axis=1)
  log_evidence_NT = _logsumexp(log_joint_NTP)
  log_posterior_NTP = log_joint_NTP - log_evidence_NT[..., None]
  before_NTP = np.exp(np.concatenate([log_prior[:, None], log_posterior_NTP[:, :-1]], axis=1))
  predictive_NTV = np.zeros((N, T, V))
  for p, plain in enumerate(plain_PV):
    predictive_NTV += before_NTP[..., p, None] * source.conditionals(plain[text_NT])[..., plain]
  log_prob_NT = np.diff(log_evidence_NT, axis=1, prepend=0.0)
  return Mixture(ciphers_PV, predictive_NTV, log_prob_NT, log_posterior_NTP)


def regret_bound(num_symbols: int) -> float:
  """log V! >= sum_t log p(plain_t) - log p'(x_t), for every text and length."""
  return math.lgamma(num_symbols + 1)


def _log(x):
  with np.errstate(divide="ignore"):
    return np.log(x)


def _logsumexp(x):
  top = x.max(axis=-1, keepdims=True)
  return (top + _log(np.exp(x - top).sum(axis=-1, keepdims=True)))[..., 0]
