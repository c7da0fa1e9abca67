"""The joint insertion loss against enumeration, with its gradient; its partition never leaves out
or adds a slot.
"""

import itertools
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config import ConfigError
from jaxlm.objectives.insertion import Insertion, joint_nll, open_slots, stop_nll
from jaxlm.training.config import check, load_config, run_config

B, T, V = 3, 4, 3


def enumerated(z_TV, open_T, pairs):
  """-mean log p of the pairs, every (slot, token) of the open slots written out."""
  if not pairs:
    return 0.0
  total = sum(math.exp(z_TV[t, v]) for t, v in itertools.product(range(T), range(V)) if open_T[t])
  return -sum(math.log(math.exp(z_TV[t, v]) / total) for t, v in pairs) / len(pairs)


def cases():
  rng = np.random.default_rng(0)
  z_BTV = rng.normal(size=(B, T, V)).astype(np.float32)
  segments = np.asarray([[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0]], np.int32)
  pairs = [[(1, 2), (1, 2), (2, 0)], [(3, 1)], []]
  slots, missing = np.zeros((B, 3), np.int32), np.zeros((B, 3), np.int32)
  for b, row in enumerate(pairs):
    for m, (t, v) in enumerate(row):
      slots[b, m], missing[b, m] = t, v
  return z_BTV, segments, pairs, slots, missing, np.asarray([len(p) for p in pairs])


def loss(z_BTV, segments, slots, missing, n_B):
  target_BM = z_BTV[jnp.arange(B)[:, None], slots, missing]
  return joint_nll(
    jax.nn.logsumexp(z_BTV, axis=-1), open_slots(jnp.asarray(segments)), target_BM, jnp.asarray(n_B)
  )


def test_the_loss_is_the_enumerated_one():
  z_BTV, segments, pairs, slots, missing, n_B = cases()
  want = [enumerated(z_BTV[b], (segments[b] != 0) & (np.arange(T) > 0), pairs[b]) for b in range(B)]
  np.testing.assert_allclose(
    loss(jnp.asarray(z_BTV), segments, slots, missing, n_B), want, rtol=1e-6
  )


def test_the_gradient_is_probability_minus_normalised_count_and_zero_elsewhere():
  z_BTV, segments, pairs, slots, missing, n_B = cases()
  grad = jax.grad(lambda z: jnp.sum(loss(z, segments, slots, missing, n_B)))(jnp.asarray(z_BTV))
  want = np.zeros_like(z_BTV)
  for b, row in enumerate(pairs):
    if row:
      open_T = (segments[b] != 0) & (np.arange(T) > 0)
      e_TV = np.exp(z_BTV[b]) * open_T[:, None]
      want[b] = e_TV / e_TV.sum()
      for t, v in row:
        want[b, t, v] -= 1 / len(row)
  np.testing.assert_allclose(grad, want, atol=1e-6)


def test_the_order_of_the_missing_tokens_means_nothing():
  z_BTV, segments, _, slots, missing, n_B = cases()
  order = [2, 0, 1]
  a = loss(jnp.asarray(z_BTV), segments, slots, missing, n_B)[0]
  b = loss(jnp.asarray(z_BTV), segments, slots[:, order], missing[:, order], n_B)[0]
  np.testing.assert_allclose(a, b, rtol=1e-6)


def test_class_zero_is_stop_and_the_weights_are_a_and_one_minus_a():
  stop_B2 = jnp.asarray([[2.0, -1.0], [2.0, -1.0]])
  p_stop = 1 / (1 + math.exp(-3.0))
  np.testing.assert_allclose(
    stop_nll(stop_B2, jnp.asarray([0, 4]), 0.9),
    [-0.9 * math.log(p_stop), -0.1 * math.log(1 - p_stop)],
    rtol=1e-5,
  )


def test_a_class_weight_outside_the_unit_interval_is_refused():
  with pytest.raises(ConfigError, match="stop_class_weight = 1.5"):
    Insertion(stop_class_weight=1.5)


def test_a_constraint_that_the_data_do_not_emit_is_refused_before_anything_is_built():
  wanted = {"objective.use_constraint": True}
  with pytest.raises(ConfigError, match="set data.constraint = True"):
    check(run_config(load_config("configs/ilm/star_easy.py", wanted)), 1)
  cfg = run_config(
    load_config("configs/ilm/star_easy.py", wanted | {"data.constraint": True, "data.rows": 64})
  )
  check(cfg, 1)
  batch = next(iter(cfg.data.build("train", seed=0)))
  flat = types.SimpleNamespace(
    log_z_BT=jnp.zeros(batch["tokens"].shape),
    target_BM=jnp.zeros(batch["slots"].shape),
    stop_B2=None,
  )
  model = types.SimpleNamespace(cfg=cfg.model, apply=lambda *args, **fields: flat)
  found = cfg.objective.loss(model, None, batch, None, None, train=True).metrics["token"]
  # A flat row partition: the log of the number of open slots, which are those with missing tokens.
  want = [
    math.log(len(set(slots[:n]))) if n else 0.0
    for slots, n in zip(batch["slots"], batch["num_missing"][:, 0])
  ]
  assert float(found.mean()) == pytest.approx(np.mean(want), rel=1e-5)
