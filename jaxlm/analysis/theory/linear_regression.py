"""Linear self-attention trained on random linear regressions (arXiv 2306.09927).

  x ~ N(0, Lambda), w ~ N(0, I), y = w.x;  E = [[x_1 .. x_N, x_q], [y_1 .. y_N, 0]]
  f(E) = E + W_PV E (E^T W_KQ E) / N, the prediction of y_q is the last entry of the last column

The optimum is Gamma = (1 + 1/N) Lambda + (tr Lambda / N) I, y_hat = x_q^T Gamma^-1 (1/M) sum y_i x_i.
Everything is float64. Axes: B batch of prompts, N examples, E = d + 1 rows.
"""

import dataclasses
from typing import NamedTuple

import numpy as np


class Weights(NamedTuple):
  """Full matrices of one layer, (d + 1, d + 1) each."""

  w_pv: np.ndarray
  w_kq: np.ndarray


class Prompts(NamedTuple):
  """x: (B, N, d), y: (B, N), query: (B, d), answer: (B,)."""

  x: np.ndarray
  y: np.ndarray
  query: np.ndarray
  answer: np.ndarray


def covariance(kind: str, d: int) -> np.ndarray:
  """ "identity", or "geometric": eigenvalues 1, 1/2, 1/4, .. scaled to trace d."""
  if kind == "identity":
    return np.eye(d)
  values = 0.5 ** np.arange(d)
  return np.diag(values * d / values.sum())


def draw(
  rng: np.random.Generator,
  cov,
  count: int,
  num_examples: int,
  *,
  query_cov=None,
  task_scale: float = 1.0,
  spread: float = 0.0,
) -> Prompts:
  """Prompts. query_cov: of the query, default cov. task_scale: w ~ N(0, task_scale^2 I). spread: each
  prompt has its own covariance, diag(exp(spread g)), g normal, times cov.
  """
  d = len(cov)
  root = np.linalg.cholesky(cov)
  query_root = root if query_cov is None else np.linalg.cholesky(query_cov)
  own = np.exp(0.5 * spread * rng.standard_normal((count, 1, d))) if spread else 1.0
  x = rng.standard_normal((count, num_examples, d)) @ root.T * own
  query = (rng.standard_normal((count, 1, d)) @ query_root.T * own)[:, 0]
  w = task_scale * rng.standard_normal((count, d))
  y = np.einsum("bnd,bd->bn", x, w)
  return Prompts(x, y, query, np.einsum("bd,bd->b", query, w))


def initial(d: int, scale: float, rng: np.random.Generator) -> Weights:
  """W_PV = s e e^T, W_KQ = s diag(Theta Theta^T, 0) with ||Theta Theta^T||_F = 1."""
  theta = rng.standard_normal((d, d))
  square = theta @ theta.T
  w_pv, w_kq = np.zeros((2, d + 1, d + 1))
  w_pv[d, d] = scale
  w_kq[:d, :d] = scale * square / np.linalg.norm(square)
  return Weights(w_pv, w_kq)


def predict(weights: Weights, prompts: Prompts) -> np.ndarray:
  """The last entry of the last column of f(E), (B,)."""
  gram, column = _gram(prompts)
  return np.einsum("e,bef,bf->b", weights.w_pv[-1], gram, column @ weights.w_kq.T)


def _gram(prompts: Prompts):
  """(E E^T / N, the query's column), (B, d + 1, d + 1) and (B, d + 1)."""
  B, N, d = prompts.x.shape
  tokens = np.concatenate([prompts.x, prompts.y[..., None]], axis=2)
  column = np.concatenate([prompts.query, np.zeros((B, 1))], axis=1)
  gram = (np.einsum("bne,bnf->bef", tokens, tokens) + column[:, :, None] * column[:, None]) / N
  return gram, column


def loss_and_gradient(weights: Weights, prompts: Prompts) -> tuple[float, Weights]:
  """Half the mean squared error, and its gradient with respect to both whole matrices."""
  gram, column = _gram(prompts)
  read = column @ weights.w_kq.T  # (B, E)
  mixed = np.einsum("bef,bf->be", gram, read)
  error = mixed @ weights.w_pv[-1] - prompts.answer
  B = len(error)
  pv, kq = np.zeros_like(weights.w_pv), None
  pv[-1] = error @ mixed / B
  kq = np.einsum("b,be,bf->ef", error, gram @ weights.w_pv[-1], column) / B
  return float(0.5 * np.mean(error**2)), Weights(pv, kq)


def gamma(cov, num_examples: int) -> np.ndarray:
  """(1 + 1/N) Lambda + (tr Lambda / N) I."""
  return (1 + 1 / num_examples) * cov + np.trace(cov) / num_examples * np.eye(len(cov))


def optimum(cov, num_examples: int) -> Weights:
  """The limit of gradient flow from `initial`: the product is Gamma^-1, and the two matrices have
  equal norms, which gradient flow keeps."""
  d, inverse = len(cov), np.linalg.inv(gamma(cov, num_examples))
  split = np.trace(inverse @ inverse) ** 0.25
  w_pv, w_kq = np.zeros((2, d + 1, d + 1))
  w_pv[d, d], w_kq[:d, :d] = split, inverse / split
  return Weights(w_pv, w_kq)


def second_moment(cov, num_examples: int) -> np.ndarray:
  """E[S^2] of the sample covariance S of M examples: (1 + 1/M) Lambda^2 + (tr Lambda / M) Lambda."""
  return cov @ gamma(cov, num_examples)


def risk(product, cov, num_examples: int, *, query_cov=None, task_scale: float = 1.0) -> float:
  """E (y_hat - y)^2 of y_hat = x_q^T A (1/M) sum y_i x_i, A = `product`, exactly:

  task_scale^2 (tr L - 2 tr(L A Lambda) + tr(L A E[S^2] A^T)), L the covariance of the query.
  """
  query = cov if query_cov is None else query_cov
  second = second_moment(cov, num_examples)
  total = np.trace(query) - 2 * np.trace(query @ product @ cov)
  return float(task_scale**2 * (total + np.trace(query @ product @ second @ product.T)))


def population_step(weights: Weights, cov, num_examples: int) -> Weights:
  """The gradient of the population loss in the subspace that training from `initial` stays in: W_KQ's
  upper left block A and W_PV's last entry u, loss = risk(u A^T) / 2. Written out, not sampled."""
  d = len(cov)
  u, a = weights.w_pv[d, d], weights.w_kq[:d, :d]
  second = second_moment(cov, num_examples)
  # y_hat = u (1/N sum y_i x_i)^T A x_q up to terms of the query that average to 0.
  slope = u * second @ a @ cov - cov @ cov
  w_pv, w_kq = np.zeros((2, d + 1, d + 1))
  w_pv[d, d], w_kq[:d, :d] = np.sum(a * slope), u * slope
  return Weights(w_pv, w_kq)


@dataclasses.dataclass(frozen=True)
class Training:
  """optimizer: "gd" or "adam". batch: prompts of a step; 0: the population gradient.

  learning_rate: gradient descent keeps the norms of both matrices equal only in small steps; with
  steps near the limit of stability the product is right and its split is not.
  """

  steps: int
  learning_rate: float
  optimizer: str = "gd"
  batch: int = 0
  scale: float = 0.3
  spread: float = 0.0


def train(how: Training, cov, num_examples: int, rng: np.random.Generator, points: int = 40):
  """(weights, curve of the distance to the optimum by step). The rate decays by a cosine to 0."""
  weights = initial(len(cov), how.scale, rng)
  goal = optimum(cov, num_examples)
  mean = [np.zeros_like(w) for w in weights]
  square = [np.zeros_like(w) for w in weights]
  curve, every = [], max(1, how.steps // points)
  for step in range(how.steps):
    if how.batch:
      prompts = draw(rng, cov, how.batch, num_examples, spread=how.spread)
      _, grads = loss_and_gradient(weights, prompts)
    else:
      grads = population_step(weights, cov, num_examples)
    rate = how.learning_rate * 0.5 * (1 + np.cos(np.pi * step / how.steps))
    if how.optimizer == "adam":
      mean = [0.9 * m + 0.1 * g for m, g in zip(mean, grads)]
      square = [0.99 * v + 0.01 * g * g for v, g in zip(square, grads)]
      fix = (1 - 0.9 ** (step + 1), 1 - 0.99 ** (step + 1))
      grads = [(m / fix[0]) / (np.sqrt(v / fix[1]) + 1e-12) for m, v in zip(mean, square)]
    weights = Weights(*(w - rate * g for w, g in zip(weights, grads)))
    if (step + 1) % every == 0:
      curve.append(distance(weights, goal))
  return weights, curve


def distance(weights: Weights, goal: Weights) -> float:
  """||W - W*|| / ||W*|| over both matrices together."""
  norm = np.sqrt(sum(np.sum(g * g) for g in goal))
  return float(np.sqrt(sum(np.sum((w - g) ** 2) for w, g in zip(weights, goal))) / norm)


def product_distance(weights: Weights, cov, num_examples: int) -> float:
  """||u A - Gamma^-1|| / ||Gamma^-1||: what the prediction depends on, however it is split. Adam does
  not keep the norms equal, so only its product has a closed form."""
  d, want = len(cov), np.linalg.inv(gamma(cov, num_examples))
  product = weights.w_pv[d, d] * weights.w_kq[:d, :d].T
  return float(np.linalg.norm(product - want) / np.linalg.norm(want))


def least_squares(prompts: Prompts, ridge: float = 0.0) -> np.ndarray:
  """The prediction of (ridge) least squares on each prompt's examples, (B,)."""
  d = prompts.x.shape[-1]
  square = np.einsum("bnd,bne->bde", prompts.x, prompts.x) + ridge * np.eye(d)
  right = np.einsum("bnd,bn->bd", prompts.x, prompts.y)
  w = np.linalg.pinv(square) @ right[..., None]
  return np.einsum("bd,bd->b", prompts.query, w[..., 0])
