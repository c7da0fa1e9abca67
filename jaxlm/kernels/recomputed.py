"""Elementwise work that a CPU computes again for the backward pass instead of keeping it."""

import functools

import jax

from jaxlm.kernels.platform import target_platform


def recomputed_on_cpu(fn=None, *, static_argnums: tuple[int, ...] = ()):
  """fn with the same values and gradients; traced for a CPU it keeps its arguments alone for the
  backward pass, and for any other platform it is fn itself.

  In a loop over layers a CPU writes all that is kept into arrays of all layers, and reads it back
  from there: for the intermediate values of a norm or an activation that takes longer than to
  compute them again. A product keeps its arguments as they are given, before they are reshaped, so
  that several products of one array keep it once.
  """
  if fn is None:
    return functools.partial(recomputed_on_cpu, static_argnums=static_argnums)
  # Forward and backward are separate loops, so nothing could be merged across the barrier.
  again = jax.checkpoint(fn, prevent_cse=False, static_argnums=static_argnums)

  @functools.wraps(fn)
  def call(*args):
    return again(*args) if target_platform() == "cpu" else fn(*args)

  return call
