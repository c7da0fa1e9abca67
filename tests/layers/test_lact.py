"""LaCT and the linear recurrences inside a decoder: streaming, documents, padding, configuration."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config import ConfigError, build
from jaxlm.layers.fast_weights import FastWeightConfig, UpdateConfig
from jaxlm.layers.lact import LaCTConfig
from jaxlm.layers.positions.alibi import ALiBi
from jaxlm.layers.positions.carope import CARoPE
from jaxlm.models.decoder import DecoderConfig
from jaxlm.parallel.mesh import MeshConfig, make_mesh
from jaxlm.parallel.rules import param_shardings, sharding_context

WINDOW = dict(kind="attention", num_heads=4, window=4)
MIXERS = {
  "momentum": dict(kind="lact", num_heads=4, window=4, fast=dict(num_heads=2, chunk=4)),
  "muon_prenorm": dict(
    kind="lact",
    num_heads=4,
    window=4,
    qk_norm=True,
    use_bias=True,
    fast=dict(
      num_heads=2,
      chunk=4,
      rank=3,
      expansion=2.0,
      update=dict(muon="language", muon_steps=2, prenorm=True),
    ),
  ),
  "linear_gd": dict(
    kind="lact",
    num_heads=4,
    window=4,
    gate=False,
    silu="qk",
    fast=dict(num_heads=2, chunk=4, network="linear", update=dict(momentum=False)),
  ),
  "gla": dict(kind="hybrid", members=[WINDOW, dict(kind="gla", num_heads=2)]),
  "delta_rule": dict(kind="hybrid", members=[WINDOW, dict(kind="delta_rule", num_heads=2)]),
  "gated_delta_rule": dict(
    kind="hybrid", members=[WINDOW, dict(kind="gated_delta_rule", num_heads=2)]
  ),
}
B, T, V = 2, 21, 31


@functools.cache
def decoder(name):
  """A two-layer model whose memories really matter: rates, gates and decays are moved away from
  their start.
  """
  cfg = build(
    DecoderConfig,
    dict(
      vocab_size=V, d_model=24, num_layers=2, mixer=MIXERS[name], position="rope", mlp=dict(d_ff=32)
    ),
  )
  model = cfg.build()
  tokens = jax.random.randint(jax.random.key(1), (B, T), 0, V)
  params = jax.jit(model.init)(jax.random.key(0), tokens)["params"]
  params = nn.unbox(params)
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(2), len(leaves))
  params = jax.tree.unflatten(
    tree, [x + 0.2 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)]
  )
  mixer = params["blocks"]["mixer"]
  if "fast" in mixer:
    mixer["fast"]["b_rate"] = mixer["fast"]["b_rate"] + 5.0
    if "b_gate" in mixer:
      mixer["b_gate"] = mixer["b_gate"] + 2.0
  apply = jax.jit(lambda tokens, ids: model.apply({"params": params}, tokens, ids))
  extend = jax.jit(
    lambda tokens, state, ids: model.apply({"params": params}, tokens, state, ids, method="extend")
  )
  return cfg, tokens, apply, extend


def near(got, want):
  np.testing.assert_allclose(
    got, want, atol=3e-4 * float(np.abs(want).max()), rtol=0
  )  # Muon amplifies rounding


#: What test_registered_mixers.py tries, and fast weights of the simplest kind.
ELSEWHERE = ("gla", "delta_rule", "gated_delta_rule", "linear_gd")


@pytest.mark.parametrize(
  "name",
  [pytest.param(n, marks=pytest.mark.slow) if n in ELSEWHERE else n for n in MIXERS],
)
def test_ragged_prefill_then_decoding_equals_one_forward(name):
  cfg, tokens, apply, extend = decoder(name)
  want = apply(tokens, None)
  lengths = np.array([5, 9])  # one chunk boundary apart, not at the same place of a chunk
  ids = (np.arange(9)[None] < lengths[:, None]).astype(np.int32)
  logits, state = extend(tokens[:, :9], cfg.init_state(B, T), ids)
  for row, length in enumerate(lengths):
    near(logits[row, :length], want[row, :length])
  seen = lengths.copy()
  for _ in range(T - 9):
    step = jnp.take_along_axis(tokens, seen[:, None], 1)
    logits, state = extend(step, state, np.ones((B, 1), np.int32))
    near(logits[:, 0], want[np.arange(B), seen])
    seen += 1


@pytest.mark.parametrize("name", ["momentum", "delta_rule"])
@pytest.mark.parametrize("split", [1, 3, 8])
def test_two_prefills_equal_one_forward_at_any_split(name, split):
  cfg, tokens, apply, extend = decoder(name)
  first, state = extend(tokens[:, :split], cfg.init_state(B, T), None)
  second, _ = extend(tokens[:, split:], state, None)
  near(jnp.concatenate([first, second], 1), apply(tokens, None))


def test_the_state_has_the_same_size_at_any_length():
  cfg = decoder("momentum")[0]

  def size(n):
    return sum(x.size for x in jax.tree.leaves(cfg.init_state(1, n)))

  assert size(100) == size(100_000)


@pytest.mark.parametrize("name", MIXERS)
def test_memory_reaches_beyond_the_window_and_stops_at_documents(name):
  """With two layers and a window of 4, attention alone reaches back 6 tokens."""
  _, tokens, apply, _ = decoder(name)
  other = tokens.at[0, 1].set((tokens[0, 1] + 1) % V)

  def change(ids):
    return np.abs(apply(tokens, ids) - apply(other, ids))[0].max(-1)

  assert (change(None)[9:] > 1e-6).all()
  packed = jnp.array([[1] * 6 + [2] * (T - 6)] * B)
  assert not change(packed)[6:].any()


def test_shared_fast_weights_run_through_documents_and_isolated_ones_start_again():
  """One layer of memory only (window 1): what document 2 sees of document 1 came through the fast
  weights.
  """
  tokens = jax.random.randint(jax.random.key(1), (1, 12), 0, V)
  other, ids = tokens.at[0, 1].set((tokens[0, 1] + 1) % V), jnp.array([[1] * 6 + [2] * 6])

  def change(documents):
    cfg = build(
      DecoderConfig,
      dict(
        vocab_size=V,
        d_model=8,
        num_layers=1,
        position="rope",
        mlp=dict(d_ff=8),
        mixer=dict(
          kind="lact",
          num_heads=1,
          window=1,
          gate=False,
          fast=dict(num_heads=1, chunk=4, base_rate=1.0, documents=documents),
        ),
      ),
    )
    params = jax.jit(cfg.build().init)(jax.random.key(0), tokens)
    a, b = (jax.jit(cfg.build().apply)(params, x, ids) for x in (tokens, other))
    return np.abs(a - b)[0].max(-1) > 1e-6

  assert change("shared")[6:].all()
  assert not change("isolated")[6:].any()


@pytest.mark.slow  # eight devices on two cores wait for each other longer than the runtime allows
@pytest.mark.parametrize("name", ["momentum", "muon_prenorm"])
def test_the_model_on_eight_devices_gives_the_values_and_gradients_of_one(name):
  """Rows over `data`, the tokens of every chunk over `sequence`, heads over `tensor`; packed rows."""
  cfg = build(
    DecoderConfig,
    dict(
      vocab_size=32,
      d_model=24,
      num_layers=1,
      mixer=MIXERS[name],
      position="rope",
      mlp=dict(d_ff=32),
    ),
  )
  model, tokens = cfg.build(), jax.random.randint(jax.random.key(1), (2, 24), 0, 32)
  ids = jnp.array([[1] * 24, [1] * 10 + [2] * 14])
  boxed = jax.jit(model.init)(jax.random.key(0), tokens)["params"]
  params = nn.unbox(boxed)
  params["blocks"]["mixer"]["fast"]["b_rate"] += 5.0
  params["blocks"]["mixer"]["b_gate"] += 2.0
  ct = jax.random.normal(jax.random.key(2), (2, 24, 32))

  def run(params):
    return jax.value_and_grad(lambda p: jnp.sum(model.apply({"params": p}, tokens, ids) * ct))(
      params
    )

  want = jax.device_get(jax.jit(run)(params))
  mesh = make_mesh(MeshConfig(data=2, fsdp=1, sequence=2, tensor=2))
  split = jax.device_put(params, param_shardings(boxed, mesh))
  with sharding_context(mesh):
    got = jax.device_get(jax.jit(run)(split))
  np.testing.assert_allclose(got[0], want[0], rtol=1e-4)
  jax.tree.map(near, got[1], want[1])


def test_padding_on_the_right_changes_nothing():
  _, tokens, apply, _ = decoder("muon_prenorm")
  ids = jnp.where(jnp.arange(T) < 13, 1, 0)[None].repeat(B, 0)
  near(apply(tokens, ids)[:, :13], apply(tokens, None)[:, :13])


def test_configurations_that_cannot_be_meant_are_refused():
  fast = FastWeightConfig(num_heads=2, chunk=4)
  with pytest.raises(ConfigError, match="window = 0"):
    LaCTConfig(num_heads=4, window=0, fast=fast)
  with pytest.raises(ConfigError, match="does not divide num_heads = 3"):
    LaCTConfig(num_heads=3, window=4, fast=fast)
  with pytest.raises(ConfigError, match="only rope"):
    LaCTConfig(num_heads=4, window=4, fast=fast, position=CARoPE())
  LaCTConfig(num_heads=4, window=4, fast=fast, position=ALiBi(), rotate_fast=False)
  with pytest.raises(ConfigError, match="d_model = 25"):
    LaCTConfig(num_heads=4, window=4, fast=fast).heads(25)
  with pytest.raises(ConfigError, match="rates_per_token = 3"):
    FastWeightConfig(num_heads=2, rates_per_token=3).widths(24)
  with pytest.raises(ConfigError, match="fused"):
    FastWeightConfig(rates_per_token=8, update=UpdateConfig(fused=True))
  with pytest.raises(ConfigError, match="chunk = 0"):
    FastWeightConfig(chunk=0)
  with pytest.raises(ConfigError, match="network = 'conv'.*swiglu, linear"):
    FastWeightConfig(network="conv")
  with pytest.raises(ConfigError, match="muon_steps = -1"):
    UpdateConfig(muon_steps=-1)
  with pytest.raises(ConfigError, match="at least two"):
    build(
      DecoderConfig,
      dict(vocab_size=V, d_model=24, num_layers=2, mixer=dict(kind="hybrid", members=[WINDOW])),
    )
