"""ZeroTuning: a bias of the first key is the explicit re-weighting, and gamma 1 is the plain program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from jaxlm.analysis import Edit, edits, observe, record
from jaxlm.analysis import zero_tuning as zt
from jaxlm.config import ConfigError


def test_gamma_as_a_bias_equals_explicit_re_weighting_by_head():
  model, batch = small.opened(), small.tokens()
  gamma = np.array([[1.0, 1.0], [3.0, 0.25]])
  changed = edits(model.config, zt.first_key(model.config, gamma, small.T))
  found = record(
    model.config, model.params, {"tokens": batch}, ["attention", "heads", "v"], edits=changed
  )
  plain = observe(model, batch, "attention")["attention"]
  np.testing.assert_array_equal(found["attention"][0], plain[0])
  want = zt.reweighted(plain[1], gamma[1])
  np.testing.assert_allclose(found["attention"][1], want, atol=1e-6)
  # The fused path, which has no matrix, uses the same weights.
  heads = np.einsum("bnts,bsnh->btnh", want, np.asarray(found["v"][1], np.float64))
  np.testing.assert_allclose(found["heads"][1], heads, atol=2e-6)


def test_differences_of_other_weights_shrink_by_the_row_s_denominator():
  a = np.array([0.5, 0.3, 0.2])
  b = zt.reweighted(a[None, None, None], [2.0])[0, 0, 0]
  np.testing.assert_allclose(b, [1.0 / 1.5, 0.3 / 1.5, 0.2 / 1.5])
  np.testing.assert_allclose(b[1] - b[2], (a[1] - a[2]) / 1.5)


def test_gamma_one_is_bitwise_the_plain_program():
  model, batch = small.opened(), small.tokens()
  assert zt.first_key(model.config, 1.0, small.T) == {}
  np.testing.assert_array_equal(
    zt.logits(model, {"tokens": batch}, 1.0), small.logits(model, batch)
  )


def test_an_unnormalised_kernel_scales_its_first_weight():
  mixer = dict(kind="similarity_attention", num_heads=2, similarity="sigmoid", normaliser="none")
  model, batch = small.opened(mixer=mixer), small.tokens()
  changed = zt.first_key(model.config, np.array([[2.0, 1.0], [1.0, 1.0]]), small.T)
  assert list(changed) == [("blocks/mixer/attention", 0)]
  plain = observe(model, batch, "attention")["attention"][0]
  found = record(
    model.config, model.params, {"tokens": batch}, ["attention"], edits=edits(model.config, changed)
  )["attention"][0]
  np.testing.assert_allclose(found[:, 0, :, 0], 2 * plain[:, 0, :, 0], rtol=1e-6)
  np.testing.assert_array_equal(found[:, 1], plain[:, 1])


def test_entropy_accuracy_profile_and_search_by_hand():
  logits = np.log(np.array([[[0.5, 0.5], [0.9, 0.1]]]))
  weight = np.array([[1.0, 3.0]])
  want = (np.log(2) - 3 * (0.9 * np.log(0.9) + 0.1 * np.log(0.1))) / 4
  np.testing.assert_allclose(zt.output_entropy(logits, weight), want)
  assert zt.accuracy(logits, [[1, 0]], weight) == 0.75
  # Head (0, 1) wants its sink up, the others down.
  best = np.array([[0.5, 2.0], [0.5, 0.5]])
  worth = lambda gamma: -float(np.abs(np.log(gamma / best)).sum())  # noqa: E731
  np.testing.assert_array_equal(zt.profile(2, 2, worth), best > 1)
  assert zt.search((0.25, 0.5, 1.0), best < 1, lambda gamma: -worth(gamma)) == 0.5
  assert {k: v.tolist() for k, v in zt.layer_groups(3).items()}["middle"] == [False, True, False]


def test_wrong_gammas_and_models_are_refused_in_a_sentence():
  with pytest.raises(ConfigError, match="gamma = 0: wanted more than 0"):
    zt.first_key(small.decoder(), 0.0, 8)
  mixer = dict(kind="similarity_attention", num_heads=2, similarity="sigmoid")
  with pytest.raises(ConfigError, match="no bias of the scores"):
    zt.first_key(small.decoder(mixer=mixer), 2.0, 8)
  with pytest.raises(ConfigError, match="zero tuning reads the site 'key_bias'"):
    mamba = dict(kind="mamba2", d_state=4, head_dim=8)
    zt.first_key(small.decoder(mixer=mamba, mlp=None), 2.0, 8)


def test_an_edit_of_the_key_bias_reaches_a_windowed_and_a_grouped_attention():
  mixer = dict(kind="attention", num_heads=2, num_kv_heads=1, window=5)
  model, batch = small.opened(mixer=mixer), small.tokens()
  bias = jnp.zeros((small.T, 2)).at[3, 1].set(1.3)
  changed = edits(model.config, {("key_bias", 0): Edit(add=bias)})
  found = record(
    model.config, model.params, {"tokens": batch}, ["attention", "q", "k"], edits=changed
  )
  q, k = found["q"][0], found["k"][0]
  s = jnp.einsum("btnh,bsh->bnts", q, k[:, :, 0]) / 8**0.5 + bias.T[None, :, None]
  i, j = np.arange(small.T)[:, None], np.arange(small.T)
  seen = (j <= i) & (i - j < 5)
  want = jax.nn.softmax(jnp.where(seen[None, None], s, -jnp.inf), axis=-1)
  np.testing.assert_allclose(found["attention"][0], want, atol=1e-5)
