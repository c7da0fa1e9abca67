r"""Guidance of masked and block diffusion by a classifier.

Axes: B batch, C positions, V vocab.

  p'(x_i = v) ~ p(x_i = v | x_t) exp(g [log c(y | x_t with i := v) - log c(y | x_t)])

`exact` asks the classifier about every (i, v); `first_order` takes the inner product of its gradient at
the one-hot rows with the change, one backward pass: exact for a classifier that is linear in them
(CtrlDiff, arXiv 2505.14455; the first-order form as in discrete guidance by gradients).
"""

import jax
import jax.numpy as jnp


def first_order(log_c, x_BC, logits_BCV, strength: float):
  """Guided logits. log_c(onehot_BCV) -> (B,), differentiable."""
  onehot_BCV = jax.nn.one_hot(x_BC, logits_BCV.shape[-1])
  gradient_BCV = jax.grad(lambda x: jnp.sum(log_c(x)))(onehot_BCV)
  here_BC1 = jnp.sum(gradient_BCV * onehot_BCV, axis=-1, keepdims=True)
  return logits_BCV + strength * (gradient_BCV - here_BC1)


def exact(log_c, x_BC, logits_BCV, strength: float):
  """Guided logits, by C V evaluations of the classifier."""
  B, C, V = logits_BCV.shape
  onehot_BCV = jax.nn.one_hot(x_BC, V)
  now_B = log_c(onehot_BCV)

  def of(i, v):
    return log_c(onehot_BCV.at[:, i].set(jax.nn.one_hot(v, V)[None])) - now_B

  change = jax.vmap(lambda i: jax.vmap(lambda v: of(i, v))(jnp.arange(V)))(jnp.arange(C))
  return logits_BCV + strength * jnp.moveaxis(change, 2, 0)
