"""The TPU kernels of gla and of the delta rules, interpreted: outputs, states and gradients against
the recurrence in float64.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interpreter import every_detector
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from pallas_recurrence import assert_close, compiled_once, in_float64, with_gradients

from jaxlm.kernels import pallas_support
from jaxlm.kernels.delta_rule import blocks as delta_blocks
from jaxlm.kernels.delta_rule import delta_rule
from jaxlm.kernels.gla import blocks as gla_blocks
from jaxlm.kernels.gla import gla

B, N, H, E, Q = 2, 2, 16, 32, 4
KINDS = ("gla", "delta", "gated")
__all__ = ["compiled_once"]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
  for blocks in (gla_blocks, delta_blocks):
    monkeypatch.setitem(blocks.BLOCKS, "", blocks.Blocks(chunk=Q, channels=N * E))


def definition(kind, q, k, v, state, decay, beta=None, ids=None):
  """One token after the other; decay: of gla per channel, else per head."""
  decay = decay if kind == "gla" else decay[..., None]
  if kind == "delta":
    decay = jnp.zeros_like(decay)

  def step(carry, token):
    s, last = carry
    q, k, v, a, b, id = token
    s = s * (id == last)[:, None, None, None] * jnp.exp(a)[..., None]
    u = v if kind == "gla" else b[..., None] * (v - jnp.einsum("bnhe,bnh->bne", s, k))
    s = s + k[..., None] * u[:, :, None]
    return (s, id), jnp.einsum("bnh,bnhe->bne", q, s) * H**-0.5

  beta = jnp.ones(v.shape[:3]) if beta is None else beta
  tokens = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (q, k, v, decay, beta, ids))
  (s, _), o = jax.lax.scan(step, (state, ids[:, 0]), tokens)
  return jnp.moveaxis(o, 0, 1), s


def inputs(kind, T, dtype=np.float32, strongest_decay=0.5, seed=0):
  r = np.random.default_rng(seed)

  def n(*s):
    return r.standard_normal(s).astype(np.float32)

  def unit(x):
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(dtype)

  of_decay = (B, T, N, H) if kind == "gla" else (B, T, N)
  more = {} if kind == "gla" else dict(beta=r.uniform(0, 1, (B, T, N)).astype(np.float32))
  return more | dict(
    q=unit(n(B, T, N, H)),
    k=unit(n(B, T, N, H)),
    v=n(B, T, N, E).astype(dtype),
    state=n(B, N, H, E),
    decay=(-strongest_decay * r.uniform(0, 1, of_decay)).astype(np.float32),
  )


def by_kernel(kind, q, k, v, state, decay, beta=None, ids=None, **options):
  options |= dict(initial_state_BNHE=state, segment_ids_BT=ids, implementation="pallas")
  if kind == "gla":
    return gla(q, k, v, decay, **options)
  return delta_rule(q, k, v, beta, decay if kind == "gated" else None, **options)


def cotangents(arguments, seed=1):
  r = np.random.default_rng(seed)
  return tuple(r.standard_normal(arguments[k].shape).astype(np.float32) for k in ("v", "state"))


def both(kind, arguments, ids=None, **options):
  g = cotangents(arguments)
  given = None if ids is None else jnp.asarray(ids)
  got = with_gradients(functools.partial(by_kernel, kind, ids=given, **options), arguments, g)
  ids = np.ones(arguments["q"].shape[:2], np.int32) if ids is None else np.asarray(ids)
  want = in_float64(functools.partial(definition, kind, ids=ids), arguments, g)
  if kind == "delta":  # the kernel has no decay to differentiate
    del want[1]["decay"], got[1]["decay"]
  return got, want


# Float32: sums of some 50 products of size 1 at most, through 9 states and a 4 x 4 inverse whose
# entries are at most 1; each rounded to 2^-24. Measured 1e-6.
FLOAT32 = 1e-5


@pytest.mark.parametrize(
  "T", [Q + 1, *(pytest.param(T, marks=pytest.mark.slow) for T in (1, Q - 1, 2 * Q))]
)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("compiled_once")
def test_the_kernels_are_the_recurrence_with_its_gradients(kind, T):
  ids = np.asarray([[1] * 2 + [2] + [0] * 2 * Q, [3] * 3 * Q], object)
  ids = np.asarray([row[:T] for row in ids], np.int32)
  assert_close(*both(kind, inputs(kind, T), ids), FLOAT32)


@pytest.mark.parametrize("strongest", [40.0, 5000.0])
@pytest.mark.parametrize("kind", ["gla", "gated"])
@pytest.mark.usefixtures("compiled_once")
def test_extreme_decays_cost_no_digit(kind, strongest):
  arguments = inputs(kind, Q + 1, strongest_decay=strongest)
  arguments["decay"][:, ::2] *= 1e-5  # every second token hardly forgets
  assert_close(*both(kind, arguments), 2e-5)


@pytest.mark.usefixtures("compiled_once")
def test_repeated_keys_do_not_break_the_inverse():
  arguments = inputs("delta", Q + 1)
  arguments["k"] = np.broadcast_to(arguments["k"][:, :1], arguments["k"].shape)
  arguments["beta"] = np.ones_like(arguments["beta"])
  assert_close(*both("delta", arguments), FLOAT32)


@pytest.mark.slow
def test_an_inverse_of_a_whole_chunk_of_repeated_keys_is_exact():
  """Powers of this triangle reach 1e37; its inverse has ones and minus ones."""
  from jaxlm.kernels.delta_rule.pallas_tpu import inverses

  link = np.tril(np.ones((128, 128), np.float32), -1)
  want = np.linalg.inv(np.eye(128) + link)
  np.testing.assert_allclose(inverses([jnp.asarray(link)])[0], want, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gla", "gated"])
@pytest.mark.usefixtures("compiled_once")
def test_bfloat16_products_are_near_the_float64_recurrence(kind):
  arguments = inputs(kind, Q + 1, jnp.bfloat16)
  got, want = both(kind, arguments)
  assert got[0][0].dtype == got[1]["q"].dtype == jnp.bfloat16
  assert got[0][1].dtype == jnp.float32
  # Every operand of a product is rounded to 2^-9, results once more, and there are up to 5 products
  # in a row; sums of tens of terms of both signs.
  assert_close(got, want, 3e-2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_mesh_rows_and_heads_are_shared(kind):
  arguments = inputs(kind, Q + 1)
  mesh = jax.make_mesh((2, 2, 2), ("data", "tensor", "idle"), axis_types=(AxisType.Auto,) * 3)
  fn = functools.partial(by_kernel, kind, spec=P("data", None, "tensor", None))
  with jax.set_mesh(mesh), pallas_support.interpreted():
    got = jax.jit(lambda a, g: with_gradients(fn, a, g))(arguments, cotangents(arguments))
  ids = np.ones((B, Q + 1), np.int32)
  want = in_float64(functools.partial(definition, kind, ids=ids), arguments, cotangents(arguments))
  if kind == "delta":
    del want[1]["decay"], got[1]["decay"]
  assert_close(got, want, FLOAT32)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gla", "gated"])
def test_two_cores_neither_race_nor_read_what_is_not_there(kind, monkeypatch):
  for blocks in (gla_blocks, delta_blocks):
    monkeypatch.setitem(blocks.BLOCKS, "", blocks.Blocks(chunk=2, channels=E))
  monkeypatch.setattr("jaxlm.kernels.chunked_recurrence.LANES", 16)  # a block of each head
  with every_detector():
    got, want = both(kind, inputs(kind, 3))
    jax.block_until_ready(got)
  assert_close(got, want, FLOAT32)


def test_what_is_not_supported_is_refused_with_the_reason():
  arguments = inputs("gla", 4)
  with pytest.raises(NotImplementedError, match="trace is for cpu and the kernel needs a TPU"):
    by_kernel("gla", **arguments)
  with pallas_support.interpreted():
    with pytest.raises(NotImplementedError, match="value width 5 is not a multiple of 16"):
      wrong = arguments | dict(v=arguments["v"][..., :5], state=arguments["state"][..., :5])
      by_kernel("gla", **wrong)
    with pytest.raises(NotImplementedError, match="need [0-9]* MiB on chip"):
      zeros = dict(
        q=(1, 1, 1, 2**11), k=(1, 1, 1, 2**11), v=(1, 1, 1, 2**11), state=(1, 1, 2**11, 2**11)
      )
      by_kernel("gla", **{k: jnp.zeros(s) for k, s in zeros.items()}, decay=jnp.zeros(zeros["q"]))
    with jax.set_mesh(jax.make_mesh((8,), ("tensor",), axis_types=(AxisType.Auto,))):
      with pytest.raises(NotImplementedError, match="mesh of 8 devices it needs spec"):
        by_kernel("gla", **arguments)
      with pytest.raises(NotImplementedError, match="heads 2 cannot be split over the 8 devices"):
        by_kernel("gla", **arguments, spec=P(None, None, "tensor"))
