"""Attention: by blocks against the definition, the definition against the golden arrays and brute force."""

import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.kernels.attention import BucketBias, CoPE, KeyBias, LinearBias, attention, relative_bucket, xla

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def inputs(B=2, T=20, S=None, N=4, K=2, H=8, F=None, dtype=jnp.float32, seed=0):
  S, F = S or T, F or H
  keys = iter(jax.random.split(jax.random.key(seed), 4))
  draw = lambda *shape: jax.random.normal(next(keys), shape).astype(dtype)
  return draw(B, T, N, H), draw(B, S, K, H), draw(B, S, K, F), draw(B, T, N, F)


def pull(fn, cotangent, *args):
  """Value and gradients of fn at args, jitted once."""
  @jax.jit
  def both(*args):
    value, vjp = jax.vjp(fn, *args)
    return value, vjp(cotangent)
  return both(*args)


def by_blocks(block):
  """`attention` with the blockwise form at a fixed block size."""
  return lambda monkeypatch: monkeypatch.setattr(xla.blocks, "query_block", lambda *_: block)


def close(got, want, atol):
  for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert g.dtype == w.dtype and g.shape == w.shape
    np.testing.assert_allclose(np.asarray(g, np.float32), np.asarray(w, np.float32), atol=atol, rtol=atol)


def make_bias(kind, B, T, S, N, H):
  keys = jax.random.split(jax.random.key(7), 3)
  running = lambda key, n: -jnp.cumsum(jax.random.uniform(key, (B, n, N)), axis=1)
  return {
      None: None,
      "linear": LinearBias(jnp.linspace(0.1, 0.9, N)),
      "key": KeyBias(running(keys[0], T), running(keys[1], S)),
      "key_only": KeyBias(None, running(keys[1], S)),
      "bucket": BucketBias(jax.random.normal(keys[0], (8, N)), False, 20),
      "bucket_both": BucketBias(jax.random.normal(keys[0], (8, N)), True, 20),
      "cope": CoPE(jax.random.normal(keys[2], (H, 5))),
      "sum": (BucketBias(jax.random.normal(keys[0], (8, N)), True, 20), KeyBias(None, running(keys[1], S))),
  }[kind]


CASES = {
    "causal": {},
    "window": dict(window=6),
    "full": dict(causal=False),
    "full_window": dict(causal=False, window=4),
    "softcap_scale": dict(softcap=3.0, scale=0.7),
    "softmax1": dict(softmax1=True),
    "linear": dict(bias="linear"),
    "key": dict(bias="key", causal=False),
    "key_only_softmax1": dict(bias="key_only", causal=False, softmax1=True),
    "bucket": dict(bias="bucket"),
    "bucket_window": dict(bias="bucket", window=5),
    "sum": dict(bias="sum", causal=False),
    "cope": dict(bias="cope"),
}


@pytest.mark.parametrize("block", [8])
@pytest.mark.parametrize("case", CASES)
def test_blocks_agree_with_the_definition_and_its_gradients(case, block, monkeypatch):
  by_blocks(block)(monkeypatch)
  options = dict(CASES[case])
  q, k, v, do = inputs()
  bias = make_bias(options.pop("bias", None), 2, 20, 20, 4, 8)
  segments = jnp.array([[1] * 7 + [2] * 9 + [0] * 4, [0] * 3 + [1] * 17], jnp.int32)
  for segment_ids in (None, segments):
    run = lambda impl: pull(lambda q, k, v, bias: attention(
        q, k, v, bias=bias, q_segment_ids_BT=segment_ids, implementation=impl, **options), do, q, k, v, bias)
    close(run("xla"), run("reference"), 2e-5)
