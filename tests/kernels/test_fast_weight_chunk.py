"""The fast-weight operator: fast form against definition, schedules, documents, streaming,
sharding.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

from jaxlm.kernels.fast_weight_chunk import (
  Causal,
  Rule,
  accumulate,
  apply_update,
  bidirectional,
  fast_weight_chunk,
  initial_state,
  interleaved_video,
  read,
  view_synthesis,
)
from jaxlm.kernels.fast_weight_chunk.reference import step as reference_step
from jaxlm.kernels.newton_schulz import coefficients

B, N, H, F, C = 2, 2, 6, 10, 8


def inputs(length, *, seed=0, network="swiglu", dtype=jnp.float32):
  """weights, q, k, v, eta, beta with rates large enough that every chunk visibly moves the weights."""
  keys = iter(jax.random.split(jax.random.key(seed), 12))

  def normal(*shape):
    return jax.random.normal(next(keys), shape, dtype)

  shapes = [(F, H), (H, F), (F, H)] if network == "swiglu" else [(H, H)]
  weights = tuple(normal(B, N, *s) / s[-1] ** 0.5 for s in shapes)
  q, k, v = (normal(B, N, length, H) for _ in range(3))
  eta = tuple(0.1 * jax.nn.softplus(normal(B, N, length, 1)) for _ in weights)
  return weights, q, k, v, eta, jax.nn.sigmoid(normal(B, N, length))


MUON = coefficients("language", 2)  # two of the five steps: the rest only costs compile time here
RULES = {
  "gd": Rule(),
  "prenorm_muon": Rule(prenorm=True, muon=MUON),
  "fused_muon": Rule(fused=True, muon=MUON),
  "linear": Rule(network="linear", muon=coefficients("views")),
}


def close(got, want, tolerance):
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, atol=tolerance * max(float(np.abs(b).max()), 1e-3), rtol=0)


@pytest.mark.parametrize(
  "name, length, momentum",
  [
    ("gd", 29, True),
    ("gd", 16, False),
    ("prenorm_muon", 29, True),
    ("fused_muon", 21, False),
    ("linear", 29, True),
    ("prenorm_muon", 5, True),
  ],
)
def test_causal_matches_the_definition_with_gradients(name, length, momentum):
  weights, q, k, v, eta, beta = inputs(length, network=RULES[name].network)
  args = (weights, q, k, v, eta) + ((beta,) if momentum else ())
  ct = jax.random.normal(jax.random.key(9), q.shape)

  @functools.partial(jax.jit, static_argnums=0)
  def run(implementation, args, ct):
    out, vjp, state = jax.vjp(
      lambda *a: fast_weight_chunk(
        *a, schedule=Causal(C), rule=RULES[name], implementation=implementation
      ),
      *args,
      has_aux=True,
    )
    return out, state, vjp(ct)

  got, want = run("xla", args, ct), run("reference", args, ct)
  close(got[:2], want[:2], 2e-5)
  close(
    got[2], want[2], 1e-3 if RULES[name].muon else 2e-5
  )  # Muon's gradients cancel (docs/specs/lact.md, section 12, trap 9)


def test_the_step_is_the_gradient_of_the_inner_objective():
  weights, _, k, v, eta, _ = inputs(7)
  for index in range(3):

    def objective(w, index=index):
      return jnp.sum(eta[index] * read(Rule(), w, k) * v)

    want = jax.grad(objective)(weights)[index]
    np.testing.assert_allclose(reference_step(Rule(), weights, k, v, eta)[index], want, atol=1e-6)


def test_equal_rates_of_all_channels_are_one_rate_per_token():
  """Two programs: the fast one knows one rate per token only."""
  weights, _, k, v, eta, _ = inputs(7)

  def spread(eta):
    return tuple(jnp.broadcast_to(e, (*e.shape[:3], w)) for e, w in zip(eta, (H, F, H)))

  ct = jax.tree.map(lambda w: jax.random.normal(jax.random.key(w.size), w.shape), weights)
  got, got_vjp = jax.vjp(lambda *a: accumulate(Rule(), *a), weights, k, v, eta)
  want, want_vjp = jax.vjp(
    lambda w, k, v, eta: accumulate(Rule(), w, k, v, spread(eta)), weights, k, v, eta
  )
  close(got, want, 1e-6)
  close(got_vjp(ct), want_vjp(ct), 2e-6)


def test_float64_derivative_agrees_with_finite_differences():
  with jax.enable_x64(True):
    weights, q, k, v, eta, beta = inputs(12, dtype=jnp.float64)
    fn = jax.jit(
      lambda *a: fast_weight_chunk(*a, schedule=Causal(4), rule=Rule(muon=MUON))[0].sum()
    )
    check_grads(
      fn, (weights, q, k, v, eta, beta), order=1, modes=["rev"], atol=1e-5, rtol=1e-5, eps=1e-6
    )


@pytest.mark.parametrize("implementation", ["xla", "reference"])
@pytest.mark.parametrize(
  "items",
  [
    [(0, 8, True, True), (4, 12, False, True)],  # tokens 4 .. 7 are read twice
    [(12, 20, True, True), (0, 12, False, True)],  # out of order
    [(0, 20, False, True), (0, 20, True, False), (0, 20, False, True)],  # before and after learning
    [(2, 5, True, False), (6, 9, False, True)],  # some tokens are never read
    [(0, 20, True, False)],
  ],
)  # nothing is read
def test_outputs_are_those_of_the_items_one_behind_the_other(items, implementation):
  """As released: every applying item appends what it read, whatever other items read."""
  weights, q, k, v, eta, beta = inputs(20)

  def run(schedule):
    return fast_weight_chunk(
      weights, q, k, v, eta, beta, schedule=schedule, implementation=implementation
    )

  got, state = run(items)
  want, learned = [], []
  for start, stop, update, apply in items:
    learned += [(start, stop, update, False)] if update else []
    if apply:
      want.append(run([*learned, (start, stop, False, True)])[0])
  assert got.shape[2] == sum(stop - start for start, stop, _, apply in items if apply)
  if want:
    np.testing.assert_allclose(got, jnp.concatenate(want, 2), atol=1e-6)
  final = run([*learned, (0, 1, False, True)])[1]
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state.current, final.current
  )


@pytest.mark.parametrize(
  "schedule",
  [
    bidirectional(20),
    view_synthesis(12, 20),
    interleaved_video(4, 1, 3),
    ((0, 8, True, True), (8, 20, True, True)),
  ],
)
def test_listed_schedules_match_the_definition_with_gradients(schedule):
  args = inputs(20)
  rule = Rule(muon=coefficients("views", 1), detach_norms=True)
  ct = jax.random.normal(jax.random.key(9), args[1].shape)

  @functools.partial(jax.jit, static_argnums=0)
  def run(implementation, args):
    out, vjp = jax.vjp(
      lambda *a: fast_weight_chunk(*a, schedule=schedule, rule=rule, implementation=implementation)[
        0
      ],
      *args,
    )
    return out, vjp(ct)

  got, want = run("xla", args), run("reference", args)
  close(got[0], want[0], 2e-5)
  close(got[1], want[1], 1e-3)


def test_targets_of_view_synthesis_never_teach():
  args = inputs(20)

  def run(v):
    return fast_weight_chunk(
      *args[:3], v, *args[4:], schedule=view_synthesis(12, 20), rule=RULES["gd"]
    )[0]

  assert jnp.array_equal(run(args[3]), run(args[3].at[:, :, 12:].add(1.0)))


def test_the_last_chunk_is_read_but_never_learned():
  weights, q, k, v, eta, beta = inputs(16)
  grads = jax.grad(
    lambda k, v, beta: fast_weight_chunk(weights, q, k, v, eta, beta, schedule=Causal(C))[0].sum(),
    argnums=(0, 1, 2),
  )(k, v, beta)
  assert all(not g[:, :, C:].any() for g in grads)
  assert grads[0][:, :, :C].any()
  assert not grads[2].any()  # the first chunk's momentum multiplies an empty buffer


def test_a_token_sees_only_the_chunks_before_its_own():
  weights, q, k, v, eta, beta = inputs(24)
  run = jax.jit(lambda v: fast_weight_chunk(weights, q, k, v, eta, beta, schedule=Causal(C))[0])
  change = np.abs(run(v) - run(v.at[:, :, 9].add(1.0))).max((0, 1, 3))
  assert not change[:16].any() and (change[16:] > 0).all()


SEGMENTS = np.array([[1] * 5 + [2] * 14 + [3] * 8 + [0] * 2, [1] * 16 + [2] * 13])


@pytest.mark.parametrize("name", ["gd", "prenorm_muon"])
def test_documents_in_a_row_do_not_leak_and_match_the_definition(name):
  args = inputs(29)
  ct = jax.random.normal(jax.random.key(9), args[1].shape) * (SEGMENTS > 0)[:, None, :, None]

  @functools.partial(jax.jit, static_argnums=0)
  def run(implementation, args):
    out, vjp = jax.vjp(
      lambda *a: fast_weight_chunk(
        *a,
        schedule=Causal(C),
        rule=RULES[name],
        segment_ids_BT=SEGMENTS,
        implementation=implementation,
      )[0],
      *args,
    )
    return out, vjp(ct)

  got, want = run("xla", args), run("reference", args)
  valid = (SEGMENTS > 0)[:, None, :, None]
  close(got[0] * valid, want[0] * valid, 2e-5)
  close(got[1], want[1], 1e-3)


def test_documents_share_the_state_when_no_segments_are_given():
  """The official behaviour, by name: segment_ids_BT=None."""
  weights, q, k, v, eta, beta = inputs(29)
  run = jax.jit(
    lambda v, ids: fast_weight_chunk(
      weights, q, k, v, eta, beta, schedule=Causal(C), segment_ids_BT=ids
    )[0]
  )
  other = v.at[0, :, 3].add(1.0)  # in document 1 of row 0
  reset, leak = (np.abs(run(v, ids) - run(other, ids))[0].max((0, 2)) for ids in (SEGMENTS, None))
  assert not reset[5:].any()
  assert (leak[8:] > 0).all()


def test_padding_does_not_change_real_positions():
  weights, q, k, v, eta, beta = inputs(29)
  ids = jnp.where(jnp.arange(29) < 19, 1, 0)[None].repeat(B, 0)
  got, _ = fast_weight_chunk(weights, q, k, v, eta, beta, schedule=Causal(C), segment_ids_BT=ids)

  def cut(x):
    return x[:, :, :19]

  want, _ = fast_weight_chunk(
    weights, cut(q), cut(k), cut(v), tuple(map(cut, eta)), cut(beta), schedule=Causal(C)
  )
  close(cut(got), want, 1e-5)


def test_parts_of_a_chunk_add_up_to_its_step_and_continue_the_sequence():
  """What streaming rests on: running sums, then one update."""
  rule = Rule(prenorm=True, muon=MUON)
  weights, q, k, v, eta, beta = inputs(2 * C)

  def part(x, a, b):
    return x[:, :, a:b]

  state = initial_state(rule, weights, momentum=True)
  total = jax.tree.map(jnp.zeros_like, weights)
  for a, b in ((0, 1), (1, 5), (5, 8)):
    more = accumulate(
      rule, state.current, part(k, a, b), part(v, a, b), tuple(part(e, a, b) for e in eta)
    )
    total = jax.tree.map(jnp.add, total, more)
  state = apply_update(rule, state, total, beta[:, :, :C].mean(-1))
  got = read(rule, state.current, q[:, :, C:])
  want, _ = fast_weight_chunk(weights, q, k, v, eta, beta, schedule=Causal(C), rule=rule)
  close(got, want[:, :, C:], 1e-5)


def test_an_empty_chunk_leaves_muon_finite():
  weights, q, k, v, eta, beta = inputs(16)
  eta = tuple(jnp.zeros_like(e) for e in eta)

  def fn(k):
    return fast_weight_chunk(weights, q, k, v, eta, beta, schedule=Causal(C), rule=Rule(muon=MUON))[
      0
    ].sum()

  assert bool(jnp.isfinite(jax.grad(fn)(k)).all())


def test_the_gradient_needs_a_quarter_of_the_definitions_memory():
  """At 16 chunks; nothing of size (all tokens, inner width) is kept, and the tokens are not copied."""
  weights, q, k, v, eta, beta = inputs(16 * 64)

  def temporary_bytes(implementation):
    def loss(*a):
      return fast_weight_chunk(*a, schedule=Causal(64), implementation=implementation)[0].sum()

    return (
      jax.jit(jax.grad(loss, argnums=tuple(range(6))))
      .lower(weights, q, k, v, eta, beta)
      .compile()
      .memory_analysis()
      .temp_size_in_bytes
    )

  assert 4 * temporary_bytes("xla") < temporary_bytes("reference")


def test_bfloat16_matmuls_stay_near_float32():
  weights, q, k, v, eta, beta = inputs(29)
  low = tuple(x.astype(jnp.bfloat16) for x in (q, k, v))
  got, state = fast_weight_chunk(
    weights, *low, eta, beta, schedule=Causal(C), rule=Rule(dtype="bfloat16")
  )
  want, _ = fast_weight_chunk(weights, q, k, v, eta, beta, schedule=Causal(C))
  assert got.dtype == jnp.bfloat16 and state.current[0].dtype == jnp.float32
  error = jnp.linalg.norm(got.astype(jnp.float32) - want) / jnp.linalg.norm(want)
  assert 0 < float(error) < 0.02


@pytest.mark.slow  # eight devices on two cores wait for each other longer than the runtime allows
@pytest.mark.parametrize("segments", [None, SEGMENTS])
def test_tokens_of_a_chunk_and_heads_split_over_devices_give_the_same_values_and_gradients(
  segments,
):
  args = inputs(29)
  rule = Rule(muon=MUON)
  ct = jax.random.normal(jax.random.key(9), args[1].shape)

  def run(args, ct, spec=None):
    out, vjp = jax.vjp(
      lambda *a: fast_weight_chunk(
        *a, schedule=Causal(C), rule=rule, segment_ids_BT=segments, spec=spec
      )[0],
      *args,
    )
    return out, vjp(ct)

  want = jax.jit(run)(args, ct)
  mesh = jax.make_mesh((2, 2, 2), ("data", "sequence", "tensor"), axis_types=(AxisType.Auto,) * 3)
  with jax.set_mesh(mesh):
    fn = jax.jit(functools.partial(run, spec=P("data", "tensor", "sequence")))
    got = fn(args, ct)
    assert "all-reduce" in fn.lower(args, ct).compile().as_text()
  close(got[0], want[0], 2e-5)
  close(got[1], want[1], 1e-3)


def test_wrong_calls_say_what_to_change():
  weights, q, k, v, eta, beta = inputs(16)
  with pytest.raises(ValueError, match="chunk 0"):
    Causal(0)
  for item in ((0, 17, True, True), (4, 4, True, True), (-1, 3, True, True)):
    with pytest.raises(ValueError, match="schedule item 0"):
      fast_weight_chunk(weights, q, k, v, eta, schedule=[item])
  with pytest.raises(ValueError, match="num_chunks = 0"):
    interleaved_video(4, 1, 0)
  with pytest.raises(ValueError, match="fast weight 1 has shape"):
    fast_weight_chunk((weights[0], weights[0], weights[2]), q, k, v, eta, schedule=Causal(C))
  with pytest.raises(ValueError, match="3 matrices"):
    fast_weight_chunk(weights, q, k, v, eta[:1], schedule=Causal(C))
  with pytest.raises(ValueError, match="network = 'conv'.*swiglu, linear"):
    fast_weight_chunk(weights, q, k, v, eta, schedule=Causal(C), rule=Rule(network="conv"))
  with pytest.raises(ValueError, match="eta 0"):
    fast_weight_chunk(weights, q, k, v, (eta[0][..., :0],) + eta[1:], schedule=Causal(C))
  with pytest.raises(NotImplementedError, match="pallas"):
    fast_weight_chunk(weights, q, k, v, eta, schedule=Causal(C), implementation="pallas")
  mesh = jax.make_mesh((8,), ("sequence",), axis_types=(AxisType.Auto,))
  with (
    jax.set_mesh(mesh),
    pytest.raises(ValueError, match="chunk 12 is not a multiple of the 8 devices"),
  ):
    fast_weight_chunk(weights, q, k, v, eta, schedule=Causal(12), spec=P(None, None, "sequence"))
  mesh = jax.make_mesh((2, 4), ("sequence", "tensor"), axis_types=(AxisType.Auto,) * 2)
  with jax.set_mesh(mesh), pytest.raises(ValueError, match="2 fast-weight heads do not divide"):
    fast_weight_chunk(weights, q, k, v, eta, schedule=Causal(C), spec=P(None, "tensor", "sequence"))
