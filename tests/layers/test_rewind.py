"""A state that goes back is, to the last bit, that of rows which never went on: every registered
mixer, positions with a state of their own, H-Net.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_params import filled, random_params

from jaxlm.config import ConfigError
from jaxlm.layers.mixer import MIXERS, Context
from jaxlm.layers.rewind import latest, rewind, trail, walk
from jaxlm.models import MODELS

#: Tokens that a row may go back, and those of the prompt: longer than every window and chunk here.
BACK, PROMPT = 4, 19
LENGTHS = np.array([PROMPT, 3, PROMPT, 18])  # of each row's prompt; padding behind it
KEPT = np.array([0, 2, BACK, 1])  # of the draft
WINDOW = dict(kind="attention", num_heads=2, window=5)
GLA = dict(kind="gla", num_heads=2, chunk=16)
MIXERS_TRIED = {
  "attention": dict(kind="attention", num_heads=2, position="rope"),
  "window": WINDOW | dict(position="rope"),
  "carope": WINDOW | dict(position=dict(kind="carope", init="paper_literal")),
  "cable": WINDOW | dict(position="cable"),
  "cope": WINDOW | dict(position="cope"),
  "mamba2": dict(kind="mamba2", d_state=4, head_dim=8, num_groups=2),
  "gla": GLA,
  "delta_rule": dict(kind="delta_rule", num_heads=2, chunk=16),
  "gated_delta_rule": dict(kind="gated_delta_rule", num_heads=2, chunk=16),
  "lact": dict(
    kind="lact", num_heads=2, window=8, position="rope", fast=dict(num_heads=2, chunk=8)
  ),
  "hybrid": dict(kind="hybrid", members=(GLA, WINDOW)),
  "pattern": dict(kind="pattern", members=(WINDOW, GLA)),
  "similarity_attention": dict(kind="similarity_attention", num_heads=2, position="rope"),
  "key_only_attention": dict(kind="key_only_attention", num_heads=2),
  "channel_mlp": dict(kind="channel_mlp", d_ff=16),
}


def decoder(mixer, **fields):
  return MODELS.build(
    dict(kind="decoder", vocab_size=32, d_model=16, num_layers=2, mixer=mixer, mlp=None) | fields
  )


def shared_phases():
  position = dict(
    kind="carope",
    init="paper_literal",
    freq_source="token_embedding",
    share_across_layers=True,
  )
  return decoder(dict(kind="attention", num_heads=2), position=position)


def hnet(router="learned", layout="m1 [T1 [m1T1] m1] m1"):
  def stage(width, **fields):
    return (
      dict(
        d_model=width,
        d_ff=16,
        attention=dict(num_heads=2, position="rope", window=5),
        mamba=dict(d_state=4, head_dim=8),
      )
      | fields
    )

  return MODELS.build(
    dict(
      kind="hnet",
      vocab_size=128,
      layout=layout,
      stages=(stage(16, router=router), stage(16), stage(16))[: layout.count("[") + 1],
    )
  )


BUILT = {name: lambda mixer=mixer: decoder(mixer) for name, mixer in MIXERS_TRIED.items()} | {
  "carope shared by the layers": shared_phases,
  "stream_attention": lambda: decoder(dict(kind="stream_attention", num_heads=2)),
  "hnet": lambda: hnet(layout="m1 [m1T1] m1"),
  "hnet of two chunkings": hnet,
  "hnet by spaces": lambda: hnet("space"),
}


def test_every_registered_mixer_is_tried():
  # Stream attention compares what a model hands on, and is tried in one.
  assert set(MIXERS.table) - {"stream_attention"} <= set(MIXERS_TRIED)


def first(length, count_B):
  """Segment ids of the first tokens of each row."""
  return jnp.asarray(np.arange(length)[None] < np.asarray(count_B)[:, None], jnp.int32)


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=pytest.mark.slow)
    if name in ("attention", "cope", "delta_rule", "hybrid")  # their code is in the others
    else name
    for name in MIXERS_TRIED
    if name != "pattern"
  ],
)
def test_a_layer_that_goes_back_never_went_on(name):
  """Pieces of as many tokens as it goes back; the layers' own lengths."""
  cfg, rng, B, D = MIXERS.build(MIXERS_TRIED[name]), np.random.default_rng(0), len(KEPT), 16

  def run(module, x, context, state):
    return module(x, context, state)

  def build():
    return cfg.build(D, "float32")

  ones = jnp.ones((1, 4), jnp.int32)
  context, init = Context(ones, ones, packed=False), nn.init(run, build())
  params = filled(
    jax.eval_shape(lambda: init(jax.random.key(0), jnp.zeros((1, 4, D)), context, None))
  )["params"]

  @jax.jit
  def extend(x_BTD, state, length_B, count_B):
    index_1T = jnp.arange(BACK)[None]
    context = Context((index_1T < count_B[:, None]).astype(jnp.int32), length_B[:, None] + index_1T)
    y_BTD, state = nn.apply(run, build())({"params": params}, x_BTD, context, state)
    return y_BTD, state, length_B + count_B

  def vectors():
    return jnp.asarray(rng.standard_normal((B, BACK, D)), jnp.float32)

  state, length_B = cfg.init_state(D, B, 64, "float32", rewindable=BACK), jnp.zeros(B, jnp.int32)
  for count_B in (BACK, [BACK, 3, BACK, 1], BACK):  # more than a window and a chunk
    _, state, length_B = extend(
      vectors(), state, length_B, jnp.broadcast_to(jnp.asarray(count_B), (B,))
    )
  draft, other, kept_B, all_B = vectors(), vectors(), jnp.asarray(KEPT), jnp.full(B, BACK)
  _, drafted, _ = extend(draft, state, length_B, all_B)
  back = jax.jit(rewind)(drafted, length_B + kept_B)
  _, never, length_B = extend(draft, state, length_B, kept_B)
  got, _, _ = extend(other, back, length_B, all_B)
  want, _, _ = extend(other, never, length_B, all_B)
  np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("T", [11, BACK])
def test_a_walk_is_that_of_its_pieces(T):
  """A recurrence whose state is the sum of its inputs: exact in float32."""
  rng = np.random.default_rng(0)
  x_BTF = jnp.asarray(rng.integers(-9, 9, (3, T, 2)), jnp.float32)
  valid_BT = (first(T, [T, 3, 0]) != 0).at[1, 0].set(False)  # padding may stand anywhere

  def add(x_BTF, valid_BT, sum_BF):
    y_BTF = sum_BF[:, None] + jnp.cumsum(jnp.where(valid_BT[..., None], x_BTF, 0), axis=1)
    return y_BTF, y_BTF[:, -1]

  y_BTF, state = jax.jit(functools.partial(walk, add))(
    trail(jnp.zeros((3, 2)), BACK), x_BTF, valid_BT
  )
  want_BTF, bare_BF = walk(add, jnp.zeros((3, 2)), x_BTF, valid_BT)
  there = np.asarray(valid_BT)
  np.testing.assert_array_equal(np.asarray(y_BTF)[there], np.asarray(want_BTF)[there])
  np.testing.assert_array_equal(latest(state), bare_BF)
  for by in range(BACK + 1):
    length_B = np.maximum(np.array([T, 2, 0]) - by, 0)
    want = [
      want_BTF[b, np.flatnonzero(there[b])[n - 1]] if n else np.zeros(2)
      for b, n in enumerate(length_B)
    ]
    np.testing.assert_array_equal(latest(rewind(state, length_B)), want)


@pytest.mark.parametrize(
  "name",
  [name if name == "hnet" else pytest.param(name, marks=pytest.mark.slow) for name in BUILT],
)
def test_a_model_that_goes_back_never_went_on(name):
  """Ragged prompts, longer than a row goes back; twice back and on."""
  cfg = BUILT[name]()
  network, rng, B = cfg.build(), np.random.default_rng(0), len(LENGTHS)
  params = random_params(cfg)

  def tokens(length):
    return jnp.asarray(rng.integers(0, cfg.vocab_size, (B, length)), jnp.int32)

  extend = jax.jit(
    lambda tokens, state, ids: network.apply(
      {"params": params}, tokens, state, ids, method="extend"
    )
  )
  prompt, draft = tokens(PROMPT), tokens(BACK)
  logits, begun = extend(prompt, cfg.init_state(B, 64, rewindable=BACK), first(PROMPT, LENGTHS))

  # The same values as a state that cannot go back; in other sums, where tokens are taken one by one.
  bare = extend(prompt, cfg.init_state(B, 64), first(PROMPT, LENGTHS))[0]
  there, scale = np.asarray(first(PROMPT, LENGTHS), bool), float(np.abs(bare).max())
  np.testing.assert_allclose(
    np.asarray(logits)[there] / scale, np.asarray(bare)[there] / scale, atol=4e-5
  )

  _, drafted = extend(draft, begun, first(BACK, [BACK] * B))
  go_back = jax.jit(cfg.rewind)
  back = go_back(drafted, LENGTHS + KEPT)
  _, never = extend(draft, begun, first(BACK, KEPT))
  np.testing.assert_array_equal(back.length_B, never.length_B)
  for take in (BACK, 1):
    other = tokens(BACK)
    got, back = extend(other, back, first(BACK, [take] * B))
    want, never = extend(other, never, first(BACK, [take] * B))
    np.testing.assert_array_equal(got[:, :take], want[:, :take])
    # `never` was never as long as `back`: it has older states, which are not asked for.
    oldest = np.asarray(back.reach.oldest_B)
    assert (oldest >= np.asarray(never.reach.oldest_B)).all()
    back, never = go_back(back, oldest), go_back(never, oldest)
  with pytest.raises(ValueError, match="row 0 cannot go back to"):
    cfg.rewind(back, oldest - 1)
  np.testing.assert_array_equal(go_back(back, oldest - 1).length_B, oldest)


def test_a_bare_state_does_not_go_back():
  cfg = decoder(dict(kind="gla", num_heads=2, chunk=16))
  with pytest.raises(ConfigError, match="rewindable=n"):
    cfg.rewind(cfg.init_state(1, 8), jnp.zeros(1, jnp.int32))
  with pytest.raises(ConfigError, match="rewindable=n"):
    rewind(cfg.mixers[0].init_state(16, 1, 8, "float32"), jnp.zeros(1, jnp.int32))
