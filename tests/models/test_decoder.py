"""The decoder: streaming equals the whole sequence, stacks, packing, memory choices, refusals."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config import ConfigError, build
from jaxlm.layers.positions import POSITIONS
from jaxlm.models.decoder import DecoderConfig, positions_in_segment

V, T = 29, 14
BASE = dict(
  vocab_size=V,
  d_model=16,
  num_layers=2,
  mixer=dict(kind="attention", num_heads=4, num_kv_heads=2),
  mlp=dict(d_ff=24),
  position="rope",
)
WINDOW = dict(kind="attention", num_heads=4, num_kv_heads=2, window=3)
FULL = dict(kind="attention", num_heads=4, num_kv_heads=2)
TOKENS = jax.random.randint(jax.random.key(1), (2, T), 0, V)
TARGETS = jnp.roll(TOKENS, -1, axis=1)


def config(**changes) -> DecoderConfig:
  return build(DecoderConfig, {**BASE, **changes})


@functools.cache
def params(cfg):
  """Random parameters large enough that attention and positions matter; drawn here, as compiling
  init is slow.
  """
  shapes = nn.unbox(jax.eval_shape(cfg.build().init, jax.random.key(0), TOKENS[:, :4]))["params"]
  random = np.random.default_rng(0)

  def draw(path, x):
    return jnp.asarray(
      (path[-1].key == "scale") + 0.3 * random.standard_normal(x.shape), jnp.float32
    )

  return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.partial(jax.jit, static_argnums=(0, 3))
def apply(cfg, params, args, method="__call__"):
  return cfg.build().apply({"params": params}, *args, method=method)


STREAMED = {
  **{kind: dict(position=kind) for kind in POSITIONS.table if kind != "learned"},
  "learned": dict(position=dict(kind="learned", max_len=T)),
  "t5_per_layer": dict(position=dict(kind="t5", share_across_layers=False, num_buckets=6)),
  "carope_shared_exclusive": dict(
    position=dict(
      kind="carope",
      freq_source="token_embedding",
      share_across_layers=True,
      ladder=dict(inclusive=False, start=1, layout="interleaved", rotary_dim=2),
    )
  ),
  "rope_window": dict(mixer=WINDOW),
  "carope_window": dict(mixer=WINDOW, position="carope"),
  "cope_window": dict(mixer=WINDOW, position="cope"),
  "pattern": dict(
    num_layers=3, mixer=dict(kind="pattern", members=(WINDOW, FULL)), position="carope"
  ),
}


@pytest.mark.parametrize("name", STREAMED)
def test_tokens_in_pieces_give_the_logits_of_the_whole_sequence(name):
  cfg = config(**STREAMED[name])
  want = apply(cfg, params(cfg), (TOKENS,))

  def extend(tokens, state, valid):
    return apply(cfg, params(cfg), (tokens, state, valid), "extend")

  state, seen, got = cfg.init_state(2, T), [0, 0], [[], []]
  # Row 0 gets 6, 1, 1 and 6 tokens; row 1 gets 4, none, 1 and 5, with padding on the right for the
  # rest.
  for length, counts in [(6, (6, 4)), (1, (1, 0)), (1, (1, 1)), (6, (6, 5))]:
    tokens, valid = np.full((2, length), 5), np.zeros((2, length), np.int32)
    for b, count in enumerate(counts):
      tokens[b, :count], valid[b, :count] = TOKENS[b, seen[b] : seen[b] + count], 1
    logits, state = extend(jnp.asarray(tokens), state, jnp.asarray(valid))
    for b, count in enumerate(counts):
      got[b].append(logits[b, :count])
      seen[b] += count
  assert list(state.length_B) == seen == [14, 10]
  for b in range(2):
    np.testing.assert_allclose(np.concatenate(got[b]), want[b, : seen[b]], atol=3e-5)


def test_a_windows_cache_holds_no_more_than_the_window():
  state = config(mixer=WINDOW).init_state(2, T)
  assert state.layers.k_BSKH.shape[2] == 3
  assert config(mixer=WINDOW, position="cope").init_state(2, T).layers.k_BSKH.shape[2] == T


@pytest.mark.parametrize("position", ["rope", "carope", "cable", dict(kind="learned", max_len=T)])
def test_packed_documents_and_padding_on_either_side_do_not_see_each_other(position):
  cfg = config(position=position)
  segments = jnp.asarray([[1] * 5 + [2] * 9, [0] * 4 + [1] * 8 + [0] * 2])
  packed = apply(cfg, params(cfg), (TOKENS, segments))
  for row, start, stop in [(0, 0, 5), (0, 5, 14), (1, 4, 12)]:
    alone = jnp.zeros_like(TOKENS[:1]).at[0, : stop - start].set(TOKENS[row, start:stop])
    want = apply(cfg, params(cfg), (alone,))[0, : stop - start]
    np.testing.assert_allclose(packed[row, start:stop], want, atol=2e-5)


def test_positions_count_from_the_start_of_each_segment():
  segments = jnp.asarray([[0, 0, 1, 1, 1, 2, 2, 0]])
  assert positions_in_segment(segments).tolist() == [[0, 1, 0, 1, 2, 0, 1, 0]]


@pytest.mark.parametrize(
  "changes", [dict(), dict(tie_embeddings=False, softcap=5.0), dict(loss_chunk=5)]
)
def test_scores_are_the_log_softmax_of_the_logits(changes):
  cfg = config(**changes)
  log_p = jax.nn.log_softmax(apply(cfg, params(cfg), (TOKENS,)))
  score = apply(cfg, params(cfg), (TOKENS, TARGETS), "score")
  np.testing.assert_allclose(
    score.log_prob_BT, jnp.take_along_axis(log_p, TARGETS[..., None], -1)[..., 0], atol=2e-5
  )
  if cfg.softcap:
    assert np.abs(apply(cfg, params(cfg), (TOKENS,))).max() <= cfg.softcap


@functools.partial(jax.jit, static_argnums=0)
def gradient(cfg, params):
  def nll(p):
    return -jnp.mean(cfg.build().apply({"params": p}, TOKENS, TARGETS, method="score").log_prob_BT)

  return jax.grad(nll)(params)


@pytest.mark.parametrize("changes", [dict(remat="full"), dict(remat="minimal"), dict(unroll=2)])
def test_recomputation_and_unrolling_leave_tree_and_gradients_alone(changes):
  want = gradient(config(), params(config()))
  got = gradient(config(**changes), params(config()))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4), got, want)


def test_a_pattern_of_equal_layers_is_the_plain_decoder_with_the_same_parameters():
  plain, window = config(num_layers=3), config(num_layers=3, mixer=WINDOW)
  pattern = config(num_layers=3, mixer=dict(kind="pattern", members=(WINDOW, WINDOW)))
  assert jax.tree.map(jnp.shape, params(plain)) == jax.tree.map(jnp.shape, params(pattern))
  np.testing.assert_allclose(
    apply(pattern, params(plain), (TOKENS,)), apply(window, params(plain), (TOKENS,)), atol=1e-5
  )


def test_a_pattern_keeps_one_stack_per_kind_of_layer_in_layer_order():
  wide = dict(kind="attention", num_heads=2)
  cfg = config(
    num_layers=5, mixer=dict(kind="pattern", members=(WINDOW, wide, FULL), order=(0, 1, 2))
  )
  blocks = params(cfg)["blocks"]
  assert blocks["stack_0"]["mixer"]["w_q"].shape == (3, 16, 4, 4)  # layers 0, 2, 3
  assert blocks["stack_1"]["mixer"]["w_q"].shape == (2, 16, 2, 8)  # layers 1, 4
  # Silencing layer 3 is silencing row 2 of the first stack: what is left equals layers 0, 1, 2, 4.
  silent = jax.tree.map(lambda x: x, params(cfg))
  for part, name in [("mixer", "w_o"), ("mlp", "w_out")]:
    silent["blocks"]["stack_0"][part][name] = silent["blocks"]["stack_0"][part][name].at[2].set(0)
  shorter = config(
    num_layers=4, mixer=dict(kind="pattern", members=(WINDOW, wide, FULL), order=(0, 1, 2, 1))
  )
  fewer = {
    **silent,
    "blocks": {
      **silent["blocks"],
      "stack_0": jax.tree.map(lambda x: x[:2], silent["blocks"]["stack_0"]),
    },
  }
  np.testing.assert_allclose(
    apply(cfg, silent, (TOKENS,)), apply(shorter, fewer, (TOKENS,)), atol=1e-5
  )


def test_output_projections_start_smaller_with_depth():
  cfg = config(num_layers=8, d_model=64, mlp=dict(d_ff=64))
  blocks = nn.unbox(jax.jit(cfg.build().init)(jax.random.key(0), TOKENS))["params"]["blocks"]
  for part, name, std in [("mixer", "w_o", 0.005), ("mlp", "w_out", 0.005), ("mixer", "w_q", 0.02)]:
    np.testing.assert_allclose(blocks[part][name].std(), std, rtol=0.05)


def test_every_parameter_names_its_axes_and_lives_in_float32():
  cfg = config(dtype="bfloat16", norm="layer", position="carope", tie_embeddings=False)
  boxed = jax.eval_shape(cfg.build().init, jax.random.key(0), TOKENS)
  names = {"vocab", "embed", "heads", "kv_heads", "head_dim", "mlp", "layers"}
  boxes = jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
  assert all(isinstance(b, nn.LogicallyPartitioned) and len(b.names) == b.value.ndim for b in boxes)
  assert all(set(b.names) <= names and b.value.dtype == jnp.float32 for b in boxes)
  assert {n for b in boxes for n in b.names} == names


def test_bfloat16_computation_stays_near_float32():
  exact = config(position="carope")
  low = dataclasses.replace(exact, dtype="bfloat16")
  small = jax.tree.map(lambda x: 0.3 * x, params(exact))
  logits = apply(low, small, (TOKENS,))
  assert logits.dtype == jnp.float32
  np.testing.assert_allclose(logits, apply(exact, small, (TOKENS,)), atol=0.05)


def test_a_sequence_longer_than_the_position_table_is_refused():
  cfg = config(position=dict(kind="learned", max_len=T - 1))
  assert cfg.max_len == T - 1 and config().max_len is None
  with pytest.raises(ConfigError, match=f"{T} tokens.*max_len = {T - 1}"):
    jax.eval_shape(cfg.build().init, jax.random.key(0), TOKENS)


@pytest.mark.parametrize(
  "changes, message",
  [
    (dict(d_model=18), "d_model = 18 is not divisible by num_heads = 4"),
    (
      dict(mixer=dict(kind="attention", num_heads=4, num_kv_heads=3)),
      "num_kv_heads = 3 does not divide",
    ),
    (dict(mixer=dict(kind="attention", num_heads=4, window=0)), "window = 0"),
    (dict(position=dict(kind="rope", rotary_dim=3)), "rotary_dim = 3"),
    (dict(position=dict(kind="rope", rotary_dim=6)), "head_dim = 4"),
    (dict(position=dict(kind="rope", rotary_dim=0)), "rotary_dim = 0"),
    (dict(position=dict(kind="carope", ladder=dict(rotary_dim=6))), "ladder.rotary_dim = 6"),
    (
      dict(position=dict(kind="carope", share_across_layers=True)),
      "freq_source = 'token_embedding'",
    ),
    (dict(position=dict(kind="carope", init="constant")), "wants one frequency"),
    (
      dict(position=dict(kind="carope", init="constant", constant=(0.1, 0.2, 0.3))),
      "num_kv_heads = 2",
    ),
    (dict(position="rpe"), "did you mean 'rope'"),
    (dict(mixer=dict(kind="pattern", members=(FULL,), order=(1,))), "index"),
    (dict(num_layers=0), "num_layers = 0"),
    (dict(softcap=-1.0), "softcap = -1.0"),
  ],
)
def test_impossible_combinations_are_refused_with_the_reason(changes, message):
  with pytest.raises(ConfigError, match=message):
    config(**changes)
