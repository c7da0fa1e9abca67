"""Models of two layers that were never on a disk, as `open_model` would return them."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.checkpoint.opening import Opened
from jaxlm.models import MODELS
from jaxlm.models.base import init

V, D, T = 11, 16, 12


def decoder(**fields):
  """A decoder's config. mixer: a mapping; the others by name."""
  mixer = fields.pop("mixer", dict(kind="attention", num_heads=2))
  base = dict(
    kind="decoder",
    vocab_size=V,
    d_model=D,
    num_layers=2,
    mixer=mixer,
    mlp=dict(d_ff=16),
    position=dict(kind="rope"),
    unroll=2,
  )
  return MODELS.build(base | fields)


@functools.lru_cache(maxsize=32)
def params_of(cfg, spread: float = 0.2):
  """Parameters that are far from the initial ones, so that nothing is nearly uniform."""
  params = nn.unbox(jax.jit(lambda: init(cfg, jax.random.key(0)))())
  return jax.tree.map(
    lambda p: p + spread * jax.random.normal(jax.random.key(p.size), p.shape), params
  )


def opened(cfg=None, **fields) -> Opened:
  cfg = decoder(**fields) if cfg is None else cfg
  return Opened(cfg, params_of(cfg), folder="")


def tokens(rows=2, length=T, seed=0):
  return np.random.default_rng(seed).integers(0, V, (rows, length)).astype(np.int32)


def logits(model, batch):
  return jax.jit(lambda p, t: model.config.build().apply({"params": p}, t))(
    model.params, jnp.asarray(batch)
  )
