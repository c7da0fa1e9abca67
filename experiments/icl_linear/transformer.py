"""A softmax decoder that reads vectors: the same regressions, in a model of the library, through the
site `embed`.

Axes: B prompts, N examples, T = 2 N + 1 positions, D d_model.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.analysis.activations import edits, traced
from jaxlm.analysis.theory import linear_regression as lr
from jaxlm.layers.taps import Edit
from jaxlm.models import MODELS
from jaxlm.models.base import init


def model(d_model: int, num_layers: int, length: int):
  """The config. Its vocabulary is not read."""
  return MODELS.build(
    dict(
      kind="decoder",
      vocab_size=2,
      d_model=d_model,
      num_layers=num_layers,
      mixer=dict(kind="attention", num_heads=4),
      position=dict(kind="learned", max_len=length),
      unroll=num_layers,
    )
  )


def vectors(prompts: lr.Prompts) -> np.ndarray:
  """(B, 2 N + 1, d + 1): x_1, y_1, x_2, .., x_q, the x with a 0 behind, the y behind zeros."""
  B, N, d = prompts.x.shape
  out = np.zeros((B, 2 * N + 1, d + 1), np.float32)
  out[:, 0:-1:2, :d], out[:, 1::2, d], out[:, -1, :d] = prompts.x, prompts.y, prompts.query
  return out


def answers(prompts: lr.Prompts) -> np.ndarray:
  """(B, N + 1): what is to be predicted at the positions of x."""
  return np.concatenate([prompts.y, prompts.answer[:, None]], axis=1).astype(np.float32)


def train(
  cov, num_examples: int, *, steps: int, batch: int, d_model: int, num_layers: int, seed: int
):
  """A function from prompts of at most `num_examples` examples to predictions (B,)."""
  cfg, rng = model(d_model, num_layers, 2 * num_examples + 1), np.random.default_rng(seed)
  keys = jax.random.split(jax.random.key(seed), 3)
  params = {
    "model": nn.unbox(jax.jit(lambda: init(cfg, keys[0]))()),
    "w_in": jax.random.normal(keys[1], (len(cov) + 1, d_model)) * 0.3,
    "w_out": jax.random.normal(keys[2], (d_model,)) * d_model**-0.5,
  }

  def predict(params, x_BTE):
    changed = edits(cfg, {"embed": Edit(value=x_BTE @ params["w_in"])})
    batch = {"tokens": jnp.zeros(x_BTE.shape[:2], jnp.int32)}
    found = traced(cfg, params["model"], batch, ["final"], edits=changed)["final"]
    return (found @ params["w_out"])[:, ::2]

  optimizer = optax.adam(optax.cosine_decay_schedule(1e-3, steps))
  state = optimizer.init(params)

  @jax.jit
  def step(params, state, x, y):
    grads = jax.grad(lambda p: jnp.mean(jnp.square(predict(p, x) - y)))(params)
    updates, state = optimizer.update(grads, state)
    return optax.apply_updates(params, updates), state

  for _ in range(steps):
    prompts = lr.draw(rng, cov, batch, num_examples)
    params, state = step(params, state, vectors(prompts), answers(prompts))
  run = jax.jit(predict)
  return lambda prompts: np.asarray(run(params, vectors(prompts)))[:, -1].astype(np.float64)
