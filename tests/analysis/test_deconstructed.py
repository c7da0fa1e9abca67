"""Mixers that lack a part of attention: what each of them cannot see, and that they are of one size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from jaxlm.analysis import observe
from jaxlm.config import ConfigError
from jaxlm.models.base import abstract_params

FIXED = dict(mixer=dict(kind="stream_attention", num_heads=2, stream="fixed"))


def test_all_seven_have_the_same_number_of_parameters():
  base = dict(d_model=24, num_layers=2, mlp=dict(d_ff=16))
  stream = dict(fixed_stream=dict(source="text", tokens=(1, 2)))
  mixers = {
    "standard": (dict(kind="attention", num_heads=2), {}),
    "mlp": (dict(kind="channel_mlp"), {}),
    "approx": (dict(kind="similarity_attention", num_heads=2, similarity="taylor"), {}),
    "key only": (dict(kind="key_only_attention", num_heads=2), {}),
    "fixed": (FIXED["mixer"], stream),
    "static": (dict(kind="stream_attention", num_heads=2), {}),
  }
  sizes = {
    name: sum(p.size for p in jax.tree.leaves(abstract_params(small.decoder(mixer=m, **base, **o))))
    for name, (m, o) in mixers.items()
  }
  assert len(set(sizes.values())) == 1, sizes


@pytest.mark.parametrize("kind", ["key_only_attention", "stream_attention"])
def test_no_later_token_changes_an_earlier_output(kind):
  model = small.opened(mixer=dict(kind=kind, num_heads=2))
  one = small.tokens(rows=1)
  two = one.copy()
  two[0, 7:] = (two[0, 7:] + 3) % small.V
  a, b = small.logits(model, one), small.logits(model, two)
  np.testing.assert_allclose(a[:, :7], b[:, :7], atol=1e-6)
  assert float(jnp.abs(a[:, 7:] - b[:, 7:]).max()) > 1e-3


def test_key_only_weights_are_a_running_mean_with_one_weight_per_key():
  model, batch = small.opened(mixer=dict(kind="key_only_attention", num_heads=2)), small.tokens()
  found = observe(model, batch, "attention", "q", "k", "v", "heads")
  q, k, v = (np.asarray(found[x][0], np.float64) for x in "qkv")
  s = (q / (1 + np.exp(-q)) * k).sum(-1) / q.shape[-1] ** 0.5  # (B, T, N)
  w = np.exp(s)
  want = np.cumsum(w[..., None] * v, 1) / np.cumsum(w, 1)[..., None]
  np.testing.assert_allclose(found["heads"][0], want, atol=1e-5)
  ratio = found["attention"][0][:, :, -1] / found["attention"][0][:, :, -1, :1]
  np.testing.assert_allclose(ratio, np.exp(s - s[:, :1]).swapaxes(1, 2), rtol=1e-4)


@pytest.mark.parametrize(
  "stream", [dict(source="random", std=1.0), dict(source="text", tokens=(3, 1, 4))]
)
def test_the_maps_of_a_fixed_stream_do_not_depend_on_the_input(stream):
  model, batch = small.opened(**FIXED, fixed_stream=stream), small.tokens()
  other = small.tokens(seed=5)
  a = observe(model, batch, "attention")
  b = observe(model, other, "attention")
  for x, y in zip(a["attention"], b["attention"]):
    np.testing.assert_array_equal(x, y)
    np.testing.assert_array_equal(x[0], x[1])  # nor on the row
    assert float(jnp.std(x[0, 0, -1])) > 1e-4
  assert a["output"].shape == (2, small.T, small.V)
  assert float(jnp.abs(a["output"] - b["output"]).max()) > 1e-3


def test_static_queries_and_keys_are_of_the_embedding_in_every_layer():
  """A change behind the first layer changes no attention map, as it would with standard attention."""
  from jaxlm.analysis import Edit, intervene

  for kind, same in (("stream_attention", True), ("attention", False)):
    model, batch = small.opened(mixer=dict(kind=kind, num_heads=2)), small.tokens()
    wave = np.sin(np.arange(small.D)).astype(np.float32)
    plain = observe(model, batch, "attention")["attention"][1]
    found = intervene(model, batch, {("resid", 0): Edit(add=3 * wave)}, "attention")["attention"][1]
    assert (float(jnp.abs(found - plain).max()) < 1e-6) == same


def test_what_does_not_fit_is_refused_in_a_sentence():
  model = small.decoder(mixer=FIXED["mixer"])
  with pytest.raises(ConfigError, match="set model.fixed_stream"):
    abstract_params(model)
  cfg = small.decoder(**FIXED, fixed_stream=dict(source="random"))
  with pytest.raises(ConfigError, match="no decoding state"):
    cfg.init_state(1, 8)
  assert not cfg.decodes
  with pytest.raises(ConfigError, match="give tokens for 'text'"):
    small.decoder(**FIXED, fixed_stream=dict(source="text"))
  with pytest.raises(ConfigError, match="not a multiple of 3"):
    small.decoder(mixer=dict(kind="channel_mlp"))
  with pytest.raises(ConfigError, match="needs a key for each"):
    small.decoder(mixer=dict(kind="key_only_attention", num_heads=2, num_kv_heads=1))
