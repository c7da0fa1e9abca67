"""Accumulated phases: golden arrays, the definition, wrapping, resets, shards, and the rotation's
gradient.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxlm.kernels.phase import (
  carope_rotate,
  cumulative_phase,
  rotate,
  shard_prefix,
  sincos,
  total_phase,
  wrap,
)

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "carope"


def load(name):
  with np.load(GOLDEN / f"{name}.npz") as file:
    return dict(file)


# Compiled whole: eagerly every stage of a tree scan is compiled by itself.
phases = jax.jit(
  cumulative_phase, static_argnums=1, static_argnames=("ladder_start", "inclusive", "chunk")
)
rotated = jax.jit(carope_rotate, static_argnames=("rotary_dim", "inclusive"))


def angle_error(got, want):
  error = np.asarray(got, np.float64) - np.asarray(want, np.float64)
  return np.abs(error - 2 * np.pi * np.round(error / (2 * np.pi))).max()


def draw_log_f(B, T, K, seed=0):
  return -jax.random.uniform(jax.random.key(seed), (B, T, K), minval=0.02, maxval=1.5)


def pull(fn, gradients, *args):
  @jax.jit
  def run(*args):
    out, vjp = jax.vjp(fn, *args)
    return out, vjp(gradients)

  return run(*args)


# Phases carry an error of some 1e-6 rad per short case; gradients are sums over T of such.
def close(got, want, tolerance):
  for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert g.dtype == w.dtype
    np.testing.assert_allclose(
      np.asarray(g, np.float32), np.asarray(w, np.float32), atol=tolerance, rtol=tolerance
    )


def test_long_phase_golden_values_loss_and_gradient():
  golden = load("long_phase")
  at = golden["in/positions"]

  def loss(freq):
    phase, _ = cumulative_phase(jnp.log(freq), golden["out/phase"].shape[-1])
    sin, cos = sincos(phase[0, at])
    return jnp.sum(golden["in/w_cos"] * cos + golden["in/w_sin"] * sin), phase[0, at]

  (value, phase), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(golden["in/freq"])
  assert angle_error(phase, golden["out/phase"]) <= 5e-4  # the fixture's own tolerances
  assert abs(value - golden["out/loss"]) <= 1e-2
  want = golden["grad/freq"]
  assert np.abs(gradient - want).max() <= 1e-3 * np.abs(want).max()


def test_phases_at_131072_tokens_stay_within_2e_3():
  log_f = np.log(np.random.default_rng(0).uniform(0.3, 0.99, (1, 131072, 1))).astype(np.float32)
  want = np.cumsum(np.exp(log_f.astype(np.float64)[..., None] * np.arange(4)), axis=1)
  assert angle_error(phases(log_f, 4)[0], want) <= 2e-3


def test_attention_golden_phases_and_rotated_queries_and_keys():
  golden = load("attn_gqa")
  x, valid = golden["in/x"], golden["in/valid"]

  def heads(w, b, n):
    return (x @ golden[w] + golden[b]).reshape(*x.shape[:2], n, -1)

  q, k = heads("param/wq", "param/bq", 4), heads("param/wk", "param/bk", 2)
  log_f = jnp.log(golden["out/freq"])
  phase, _ = phases(log_f, 8, increments_mask_BT=valid)
  assert angle_error(phase, golden["out/phase"]) <= 5e-6
  q_rot, k_rot, _ = rotated(q, k, log_f, rotary_dim=16, increments_mask_BT=valid)
  np.testing.assert_allclose(
    q_rot, golden["out/q_rot"], atol=2e-5 * np.abs(golden["out/q_rot"]).max()
  )
  np.testing.assert_allclose(
    k_rot, golden["out/k_rot"], atol=2e-5 * np.abs(golden["out/k_rot"]).max()
  )


@pytest.mark.parametrize("inclusive", [True, False])
@pytest.mark.parametrize("T", [1, 7, 8, 17])
def test_phases_agree_with_the_definition_and_its_gradients(T, inclusive):
  B, K, num_pairs = 2, 3, 4
  log_f, initial = draw_log_f(B, T, K), jax.random.normal(jax.random.key(1), (B, K, num_pairs))
  mask = jax.random.bernoulli(jax.random.key(2), 0.8, (B, T))
  gradients = (
    jax.random.normal(jax.random.key(3), (B, T, K, num_pairs)),
    jax.random.normal(jax.random.key(4), (B, K, num_pairs)),
  )

  def run(implementation):
    return pull(
      lambda log_f, initial: cumulative_phase(
        log_f,
        num_pairs,
        ladder_start=1,
        inclusive=inclusive,
        increments_mask_BT=mask,
        initial_BKP=initial,
        chunk=8,
        implementation=implementation,
      ),
      gradients,
      log_f,
      initial,
    )

  (got, got_gradients), (want, want_gradients) = run("xla"), run("reference")
  assert max(angle_error(g, w) for g, w in zip(got, want)) < 1e-5
  close(got_gradients, want_gradients, 1e-4)


@pytest.mark.parametrize(
  "layout,rotary_dim,inclusive,dtype",
  [
    ("half", 8, True, jnp.float32),
    ("interleaved", 6, False, jnp.float32),
    ("half", 6, False, jnp.bfloat16),
  ],
)
def test_rotation_agrees_with_the_definition_and_its_gradients(
  layout, rotary_dim, inclusive, dtype
):
  B, T, N, K, H = 2, 13, 4, 2, 8
  keys = jax.random.split(jax.random.key(5), 5)
  q, dq = (jax.random.normal(key, (B, T, N, H)).astype(dtype) for key in keys[:2])
  k, dk = (jax.random.normal(key, (B, T, K, H)).astype(dtype) for key in keys[2:4])
  log_f, initial = draw_log_f(B, T, K), jax.random.normal(keys[4], (B, K, rotary_dim // 2))
  segments = jnp.array(
    [[1] * 5 + [2] * 5 + [0] * 3, [0] * 2 + [1] * 4 + [2] * 1 + [3] * 6], jnp.int32
  )
  options = dict(
    rotary_dim=rotary_dim,
    layout=layout,
    inclusive=inclusive,
    segment_ids_BT=segments,
    increments_mask_BT=segments > 0,
    chunk=4,
  )

  def run(implementation):
    return pull(
      lambda q, k, log_f, initial: carope_rotate(
        q, k, log_f, initial_BKP=initial, implementation=implementation, **options
      ),
      (dq, dk, jnp.ones_like(initial)),
      q,
      k,
      log_f,
      initial,
    )

  # bfloat16: the fused gradient reads y rounded to 8 bits where the definition reads x.
  close(run("xla"), run("reference"), 1e-4 if dtype == jnp.float32 else 8e-2)


def test_a_new_segment_starts_at_phase_zero_and_padding_keeps_the_last_phase():
  log_f = draw_log_f(1, 9, 2)
  segments = jnp.array([[0, 1, 1, 1, 2, 2, 2, 0, 0]], jnp.int32)
  phase, final = phases(log_f, 3, segment_ids_BT=segments, increments_mask_BT=segments > 0, chunk=4)
  for first, last in ((1, 4), (4, 7)):
    alone, alone_final = phases(log_f[:, first:last], 3)
    assert angle_error(phase[:, first:last], alone) < 2e-6
  assert angle_error(final, alone_final) < 2e-6


def test_pieces_with_a_handed_on_phase_equal_the_whole():
  log_f = draw_log_f(2, 21, 2)
  whole, whole_final = phases(log_f, 5, chunk=8)
  state, parts = None, []
  for first, last in ((0, 10), (10, 11), (11, 21)):
    part, state = phases(log_f[:, first:last], 5, initial_BKP=state, chunk=8)
    parts.append(part)
  assert angle_error(jnp.concatenate(parts, 1), whole) < 5e-6
  assert angle_error(state, whole_final) < 5e-6


def test_turns_added_to_the_initial_phase_change_nothing():
  log_f, initial = draw_log_f(1, 40, 2), jax.random.normal(jax.random.key(1), (1, 2, 4))
  base, _ = phases(log_f, 4, initial_BKP=initial)
  turned, _ = phases(log_f, 4, initial_BKP=initial + 6 * np.pi)
  assert angle_error(base, turned) < 1e-5
  assert np.all(np.abs(base) <= np.float32(np.pi))


def test_constant_frequencies_rotate_as_rope_does():
  T, theta = 48, 0.75
  q, k = jax.random.normal(jax.random.key(0), (2, 1, T, 2, 16))
  log_f = jnp.full((1, T, 2), np.log(theta))
  q_rot, k_rot, _ = rotated(q, k, log_f, rotary_dim=16, inclusive=False)
  angles = np.arange(T)[:, None] * theta ** np.arange(8.0)
  cos, sin = jnp.asarray(np.cos(angles), jnp.float32), jnp.asarray(np.sin(angles), jnp.float32)
  np.testing.assert_allclose(
    q_rot, rotate(q, cos, sin), atol=5e-5
  )  # 3 |q| times the phase error 1e-5
  np.testing.assert_allclose(k_rot, rotate(k, cos, sin), atol=5e-5)


def test_sincos_is_exact_to_seven_digits_on_the_whole_circle():
  phi = np.linspace(-np.pi, np.pi, 100_001).astype(np.float32)
  sin, cos = sincos(phi)
  np.testing.assert_allclose(sin, np.sin(phi.astype(np.float64)), atol=7e-7, rtol=0)
  np.testing.assert_allclose(cos, np.cos(phi.astype(np.float64)), atol=7e-7, rtol=0)
  assert jax.grad(lambda x: wrap(x))(9.0) == 1.0


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_phases_of_a_sharded_sequence_equal_those_of_one_device(shards):
  B, T, K, num_pairs = 2, 64, 2, 4
  log_f = draw_log_f(B, T, K)
  want, want_final = phases(log_f, num_pairs)
  mesh = jax.make_mesh((8 // shards, shards), ("data", "sequence"), axis_types=(AxisType.Auto,) * 2)

  def part(log_f):
    prefix, everything = shard_prefix(total_phase(log_f, num_pairs))
    return cumulative_phase(log_f, num_pairs, initial_BKP=prefix)[0], everything

  with jax.set_mesh(mesh):
    by_hand = jax.jit(
      jax.shard_map(
        part, in_specs=P(None, "sequence"), out_specs=(P(None, "sequence"), P()), check_vma=False
      )
    )(log_f)
    by_spec = jax.jit(lambda x: cumulative_phase(x, num_pairs, spec=P(None, "sequence", None)))(
      log_f
    )
  for phase, final in (by_hand, by_spec):
    assert angle_error(phase, want) <= 1e-5
    assert angle_error(final, want_final) <= 1e-5


def test_rotation_of_a_sharded_sequence_has_the_gradients_of_one_device():
  B, T, K, H = 2, 32, 2, 8
  keys = jax.random.split(jax.random.key(8), 3)
  q, k, weight = (jax.random.normal(key, (B, T, K, H)) for key in keys)

  def loss(log_f, spec):
    q_rot, k_rot, final = carope_rotate(q, k, log_f, rotary_dim=H, spec=spec)
    return jnp.sum(weight * (q_rot + jnp.sin(k_rot))) + jnp.sum(jnp.sin(final))

  log_f = draw_log_f(B, T, K)
  want = jax.jit(jax.grad(loss), static_argnums=1)(log_f, None)
  mesh = jax.make_mesh((2, 4), ("data", "sequence"), axis_types=(AxisType.Auto,) * 2)
  with jax.set_mesh(mesh):
    got = jax.jit(jax.grad(loss), static_argnums=1)(log_f, P("data", "sequence", None))
  np.testing.assert_allclose(got, want, atol=2e-4, rtol=2e-4)


def test_the_pair_of_power_zero_gives_frequencies_no_gradient():
  gradient = jax.grad(lambda log_f: jnp.sum(jnp.sin(cumulative_phase(log_f, 1)[0])))(
    draw_log_f(1, 20, 2)
  )
  assert not np.any(gradient)


def test_wrong_arguments_are_named():
  q = jnp.zeros((1, 4, 2, 8))
  log_f = draw_log_f(1, 4, 2)
  with pytest.raises(ValueError, match="layout 'halves'"):
    carope_rotate(q, q, log_f, rotary_dim=8, layout="halves")
  with pytest.raises(ValueError, match="rotary_dim 10 of head_dim 8"):
    carope_rotate(q, q, log_f, rotary_dim=10)
  with pytest.raises(NotImplementedError, match="'pallas'"):
    cumulative_phase(log_f, 4, implementation="pallas")


@pytest.mark.parametrize("inclusive", [True, False])
@pytest.mark.parametrize(
  "segments",
  [
    [1] * 5 + [2] * 11 + [3] * 8,
    [1] * 8 + [2] * 8 + [3] * 8,
    [0] * 3 + [1] + [2] * 20,
    [1] * 23 + [2],
    [1] * 9 + [0] * 2 + [2] * 7 + [0] * 6,
  ],
)
def test_packed_segments_agree_with_the_definition_and_its_gradients(segments, inclusive):
  """Starts within a chunk of 8, at its edges, several in one; padding; an initial phase and a final
  one.
  """
  segments = jnp.asarray([segments], jnp.int32)
  log_f, initial = draw_log_f(1, 24, 2), jax.random.normal(jax.random.key(1), (1, 2, 3))
  weights, final_weights = (
    jax.random.normal(jax.random.key(2), (1, 24, 2, 3)),
    jax.random.normal(jax.random.key(3), (1, 2, 3)),
  )

  def loss(log_f, initial, implementation):
    phase, final = cumulative_phase(
      log_f,
      3,
      initial_BKP=initial,
      inclusive=inclusive,
      segment_ids_BT=segments,
      chunk=8,
      increments_mask_BT=segments > 0,
      implementation=implementation,
    )
    return jnp.sum(weights * phase) + jnp.sum(final_weights * final), (phase, final)

  (_, (phase, final)), got = jax.value_and_grad(loss, (0, 1), has_aux=True)(log_f, initial, "xla")
  (_, (want_phase, want_final)), want = jax.value_and_grad(loss, (0, 1), has_aux=True)(
    log_f, initial, "reference"
  )
  assert angle_error(phase, want_phase) < 5e-6 and angle_error(final, want_final) < 5e-6
  for g, w in zip(got, want):
    np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-5 * float(jnp.abs(w).max()))


def test_a_segment_beside_another_has_the_bits_that_it_has_beside_zeros():
  """Phases and gradients of one document do not depend on how large another's are."""
  rng, T = np.random.default_rng(0), 80
  segments = jnp.asarray([[1] * 37 + [2] * 43], jnp.int32)
  log_f = jnp.asarray(-rng.uniform(0, 1, (1, T, 1)), jnp.float32)
  weights = rng.standard_normal((1, T, 1, 4)).astype(np.float32)

  def run(first, second):
    """Gradient with the two documents' weights scaled by these."""
    scale = jnp.asarray([first] * 37 + [second] * 43, jnp.float32)[None, :, None, None]
    return jax.grad(
      lambda log_f: jnp.sum(
        phases(log_f, 4, segment_ids_BT=segments, chunk=16)[0] * weights * scale
      )
    )(log_f)

  np.testing.assert_array_equal(run(1.0, 1e6)[:, :37], run(1.0, 0.0)[:, :37])
  np.testing.assert_array_equal(run(1e6, 1.0)[:, 37:], run(0.0, 1.0)[:, 37:])
  assert np.abs(run(1.0, 0.0)[:, :37]).max() > 0.1
