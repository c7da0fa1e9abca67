"""One attention layer without positions, trained by the population gradient (arXiv 2305.16380).

Class n has a query token m(n) and context frequencies P(l | n). With b_l = c_l exp(z_ml) / sum, over the
counts c of a context, f = b / ||b||, logits = Y^T f, the loss is the cross entropy of n. For long
contexts c = P(. | n), and the population gradient is a sum over classes. float64.

Axes: C classes, V vocabulary of contexts, M query tokens.
"""

import dataclasses
from typing import NamedTuple

import numpy as np


class Task(NamedTuple):
  """frequency_CV: P(l | n). query_C: m(n). share_C: P(n). distinct_V: the class whose own the token is,
  -1 of common tokens."""

  frequency_CV: np.ndarray
  query_C: np.ndarray
  share_C: np.ndarray
  distinct_V: np.ndarray


class Parameters(NamedTuple):
  """y_VC: decoder. z_MV: attention logits."""

  y_VC: np.ndarray
  z_MV: np.ndarray


def task(
  num_classes: int,
  num_distinct: int,
  num_common: int,
  rng: np.random.Generator,
  common: float = 0.5,
) -> Task:
  """Every class has its own query and its own tokens. common: their share of every context.

  Frequencies of distinct tokens are those of a Dirichlet, so that they differ.
  """
  V = num_classes * num_distinct + num_common
  frequency = np.zeros((num_classes, V))
  owner = np.repeat([*range(num_classes), -1], [num_distinct] * num_classes + [num_common])
  for n in range(num_classes):
    frequency[n, owner == n] = (1 - common) * rng.dirichlet(np.full(num_distinct, 3.0))
    frequency[n, owner == -1] = common * rng.dirichlet(np.full(num_common, 3.0))
  return Task(frequency, np.arange(num_classes), np.full(num_classes, 1 / num_classes), owner)


def attention(counts_CV, z_CV) -> np.ndarray:
  """b: softmax over the tokens of each context, (C, V)."""
  e = counts_CV * np.exp(z_CV - z_CV.max(axis=1, keepdims=True))
  return e / e.sum(axis=1, keepdims=True)


def loss_and_gradient(p: Parameters, counts_CV, class_C, query_C, share_C):
  """(loss, gradient) of the mean over contexts, weighted by share_C; written out.

  dL/dY = sum_n share f (p - e_n)^T;  with g = (I - f f^T) Y (p - e_n) / ||b||,
  dL/dz_m = sum_n share b * (g - b.g).
  """
  b_CV = attention(counts_CV, p.z_MV[query_C])
  norm_C = np.linalg.norm(b_CV, axis=1, keepdims=True)
  f_CV = b_CV / norm_C
  logits = f_CV @ p.y_VC
  logits = logits - logits.max(axis=1, keepdims=True)
  prob = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
  at = np.arange(len(class_C))
  loss = -np.sum(share_C * np.log(prob[at, class_C]))
  error = prob.copy()
  error[at, class_C] -= 1
  error *= share_C[:, None]
  y_VC = f_CV.T @ error
  g = error @ p.y_VC.T
  g = (g - f_CV * np.sum(f_CV * g, axis=1, keepdims=True)) / norm_C
  into = b_CV * (g - np.sum(b_CV * g, axis=1, keepdims=True))
  z_MV = np.zeros_like(p.z_MV)
  np.add.at(z_MV, query_C, into)
  return float(loss), Parameters(y_VC, z_MV)


def population(p: Parameters, one: Task):
  """`loss_and_gradient` of long contexts, whose counts are the frequencies."""
  classes = np.arange(len(one.query_C))
  return loss_and_gradient(p, one.frequency_CV, classes, one.query_C, one.share_C)


@dataclasses.dataclass(frozen=True)
class Training:
  """eta_y, eta_z: learning rates of decoder and attention. optimizer: "sgd" or "adam"."""

  steps: int
  eta_y: float
  eta_z: float
  optimizer: str = "sgd"


class Trajectory(NamedTuple):
  """By recorded step: z_SMV, attention_SCV, loss_S; and the steps."""

  steps: np.ndarray
  z: np.ndarray
  attention: np.ndarray
  loss: np.ndarray


def train(one: Task, how: Training, points: int = 200) -> Trajectory:
  """Full-batch training from zero."""
  C, V = one.frequency_CV.shape
  p = Parameters(np.zeros((V, C)), np.zeros((C, V)))
  mean = [np.zeros_like(x) for x in p]
  square = [np.zeros_like(x) for x in p]
  kept, every = [], max(1, how.steps // points)
  for step in range(how.steps + 1):
    loss, grads = population(p, one)
    if step % every == 0:
      kept.append((step, p.z_MV.copy(), attention(one.frequency_CV, p.z_MV[one.query_C]), loss))
    if how.optimizer == "adam":
      mean = [0.9 * m + 0.1 * g for m, g in zip(mean, grads)]
      square = [0.999 * v + 0.001 * g * g for v, g in zip(square, grads)]
      fix = (1 - 0.9 ** (step + 1), 1 - 0.999 ** (step + 1))
      grads = [(m / fix[0]) / (np.sqrt(v / fix[1]) + 1e-12) for m, v in zip(mean, square)]
    p = Parameters(p.y_VC - how.eta_y * grads[0], p.z_MV - how.eta_z * grads[1])
  return Trajectory(*(np.array(x) for x in zip(*kept)))


def entropy(b_SCV) -> np.ndarray:
  """Of the attention, nats, mean over classes: (S,)."""
  b = np.asarray(b_SCV)
  return -np.where(b > 0, b * np.log(np.where(b > 0, b, 1)), 0).sum(-1).mean(-1)


def snap(found: Trajectory) -> int:
  """Index of the record at which the growth of distinct logits has fallen to a tenth of its largest
  rate, after that; the last record if it never does."""
  top = found.z.max(axis=(1, 2))
  rate = np.diff(top)
  peak = int(rate.argmax())
  slow = np.flatnonzero(rate[peak:] < 0.1 * rate[peak])
  return peak + int(slow[0]) if len(slow) else len(top) - 1


def rank_correlation(one: Task, logits_CV) -> float:
  """Spearman's rho of frequency and attention logit among distinct tokens, mean over classes.

  logits: z of each class's query. The attention is frequency times exp(z), so its own order says little.
  """
  from scipy.stats import spearmanr

  found = []
  for n in range(len(one.query_C)):
    own = one.distinct_V == n
    found.append(spearmanr(one.frequency_CV[n, own], logits_CV[n, own]).statistic)
  return float(np.mean(found))


def by_type(one: Task, x_SCV) -> dict[str, np.ndarray]:
  """Mean over classes of the sum over "distinct" and "common" tokens, by record."""
  C = len(one.query_C)
  distinct = np.stack([one.distinct_V == n for n in range(C)])
  common = np.broadcast_to(one.distinct_V == -1, distinct.shape)
  return {
    "distinct": (x_SCV * distinct).sum(-1).mean(-1),
    "common": (x_SCV * common).sum(-1).mean(-1),
  }
