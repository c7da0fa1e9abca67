"""Attention with other similarities and normalisers: against loops over queries and keys, forward
and gradient, in every form.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.kernels.attention import (
  KeyBias,
  Kind,
  as_distribution,
  attention,
  similarity_attention,
  similarity_weights,
)
from jaxlm.kernels.attention.similarity import SIMILARITIES, features

KINDS = [Kind()] + [
  Kind(f, z, -1.5)
  for f, z in (
    ("sigmoid", "none"),
    ("sigmoid", "sum"),
    ("elu1", "none"),
    ("elu1", "sum"),
    ("elu1", "count"),
    ("relu", "count"),
    ("identity", "abs"),
    ("taylor", "sum"),
  )
]
ids = dict(ids=lambda kind: f"{kind.similarity}-{kind.normaliser}")


def drawn(T=7, N=4, K=2, H=3):
  q, k, v, sk, sv = (
    jax.random.normal(jax.random.key(i), shape)
    for i, shape in enumerate([(2, T, N, H), (2, T, K, H), (2, T, K, H), (K, H), (K, H)])
  )
  return q, k, v, sk, sv


NUMPY = {
  "exp": np.exp,
  "sigmoid": lambda s: 1 / (1 + np.exp(-s)),
  "elu1": lambda s: s + 1 if s > 0 else np.exp(s),
  "relu": lambda s: max(s, 0.0),
  "identity": lambda s: s,
  "taylor": lambda s: 1 + s + s**2 / 2,
}


def by_loops(q, k, v, slot_k, slot_v, kind, window):
  """The docstring's equation in float64, one pair at a time."""
  f, (B, T, N, H) = NUMPY[kind.similarity], q.shape
  group, out = N // k.shape[2], np.zeros(q.shape)
  for b, i, n in np.ndindex(B, T, N):
    K = n // group
    seen = range(max(0, i - window + 1), i + 1)
    keys, values = [*k[b, seen, K], slot_k[K]], [*v[b, seen, K], slot_v[K]]
    p = [f(q[b, i, n] @ key / H**0.5 + kind.shift) for key in keys]
    z = {"sum": sum(p), "none": 1, "count": len(p), "abs": max(abs(sum(p)), 1)}[kind.normaliser]
    out[b, i, n] = sum(x * value for x, value in zip(p, values)) / z
  return out


@pytest.mark.parametrize("kind", KINDS, **ids)
def test_it_is_the_equation_pair_by_pair_with_gradients(kind):
  """The gradient along a random direction is the difference quotient of the loops."""
  args = [np.asarray(x, np.float64) for x in drawn(T=5, N=2, K=1)]
  rng = np.random.default_rng(0)
  weight, step = rng.standard_normal(args[0].shape), 1e-5
  along = [rng.standard_normal(x.shape) for x in args]
  want = by_loops(*args, kind, 4)
  moved = [
    by_loops(*[x + sign * step * d for x, d in zip(args, along)], kind, 4) for sign in (1, -1)
  ]
  slope = np.sum((moved[0] - moved[1]) * weight) / (2 * step)
  for implementation in ("reference", "xla"):

    def ours(q, k, v, slot_k, slot_v, implementation=implementation):
      slot = dict(slot_k_KH=slot_k, slot_v_KF=slot_v)
      out = similarity_attention(
        q, k, v, kind=kind, window=4, block=2, implementation=implementation, **slot
      )
      return jnp.sum(out * weight), out

    tangent = ([jnp.asarray(x, jnp.float32) for x in args],) + (
      [jnp.asarray(x, jnp.float32) for x in along],
    )
    (_, got), grads = jax.jit(jax.value_and_grad(ours, argnums=range(5), has_aux=True))(*tangent[0])
    np.testing.assert_allclose(got, want, atol=2e-5)
    found = sum(float(jnp.sum(g * d)) for g, d in zip(grads, tangent[1]))
    np.testing.assert_allclose(found, slope, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("similarity", ["sigmoid", "elu1"])
@pytest.mark.parametrize("slot", [False, True])
def test_scores_far_below_zero_divided_by_their_sum_are_softmax_with_finite_gradients(
  similarity, slot
):
  """sigmoid(s) = e^s (1 - e^s + ...) and elu(s) + 1 = e^s: at -200 both are softmax, whose sum float32
  does not hold. The last query sees no key.
  """
  q, k, v, slot_k, slot_v = drawn()
  segments = jnp.asarray([[1] * 4 + [2] * 3, [1] * 6 + [0]])

  def run(kind):
    def loss(q, k, v, slot_k, slot_v):
      with_slot = dict(slot_k_KH=slot_k, slot_v_KF=slot_v) if slot else {}
      out = similarity_attention(q, k, v, kind=kind, q_segment_ids_BT=segments, **with_slot)
      return jnp.sum(jnp.sin(out)), out

    return jax.value_and_grad(loss, range(5), has_aux=True)(q, k, v, slot_k, slot_v)

  got, want = run(Kind(similarity, "sum", -200.0)), run(Kind())
  for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
    assert np.isfinite(g).all()
    # Near -200 a float32 is rounded to 8e-6, hence e^s by as much of itself.
    np.testing.assert_allclose(g, w, atol=1e-4)


def test_the_slope_of_elu_plus_one_at_zero_is_one():
  assert jax.grad(SIMILARITIES["elu1"])(0.0) == 1


def test_exp_over_the_sum_is_softmax_attention_with_every_rule():
  q, k, v, *_ = drawn()
  segments = jnp.asarray([[1] * 4 + [2] * 3, [1] * 6 + [0]])
  bias = KeyBias(None, jax.random.normal(jax.random.key(5), (2, 7, 4)))
  for rule in (
    dict(softmax1=True, softcap=2.0),
    dict(q_segment_ids_BT=segments, bias=bias),
    dict(causal=False, window=2),
  ):
    for implementation in ("reference", "xla"):
      got = similarity_attention(
        q, k, v, kind=Kind(), implementation=implementation, block=3, **rule
      )
      np.testing.assert_allclose(got, attention(q, k, v, **rule), atol=1e-5)


@pytest.mark.parametrize("normaliser", ["sum", "none", "count", "abs"])
@pytest.mark.parametrize("similarity", ["taylor", "identity"])
def test_the_recurrence_in_linear_time_is_the_quadratic_form(similarity, normaliser):
  q, k, v, *_ = drawn()
  kind = Kind(similarity, normaliser)
  if similarity == "identity" and normaliser == "sum":  # a sum near zero amplifies rounding
    q, k = jnp.abs(q), jnp.abs(k)

  def run(impl):
    return jax.vjp(lambda *a: similarity_attention(*a, kind=kind, implementation=impl), q, k, v)

  (want, back), (got, own_back) = run("reference"), run("recurrent")
  np.testing.assert_allclose(got, want, atol=2e-5)
  for a, b in zip(own_back(want), back(want)):
    np.testing.assert_allclose(a, b, atol=2e-4)


def test_taylor_features_multiply_to_the_second_order_series_of_exp():
  x, y = jax.random.normal(jax.random.key(0), (2, 5))
  s = jnp.dot(x, y)
  product = jnp.dot(features(x, "taylor"), features(y, "taylor"))
  np.testing.assert_allclose(product, 1 + s + s**2 / 2, rtol=1e-5)


def test_a_slot_with_a_large_key_takes_the_weight_and_a_distribution_sums_to_one():
  q, k, _, slot_k, _ = drawn()
  kind = Kind("sigmoid", "none")
  found = similarity_weights(q, k, kind=kind, slot_k_KH=slot_k)
  share = as_distribution(found)
  np.testing.assert_allclose(share.p_BNTS.sum(-1) + share.slot_BNT, 1.0, atol=1e-5)
  q = jnp.ones_like(q)
  heavy = similarity_weights(q, k, kind=Kind(), slot_k_KH=jnp.full_like(slot_k, 20.0))
  assert float(heavy.slot_BNT.min()) > 0.99


def test_what_does_not_fit_is_refused_in_a_sentence():
  q, k, v, slot_k, _ = drawn()
  with pytest.raises(ValueError, match="overflows"):
    Kind("exp", "none")
  with pytest.raises(ValueError, match="known: exp, sigmoid"):
    Kind("cosine", "sum")
  with pytest.raises(NotImplementedError, match="no product of finitely many"):
    similarity_attention(q, k, v, kind=Kind("sigmoid"), implementation="recurrent")
  with pytest.raises(NotImplementedError, match="no slot"):
    similarity_attention(q, k, v, kind=Kind("taylor"), slot_k_KH=slot_k, implementation="recurrent")
