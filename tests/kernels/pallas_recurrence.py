"""What the tests of the chunked recurrences' TPU kernels share.

Interpreted kernels take seconds to compile and none to run. `compiled_once` compiles each of them
once per shape of whole chunks, whatever the test and its length.
"""

import functools

import jax
import numpy as np
import pytest

from jaxlm.kernels import chunked_recurrence, pallas_support

_forward = jax.jit(chunked_recurrence.forward, static_argnums=0, static_argnames="with_starts")
_backward = jax.jit(chunked_recurrence.backward, static_argnums=0)


@pytest.fixture
def compiled_once(monkeypatch):
  monkeypatch.setattr(chunked_recurrence, "forward", _forward)
  monkeypatch.setattr(chunked_recurrence, "backward", _backward)
  with pallas_support.interpreted():
    yield


def with_gradients(fn, arguments: dict, cotangents):
  """(outputs, gradients) of fn(**arguments), float32 on this machine. Not jitted."""
  out, vjp = jax.vjp(lambda a: fn(**a), arguments)
  return out, vjp(jax.tree.map(lambda g, y: g.astype(y.dtype), cotangents, out))[0]


@functools.partial(jax.jit, static_argnums=0)
def _definition(fn, arguments, cotangents):
  out, vjp = jax.vjp(lambda a: fn(**a), arguments)
  return out, vjp(cotangents)[0]


def in_float64(fn, arguments: dict, cotangents):
  """The same of a definition, in float64 throughout. Integers and booleans stay what they are."""

  def wide(x):
    x = np.asarray(x)
    return x if x.dtype.kind in "ib" else x.astype(np.float64)

  with jax.enable_x64(True):
    return jax.tree.map(
      np.asarray, _definition(fn, jax.tree.map(wide, arguments), jax.tree.map(wide, cotangents))
    )


def assert_close(got, want, tolerance):
  """Every element within tolerance times its array's largest value (or 1e-30)."""
  for (path, g), (_, w) in zip(*map(jax.tree_util.tree_leaves_with_path, (got, want)), strict=True):
    g = np.asarray(g, np.float64)
    assert np.isfinite(g).all(), jax.tree_util.keystr(path)
    np.testing.assert_allclose(
      g, w, rtol=0, atol=tolerance * np.abs(w).max() + 1e-30, err_msg=jax.tree_util.keystr(path)
    )
