"""The twelve properties of CARoPE (docs/specs/carope.md, section 8), on the attention layer that
models use.
"""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.kernels.phase import cumulative_phase, wrap
from jaxlm.layers.attention import AttentionConfig
from jaxlm.layers.mixer import Context
from jaxlm.layers.positions import NoPosition
from jaxlm.layers.positions.carope import CARoPE, Ladder, log_frequency
from jaxlm.layers.positions.rope import RoPE

D, T, HEADS = 32, 16, AttentionConfig(num_heads=4, num_kv_heads=2)
CAROPE = CARoPE(init_std=0.3)


def context(valid_BT):
  valid_BT = jnp.asarray(valid_BT, jnp.int32)
  return Context(valid_BT, jnp.broadcast_to(jnp.arange(valid_BT.shape[1])[None], valid_BT.shape))


def module(position):
  return dataclasses.replace(HEADS, position=position).build(D, "float32")


@functools.cache
def params(position):
  x = jnp.zeros((1, 4, D))
  tree = nn.unbox(module(position).init(jax.random.key(0), x, context(np.ones((1, 4)))))["params"]
  # Weights of size one, so that scores differ; frequencies as initialised.
  return {k: v if k.startswith("freq") else 10 * v for k, v in tree.items()}


@functools.partial(jax.jit, static_argnums=0)
def run(position, params, x_BTD, valid_BT):
  (y_BTD, _), sown = module(position).apply(
    {"params": params}, x_BTD, context(valid_BT), mutable=["intermediates"]
  )
  return y_BTD, sown["intermediates"]


def phases(position, sown, valid_BT=None):
  log_f_BTK = log_frequency(sown["freq_preact"][0])
  valid_BT = np.ones(log_f_BTK.shape[:2]) if valid_BT is None else valid_BT
  return np.asarray(position.phases(HEADS.heads(D), log_f_BTK, context(valid_BT))[0])


def circle(angle):
  """Distance to the nearest multiple of 2 pi."""
  return np.abs(np.asarray(wrap(jnp.asarray(angle))))


@pytest.fixture(scope="module")
def x_BTD():
  return jax.random.normal(jax.random.key(1), (2, T, D))


ONES = np.ones((2, T))


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_1_a_zero_kernel_and_the_right_bias_are_rope(layout, x_BTD):
  carope, rope = CARoPE(ladder=Ladder(layout=layout)), RoPE(layout=layout)
  assert not np.any(params(carope)["freq_kernel"])
  shared = {k: v for k, v in params(carope).items() if not k.startswith("freq")}
  np.testing.assert_allclose(
    run(carope, params(carope), x_BTD, ONES)[0], run(rope, shared, x_BTD, ONES)[0], atol=1e-5
  )


def test_2_frequencies_lie_in_0_1_and_phases_grow_faster_in_lower_pairs(x_BTD):
  _, sown = run(CAROPE, params(CAROPE), 5 * x_BTD, ONES)
  f = np.exp(log_frequency(sown["freq_preact"][0]))
  assert np.all((0 < f) & (f < 1)) and f.std() > 0.05
  phase_BTKP = phases(CAROPE, sown)
  step = np.diff(np.concatenate([np.zeros_like(phase_BTKP[:, :1]), phase_BTKP], 1), axis=1) % (
    2 * np.pi
  )
  assert np.all((0 < step) & (step < 1 + 1e-5))  # so phi_i(m) <= m + 1 tokens
  np.testing.assert_allclose(step[..., 0], 1, atol=1e-5)
  assert np.all(np.diff(step, axis=-1) < 1e-6)


def test_3_a_later_token_changes_no_earlier_bit(x_BTD):
  y, sown = run(CAROPE, params(CAROPE), x_BTD, ONES)
  other, other_sown = run(CAROPE, params(CAROPE), x_BTD.at[:, 9].add(1.0), ONES)
  assert np.array_equal(y[:, :9], other[:, :9]) and not np.array_equal(y[:, 9:], other[:, 9:])
  assert np.array_equal(phases(CAROPE, sown)[:, :9], phases(CAROPE, other_sown)[:, :9])


def test_4_relative_phases_do_not_depend_on_the_prefix_and_left_padding_changes_nothing(x_BTD):
  suffix = x_BTD[:, 6:]
  y, sown = run(CAROPE, params(CAROPE), suffix, ONES[:, 6:])
  _, longer = run(CAROPE, params(CAROPE), x_BTD, ONES)
  alone, behind = phases(CAROPE, sown), phases(CAROPE, longer)[:, 6:]
  assert circle(alone - alone[:, :1] - (behind - behind[:, :1])).max() < 1e-5
  for position in (CAROPE, dataclasses.replace(CAROPE, mask_increments=False)):
    padded, _ = run(position, params(position), x_BTD, ONES * (np.arange(T) >= 6)[None])
    np.testing.assert_allclose(padded[:, 6:], y, atol=1e-5)


def test_5_the_order_of_tokens_between_query_and_key_does_not_matter(x_BTD):
  n, m = 3, 12
  order = np.arange(T)
  order[n + 1 : m] = np.random.default_rng(0).permutation(order[n + 1 : m])
  assert not np.array_equal(order, np.arange(T))
  scores = []
  for x in (x_BTD, x_BTD[:, order]):
    _, sown = run(CAROPE, params(CAROPE), x, ONES)
    k = jnp.repeat(sown["k"][0][:, n], 2, axis=1)
    scores.append(jnp.sum(sown["q"][0][:, m] * k, -1))
  np.testing.assert_allclose(*scores, rtol=1e-5, atol=1e-4)


def test_6_phases_add_up_over_the_parts_of_a_sequence(x_BTD):
  _, sown = run(CAROPE, params(CAROPE), x_BTD, ONES)
  log_f_BTK = log_frequency(sown["freq_preact"][0])
  whole, last = cumulative_phase(log_f_BTK, 4)
  _, middle = cumulative_phase(log_f_BTK[:, :7], 4)
  rest, end = cumulative_phase(log_f_BTK[:, 7:], 4, initial_BKP=middle)
  assert circle(whole[:, 7:] - rest).max() < 1e-5 and circle(last - end).max() < 1e-5


def test_7_turning_keeps_the_length_of_every_query_and_key(x_BTD):
  _, turned = run(CAROPE, params(CAROPE), x_BTD, ONES)
  plain = {k: v for k, v in params(CAROPE).items() if not k.startswith("freq")}
  _, straight = run(NoPosition(), plain, x_BTD, ONES)
  for name in "qk":
    assert not np.allclose(turned[name][0], straight[name][0], atol=0.1)
    np.testing.assert_allclose(
      jnp.linalg.norm(turned[name][0], axis=-1),
      jnp.linalg.norm(straight[name][0], axis=-1),
      rtol=1e-5,
    )


@functools.partial(jax.jit, static_argnums=0)
def extend(position, params, x_BTD, state, start, valid_BT):
  positions_BT = start[:, None] + jnp.cumsum(valid_BT, axis=1) - 1
  return module(position).apply({"params": params}, x_BTD, Context(valid_BT, positions_BT), state)


@pytest.mark.parametrize(
  "position",
  [CAROPE, dataclasses.replace(CAROPE, ladder=Ladder(4, "interleaved", 1, inclusive=False))],
)
def test_8_decoding_in_any_pieces_equals_the_parallel_pass(position, x_BTD):
  want, _ = run(position, params(position), x_BTD, ONES)
  cfg = dataclasses.replace(HEADS, position=position)
  state, seen, got = cfg.init_state(D, 2, T, "float32"), np.zeros(2, np.int32), [[], []]
  # Row 0 gets 6 then 1, 1 then 6 tokens; row 1 gets 4, none, 1 then 6: what it lacks is padding on
  # the right.
  for length, counts in [(6, (6, 4)), (1, (1, 0)), (1, (1, 1)), (6, (6, 6))]:
    piece, valid = np.zeros((2, length, D), np.float32), np.zeros((2, length), np.int32)
    for b, count in enumerate(counts):
      piece[b, :count], valid[b, :count] = x_BTD[b, seen[b] : seen[b] + count], 1
      piece[b, count:] = 7.0
    y, state = extend(
      position, params(position), piece, state, jnp.asarray(seen), jnp.asarray(valid)
    )
    for b, count in enumerate(counts):
      got[b].append(y[b, :count])
    seen += counts
  for b in range(2):
    np.testing.assert_allclose(np.concatenate(got[b]), want[b, : seen[b]], atol=2e-5)


def test_9_whole_turns_of_the_carried_phase_change_nothing(x_BTD):
  cfg = dataclasses.replace(HEADS, position=CAROPE)
  state = cfg.init_state(D, 2, T, "float32")
  start, valid = jnp.zeros(2, jnp.int32), jnp.ones((2, 6), jnp.int32)
  outs = [
    extend(
      CAROPE,
      params(CAROPE),
      x_BTD[:, :6],
      state._replace(position=state.position + turns * 2 * math.pi),
      start,
      valid,
    )
    for turns in (0, 3)
  ]
  np.testing.assert_allclose(outs[0][0], outs[1][0], atol=1e-5)
  assert circle(outs[0][1].position - outs[1][1].position).max() < 1e-5
  assert np.all(np.abs(outs[1][1].position) <= math.pi + 1e-5)


@functools.partial(jax.jit, static_argnums=0)
def loss(position, params, x_BTD):
  y, _ = run(position, params, x_BTD, ONES)
  return jnp.sum(y * jnp.cos(jnp.arange(y.size, dtype=jnp.float32).reshape(y.shape)))


def test_10_gradients_of_the_frequencies_are_finite_differences(x_BTD):
  position = dataclasses.replace(CAROPE, init_std=0.02)
  at = params(position)
  grads = jax.grad(loss, argnums=1)(position, at, x_BTD)
  for name in ("freq_kernel", "freq_bias"):
    slope = jnp.linalg.norm(grads[name])

    def moved(eps, name=name, slope=slope):
      return loss(position, {**at, name: at[name] + eps * grads[name] / slope}, x_BTD)

    # Fourth order, so that a step large enough for float32 has no bias.
    h = 8e-3
    difference = (8 * (moved(h) - moved(-h)) - (moved(2 * h) - moved(-2 * h))) / (12 * h)
    assert slope > 0.3
    np.testing.assert_allclose(difference, slope, rtol=1e-2)


def test_10_the_pair_of_power_zero_gives_no_gradient(x_BTD):
  position = dataclasses.replace(CAROPE, ladder=Ladder(rotary_dim=2))
  grads = jax.grad(loss, argnums=1)(position, params(position), x_BTD)
  assert (
    not np.any(grads["freq_kernel"]) and not np.any(grads["freq_bias"]) and np.any(grads["w_q"])
  )


@pytest.mark.parametrize("shards", [2, 4])
def test_11_phases_of_a_sequence_sharded_over_devices_equal_one_device(shards, x_BTD):
  want, want_grads = jax.value_and_grad(loss, argnums=1)(CAROPE, params(CAROPE), x_BTD)
  mesh = jax.make_mesh(
    (1, shards), ("data", "sequence"), axis_types=(jax.sharding.AxisType.Auto,) * 2
  )
  rules = [("batch", "data"), ("seq", "sequence"), ("kv_heads", None), ("heads", None)]
  with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
    sharded = jax.device_put(x_BTD, jax.NamedSharding(mesh, jax.P("data", "sequence")))
    whole = jax.device_put(params(CAROPE), jax.NamedSharding(mesh, jax.P()))
    # A new function: the jitted ones above were traced without the mesh.
    fresh = jax.jit(jax.value_and_grad(lambda p, x: loss.__wrapped__(CAROPE, p, x)))
    lowered = fresh.lower(whole, sharded)
    got, got_grads = fresh(whole, sharded)
  assert "all_gather" in lowered.as_text()
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)
  for name in want_grads:
    np.testing.assert_allclose(
      got_grads[name], want_grads[name], atol=1e-5 * float(jnp.abs(want_grads[name]).max()) + 1e-5
    )


def test_12_the_printed_formula_with_a_zero_kernel_is_rope_of_another_base(x_BTD):
  literal = CARoPE(init="paper_literal", init_std=0.0)
  rotary_dim = D // HEADS.num_heads
  rope = RoPE(theta=(1 + math.log(2)) ** (rotary_dim / 2))
  assert "freq_bias" not in params(literal)
  shared = {k: v for k, v in params(literal).items() if not k.startswith("freq")}
  np.testing.assert_allclose(
    run(literal, params(literal), x_BTD, ONES)[0], run(rope, shared, x_BTD, ONES)[0], atol=1e-5
  )


def test_documents_of_a_packed_row_may_or_may_not_reset_the_phase(x_BTD):
  segments = np.where(np.arange(T) < 7, 1, 2)[None].repeat(2, 0)
  reset = dataclasses.replace(CAROPE, reset_on_segment=True)
  assert not np.allclose(
    phases(reset, run(reset, params(reset), x_BTD, segments)[1], segments)[:, 7:],
    phases(CAROPE, run(CAROPE, params(CAROPE), x_BTD, segments)[1], segments)[:, 7:],
    atol=0.1,
  )
  np.testing.assert_allclose(
    run(reset, params(reset), x_BTD, segments)[0],
    run(CAROPE, params(CAROPE), x_BTD, segments)[0],
    atol=1e-5,
  )


def test_a_learned_constant_has_no_kernel_and_starts_where_it_is_told():
  position = CARoPE(init="constant", constant=(0.25, 0.75), learn_kernel=False)
  tree = params(position)
  assert "freq_kernel" not in tree
  np.testing.assert_allclose(np.exp(log_frequency(tree["freq_bias"])), [0.25, 0.75], rtol=1e-6)


def test_bfloat16_activations_leave_the_frequencies_in_float32(x_BTD):
  low = dataclasses.replace(HEADS, position=CAROPE).build(D, "bfloat16")
  x = x_BTD.astype(jnp.bfloat16)
  _, sown = low.apply({"params": params(CAROPE)}, x, context(ONES), mutable=["intermediates"])
  want = np.asarray(x, np.float64) @ np.asarray(params(CAROPE)["freq_kernel"], np.float64)
  got = sown["intermediates"]["freq_preact"][0] - params(CAROPE)["freq_bias"][None, None]
  np.testing.assert_allclose(got, want, atol=1e-5)
