"""Gated linear attention and the delta rules: chunked form against the token-by-token definition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.kernels.delta_rule import delta_rule
from jaxlm.kernels.gla import gla

B, N, H, E = 2, 2, 6, 5
SEGMENTS = jnp.array([[1] * 5 + [2] * 30 + [3] * 8 + [0] * 2, [1] * 32 + [2] * 13])


def call(kind, implementation, a, segments=None):
  more = dict(initial_state_BNHE=a["state"], segment_ids_BT=segments, implementation=implementation)
  if kind == "gla":
    return gla(a["q"], a["k"], a["v"], a["decay"], chunk=32, **more)
  return delta_rule(
    a["q"],
    a["k"],
    a["v"],
    a["beta"],
    a["decay"][..., 0] if kind == "gated" else None,
    chunk=16,
    **more,
  )


def inputs(length, strongest_decay=0.5, seed=0):
  keys = iter(jax.random.split(jax.random.key(seed), 6))

  def unit(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

  def normal(*shape):
    return jax.random.normal(next(keys), shape)

  return dict(
    q=unit(normal(B, length, N, H)),
    k=unit(normal(B, length, N, H)),
    v=normal(B, length, N, E),
    beta=jax.nn.sigmoid(normal(B, length, N)),
    state=normal(B, N, H, E),
    decay=-strongest_decay * jax.random.uniform(next(keys), (B, length, N, H)),
  )


@functools.partial(jax.jit, static_argnums=(0, 1))
def run(kind, implementation, a, segments, ct):
  out, vjp = jax.vjp(lambda a: call(kind, implementation, a, segments), a)
  return out, vjp(ct)


def close(got, want, tolerance):
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, atol=tolerance * float(np.abs(b).max()) + 1e-7, rtol=0)


@pytest.mark.parametrize("kind", ["gla", "delta", "gated"])
@pytest.mark.parametrize("segments", [None, SEGMENTS])
def test_chunks_match_the_definition_with_gradients(kind, segments):
  a = inputs(45)
  ct = (
    jax.random.normal(jax.random.key(7), (B, 45, N, E)),
    jax.random.normal(jax.random.key(8), (B, N, H, E)),
  )
  got, want = run(kind, "xla", a, segments, ct), run(kind, "reference", a, segments, ct)
  close(got[0], want[0], 1e-5)
  close(got[1], want[1], 5e-5)


@pytest.mark.parametrize("kind", ["gla", "gated"])
def test_decays_down_to_e_minus_40_are_exact(kind):
  a = inputs(45, strongest_decay=40.0)
  ct = (jnp.ones((B, 45, N, E)), jnp.ones((B, N, H, E)))
  got, want = run(kind, "xla", a, None, ct), run(kind, "reference", a, None, ct)
  close(got, want, 1e-5)
  assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(got))


@pytest.mark.parametrize("kind", ["gla", "delta"])
def test_a_sequence_cut_anywhere_continues_from_its_state(kind):
  a = inputs(45)

  def part(start, stop):
    return {n: x if n == "state" else x[:, start:stop] for n, x in a.items()}

  whole, final = call(kind, "xla", a)
  for split in (1, 32):
    first, state = call(kind, "xla", part(0, split))
    second, end = call(kind, "xla", part(split, 45) | {"state": state})
    close((jnp.concatenate([first, second], 1), end), (whole, final), 1e-5)


def test_repeated_keys_do_not_break_the_triangular_solve():
  """Equal keys and beta = 1: powers of the triangle reach 1e9 in a chunk of 32, substitution does
  not care.
  """
  a = inputs(32)
  a |= dict(k=jnp.broadcast_to(a["k"][:, :1], a["k"].shape), beta=jnp.ones_like(a["beta"]))
  got, want = (
    delta_rule(a["q"], a["k"], a["v"], a["beta"], chunk=32, implementation=i)
    for i in ("xla", "reference")
  )
  close(got, want, 1e-5)


def test_a_segment_does_not_see_the_one_before():
  a = inputs(45)
  for kind in ("gla", "gated"):
    other = a | {"v": a["v"].at[0, 3].add(1.0)}  # in segment 1 of row 0
    change = jnp.abs(call(kind, "xla", a, SEGMENTS)[0] - call(kind, "xla", other, SEGMENTS)[0])[
      0
    ].max((1, 2))
    assert (change[3:5] > 0).all() and not change[5:].any()


def test_wrong_calls_say_what_to_change():
  a = inputs(8)
  with pytest.raises(ValueError, match="use 32"):
    gla(a["q"], a["k"], a["v"], a["decay"], chunk=20)
  with pytest.raises(ValueError, match="log_decay"):
    gla(a["q"], a["k"], a["v"], a["decay"][..., :1])
  with pytest.raises(NotImplementedError, match="the kernel needs a TPU"):
    delta_rule(a["q"], a["k"], a["v"], a["beta"], implementation="pallas")
  with pytest.raises(NotImplementedError, match="'triton'; it has reference, xla, pallas"):
    gla(a["q"], a["k"], a["v"], a["decay"], implementation="triton")
  with pytest.raises(ValueError, match="initial state"):
    delta_rule(a["q"], a["k"], a["v"], a["beta"], initial_state_BNHE=a["state"][:1])
