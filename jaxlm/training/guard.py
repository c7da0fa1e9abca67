"""What the train step looks at before it accepts an update: are the numbers that it would make
sane, is its loss a spike?

Called inside the compiled step. The checks read what the update computes anyway, so that the
compiler evaluates both together; bench/RESULTS.md has the cost.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.parallel.rules import path_name

#: A parameter above it has a square that float32 cannot hold: no norm of it could be computed any
#: more.
LARGEST = 1e18


class Watched(NamedTuple):
  """An optimiser's state with what tells a spike.

  Checkpoints of runs that do not ask for it have the former alone.
  """

  optimizer: Any
  losses: jax.Array  # (W,) float32: losses of the last updates, newest last; NaN: none yet


def watched(opt_state, window: int) -> Watched:
  return Watched(opt_state, jnp.full((window,), jnp.nan, jnp.float32))


def all_sane(params, others) -> jax.Array:
  """(): bool, whether every parameter is at most LARGEST in size and every float of `others` is
  finite.

  A parameter and its moments, which the update computes together, are looked at together: one
  reduction for all three.
  """
  sane = {
    path_name(path): jnp.abs(p) <= LARGEST for path, p in jax.tree.leaves_with_path(params)
  }  # false for NaN
  alone = []
  for path, x in jax.tree.leaves_with_path(others):
    if not jnp.issubdtype(x.dtype, jnp.floating):
      continue
    keys = path_name(path).split("/")
    names = ("/".join(keys[start:]) for start in range(len(keys)))
    name = next((name for name in names if name in sane and sane[name].shape == x.shape), None)
    if name is None:
      alone.append(jnp.isfinite(x))
    else:
      sane[name] &= jnp.isfinite(x)
  return jnp.stack([jnp.all(x) for x in (*sane.values(), *alone)]).all()


def is_spike(loss, losses_W, factor: float) -> jax.Array:
  """(): bool, loss > factor * median(losses), of a positive median.

  False while the window, NaN at first, is not full.
  """
  median = jnp.median(losses_W)
  return (median > 0) & (loss > factor * median)


def append_loss(losses_W, loss) -> jax.Array:
  """(W,): the window with the oldest loss dropped and this one at its end."""
  return jnp.concatenate([losses_W[1:], loss[None].astype(losses_W.dtype)])
