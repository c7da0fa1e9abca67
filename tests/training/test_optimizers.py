"""Which parameters decay, at which rate each learns, and that directions are Optax's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlm.config import ConfigError
from jaxlm.parallel.rules import Axes
from jaxlm.parameter import matrix
from jaxlm.training.optimizers import SGD, AdamW, Lion, Muon

AXES = {
  "embed": {"embedding": Axes(("vocab", "embed"))},
  "blocks": {
    "norm": {"scale": Axes(("layers", "embed"))},
    "mixer": {
      "w_q": Axes(("layers", "embed", "heads", "head_dim")),
      "b_q": Axes(("layers", "heads", "head_dim")),
      "w_o": Axes(("layers", "heads", "head_dim", "embed")),
      "freq_kernel": Axes(("layers", "embed", "kv_heads")),
      "freq_bias": Axes(("layers", "kv_heads")),
    },
  },
}
SIZES = {"vocab": 12, "embed": 8, "heads": 2, "head_dim": 4, "kv_heads": 2, "layers": 3}


def params(seed=0):
  leaves, treedef = jax.tree.flatten(AXES)
  rng = np.random.default_rng(seed)
  return jax.tree.unflatten(
    treedef,
    [jnp.asarray(rng.normal(size=[SIZES[a] for a in axes]), jnp.float32) for axes in leaves],
  )


def test_matrices_decay_and_vectors_with_extra_dimensions_do_not():
  decays = AdamW(learning_rate=1.0, weight_decay=0.1).weight_decays(AXES)
  assert (
    decays["embed"]["embedding"]
    == decays["blocks"]["mixer"]["w_q"]
    == decays["blocks"]["mixer"]["freq_kernel"]
    == 0.1
  )
  assert (
    decays["blocks"]["norm"]["scale"]
    == decays["blocks"]["mixer"]["b_q"]
    == decays["blocks"]["mixer"]["freq_bias"]
    == 0
  )


def test_the_decay_mask_is_a_choice_and_a_declaration_may_spare_a_matrix():
  def of(axes=AXES, **kwargs):
    return AdamW(learning_rate=1.0, weight_decay=0.1, **kwargs).weight_decays(axes)

  assert set(jax.tree.leaves(of(decay="all"))) == {0.1}
  assert set(jax.tree.leaves(of(decay="none"))) == {0.0}
  names = ("embed", "kv_heads")
  assert of({"w": Axes(names, matrix(decays=False)), "v": Axes(names)}) == {"w": 0, "v": 0.1}
  overridden = of(decay_overrides=(("mixer/", 0.5), ("freq_", 0.0)))["blocks"]["mixer"]
  assert overridden["w_q"] == 0.5 and overridden["freq_kernel"] == 0  # the last match wins


@pytest.mark.parametrize("field", ["lr_multipliers", "decay_overrides"])
def test_a_pattern_that_matches_nothing_is_refused_with_the_names_there_are(field):
  with pytest.raises(
    ConfigError, match=rf"optimizer.{field}: 'freq_kernle' matches no parameter.*freq_kernel"
  ):
    AdamW(learning_rate=1.0, **{field: (("freq_kernle", 0.1),)}).build(AXES)


@pytest.mark.parametrize(
  "ours, theirs",
  [
    (
      AdamW(learning_rate=0.1, weight_decay=0.1, decay="all"),
      optax.adamw(0.1, 0.9, 0.95, 1e-8, weight_decay=0.1),
    ),
    (
      Lion(learning_rate=0.1, weight_decay=0.1, decay="all"),
      optax.lion(0.1, 0.9, 0.99, weight_decay=0.1),
    ),
    (SGD(learning_rate=0.1, momentum=0.9), optax.sgd(0.1, 0.9)),
  ],
  ids=["adamw", "lion", "sgd"],
)
def test_three_updates_are_those_of_optax(ours, theirs):
  tx = ours.build(AXES)
  p, q = params(), params()
  state, their_state = tx.init(p), theirs.init(q)
  for seed in (1, 2, 3):
    updates, state = tx.update(params(seed), state, p, learning_rate=0.1)
    p = optax.apply_updates(p, updates)
    updates, their_state = theirs.update(params(seed), their_state, q)
    q = optax.apply_updates(q, updates)
  # Three float32 updates of size 0.1; the order of the scalings differs.
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), p, q)


def test_a_multiplier_scales_the_whole_update_of_its_parameters_only():
  plain = AdamW(learning_rate=1.0, weight_decay=0.1).build(AXES)
  scaled = AdamW(
    learning_rate=1.0, weight_decay=0.1, lr_multipliers=(("freq_kernel$", 0.25),)
  ).build(AXES)
  one = plain.update(params(1), plain.init(params()), params(), learning_rate=0.1)[0]["blocks"][
    "mixer"
  ]
  two = scaled.update(params(1), scaled.init(params()), params(), learning_rate=0.1)[0]["blocks"][
    "mixer"
  ]
  np.testing.assert_allclose(two["freq_kernel"], 0.25 * one["freq_kernel"], rtol=1e-6)
  np.testing.assert_array_equal(two["w_q"], one["w_q"])


def test_muon_orthogonalises_each_layer_over_the_axes_that_face_each_other():
  def with_spectrum(
    name, x
  ):  # singular values from 0.3 to 3 in the matrix view that the test expects
    layers, rows = x.shape[0], x.shape[1] if name == "w_q" else x.shape[1] * x.shape[2]
    u, _, v = np.linalg.svd(np.asarray(x).reshape(layers, rows, -1), full_matrices=False)
    return jnp.asarray((u * np.geomspace(3, 0.3, u.shape[-1])) @ v, jnp.float32).reshape(x.shape)

  tx, grads = Muon(learning_rate=1.0, consistent_rms=None, momentum=0.0).build(AXES), params(1)
  mixer = grads["blocks"]["mixer"]
  grads["blocks"]["mixer"] = mixer | {
    name: with_spectrum(name, mixer[name]) for name in ("w_q", "w_o")
  }
  updates, _ = tx.update(grads, tx.init(params()), params(), learning_rate=1.0)
  for name, rows in (("w_q", SIZES["embed"]), ("w_o", SIZES["heads"] * SIZES["head_dim"])):
    for layer in updates["blocks"]["mixer"][name]:
      values = np.linalg.svd(layer.reshape(rows, -1), compute_uv=False)
      # Five Newton-Schulz iterations bring singular values between 0.7 and 1.2 (Jordan et al.
      # 2024).
      assert 0.65 < values.min() and values.max() < 1.25, (name, values)
  # The embedding is Adam's: with Nesterov momentum the first step is the sign of the gradient times
  # (b1 / (1 - b1^2) (1 - b1) + 1).
  np.testing.assert_allclose(
    np.abs(updates["embed"]["embedding"]), 0.9 * 0.1 / (1 - 0.81) + 1, rtol=1e-4
  )
