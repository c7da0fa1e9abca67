"""The step: exact means, accumulation, clipping, averages, skipped and redone updates."""

import dataclasses
import functools
import itertools
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_run

from jaxlm.objectives.base import Pair
from jaxlm.parallel.mesh import make_mesh
from jaxlm.parallel.place import batch_sharding, placer
from jaxlm.training.config import run_config
from jaxlm.training.loop import one_step, run_steps
from jaxlm.training.step import Fitted, build_program, cast_large
from jaxlm.training.watchdog import HangConfig, Watchdog


def started(num_devices=1, **overrides):
  """(program, fresh state, placed batches), on the first devices; equal configurations share a
  program.
  """
  cfg = run_config(tiny_run.config(**overrides))
  program, batches = compiled(cfg, num_devices)
  with program.context():
    return program, program.init(), [placer(program.mesh)(batch) for batch in batches]


@functools.cache
def compiled(cfg, num_devices):
  batches = list(cfg.data.build("train", seed=0, repeat=False))[:3]
  return build_program(cfg, make_mesh(cfg.mesh, jax.devices()[:num_devices]), batches[0]), batches


def run(program, state, batches):
  """Final state and metrics of each step, on the host."""
  out, bucket = [], 0
  with program.context():
    for batch in batches:
      state, metrics, bucket = one_step(program, state, batch, bucket, set())
      out.append(jax.device_get(metrics))
  return jax.device_get(state), out


def assert_close(a, b, rtol=2e-5, atol=1e-7):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


@pytest.fixture(scope="module")
def plain():
  """Three steps of SGD without clipping."""
  program, state, batches = started(**SGD)
  start = jax.device_get(state)
  return program, start, batches, *run(program, state, batches)


SGD = {"optimizer": dict(kind="sgd", learning_rate=0.5, clip_norm=None), "schedule": "constant"}


def test_an_update_is_the_gradient_of_the_weighted_mean_by_hand(plain):
  program, start, batches, *_ = plain
  batch = jax.device_get(batches[0])

  def mean_loss(params):
    logits = program.model.apply({"params": params}, batch["tokens"])
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
    return jnp.sum(nll * batch["loss_weights"]) / jnp.sum(batch["loss_weights"])

  grads = jax.grad(mean_loss)(start.params)
  state, metrics = run(program, jax.device_put(start), batches[:1])
  assert_close(state.params, jax.tree.map(lambda p, g: p - 0.5 * g, start.params, grads))
  np.testing.assert_allclose(metrics[0]["grad_norm"].sum, optax.tree.norm(grads), rtol=1e-5)


def test_micro_batches_give_the_whole_batch_whatever_their_weights(plain):
  _, _, _, want, want_metrics = plain
  program, state, batches = started(**SGD, **{"train.accumulation": 4})
  got, metrics = run(program, state, batches)
  assert_close(got.params, want.params)  # sums of the same terms in another order
  for a, b in zip(metrics, want_metrics):
    assert_close({k: b[k].sum for k in b}, {k: a[k].sum for k in b}, rtol=1e-5)
    assert a["loss"].weight == b["loss"].weight


@pytest.mark.parametrize(
  "mesh",
  [
    dict(data=8, fsdp=1),
    dict(fsdp=8),
    dict(data=2, fsdp=2, tensor=2),
    dict(fsdp=2, sequence=2, tensor=2),
  ],
  ids=str,
)
def test_any_mesh_gives_the_single_device_update(plain, mesh):
  _, start, _, want, _ = plain
  program, state, batches = started(8, **SGD, mesh=mesh)
  # The same key gives the same numbers under any sharding, up to the last bit of the normal
  # transform.
  assert_close(jax.device_get(state.params), start.params, rtol=1e-6)
  got, _ = run(program, state, batches)
  assert_close(got.params, want.params, rtol=1e-4, atol=1e-6)


def test_state_stays_where_it_was_put_and_the_old_one_is_given_up():
  program, state, batches = started(8, **SGD, mesh=dict(fsdp=8))
  with program.context():
    new, metrics, _ = program.step(state, batches[0])
  for leaf, want in zip(jax.tree.leaves(new), jax.tree.leaves(program.state)):
    assert leaf.sharding.is_equivalent_to(want.sharding, leaf.ndim)
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
  assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(metrics))


def test_clipping_scales_the_whole_gradient_to_the_norm(plain):
  _, start, _, _, metrics = plain
  norm = metrics[0]["grad_norm"].sum
  clip = {"optimizer": SGD["optimizer"] | {"clip_norm": float(norm) / 4}, "schedule": "constant"}
  program, state, batches = started(**clip)
  got, _ = run(program, state, batches[:1])
  moved = optax.tree.norm(jax.tree.map(jnp.subtract, got.params, start.params))
  np.testing.assert_allclose(moved, 0.5 * norm / 4, rtol=1e-4)


def test_the_average_follows_its_recurrence():
  program, state, batches = started(**{"train.ema_decay": 0.9})
  average = jax.device_get(state.params)
  for n in range(3):
    state, _ = run(program, jax.device_put(state) if n else state, batches[n : n + 1])
    average = jax.tree.map(lambda e, p: 0.9 * e + 0.1 * p, average, state.params)
  assert_close(state.ema, average, rtol=1e-5)


@pytest.mark.parametrize("spoil", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(spoil):
  program, state, batches = started(
    **{"train.ema_decay": 0.9, "objective.kind": "tiny_nan" if spoil == "gradient" else "tiny"},
    **({"objective.first": 1} if spoil == "gradient" else {}),
  )
  first, _ = run(program, state, batches[:1])
  bad = batches[1] | (
    {"loss_weights": batches[1]["loss_weights"].at[0, 0].set(jnp.nan)} if spoil == "loss" else {}
  )
  second, metrics = run(program, jax.device_put(first), [bad])
  assert np.isnan(metrics[0]["grad_norm"].sum)
  assert np.isfinite(metrics[0]["loss"].sum) == (spoil == "gradient")
  for name in ("params", "opt_state", "ema", "objective"):
    jax.tree.map(np.testing.assert_array_equal, getattr(second, name), getattr(first, name))
  assert (second.step, second.skipped, second.skipped_in_row) == (2, 1, 1)
  third, _ = run(program, jax.device_put(second), batches[2:])
  assert (third.skipped, third.skipped_in_row) == ((1, 0) if spoil == "loss" else (2, 2))


def test_a_step_that_overflows_is_redone_in_the_next_bucket_and_is_exact():
  program, state, batches = started(**{"objective.kind": "tiny_buckets"})
  got, metrics = run(program, state, batches)
  needed = [int(batch["loss_weights"].sum(1).max()) for batch in batches]
  assert [m["bucket"].sum for m in metrics] == [
    next(c for c in (4, 6, 8) if c >= n) for n in needed
  ]
  assert [m["redone"].sum for m in metrics] == [(4, 6, 8).index(m["bucket"].sum) for m in metrics]
  assert max(needed) > 4 and got.step == 3 and got.objective["updates"] == 3
  with program.context():
    want = program.init()
    for batch in batches:
      want, _, _ = one_step(
        program, want, batch, 2, set()
      )  # each at once in the bucket that always fits
  jax.tree.map(np.testing.assert_array_equal, got.params, jax.device_get(want.params))


def test_the_largest_bucket_overflowing_is_an_error_not_a_loop():
  program, state, batches = started(**{"objective.kind": "tiny_buckets"})
  smallest = dataclasses.replace(program, buckets=program.buckets[:1])
  with pytest.raises(RuntimeError, match=r"largest bucket 4 of the objective overflows at step \d"):
    run(smallest, state, batches)


def test_a_step_that_compiles_another_bucket_is_left_out_of_the_rate():
  seen, seconds = set(), []

  def step(state, batch, frozen, bucket):  # slow when it meets a bucket for the first time
    time.sleep(0 if bucket in seen else 0.4)
    seen.add(bucket)
    one = jnp.ones(())
    metrics = {
      name: Pair(one * value, one)
      for name, value in dict(loss=1, skipped=0, skipped_in_row=0).items()
    }
    fitted = Fitted(jnp.zeros(()), jnp.asarray(next(wanted)))
    return types.SimpleNamespace(step=state.step + 1), metrics, fitted

  wanted = iter([0, 1, 1, 0, 0, 0])
  program = types.SimpleNamespace(
    step=step,
    buckets=("small", "large"),
    cfg=types.SimpleNamespace(
      train=types.SimpleNamespace(steps=6, profile=None, debug=True, log_every=1, max_skipped=1),
      objective=types.SimpleNamespace(bucketed_training=True),
    ),
  )
  run_steps(
    program,
    types.SimpleNamespace(step=0),
    itertools.repeat(np.zeros(1)),
    lambda x: x,
    bucket=0,
    on_log=lambda step, values, s, total: seconds.append(s),
    on_step=lambda *_: False,
    stop=types.SimpleNamespace(agreed=lambda *_: False),
    profile_folder=None,
    watchdog=Watchdog(HangConfig(), "process 0 of 1"),
  )
  assert [s is None for s in seconds] == [
    True,
    False,
    True,
    False,
    False,
    False,
  ]  # small, small, large, large, small, small
  assert max(s for s in seconds if s is not None) < 0.3


def test_only_large_parameters_are_gathered_in_bfloat16():
  axes = {"big": ("embed", "mlp"), "stacked": ("layers", "embed"), "small": ("embed",)}
  params = {"big": jnp.zeros((512, 256)), "stacked": jnp.zeros((300, 512)), "small": jnp.zeros(512)}
  assert {k: v.dtype.name for k, v in cast_large(params, axes, "bfloat16").items()} == {
    "big": "bfloat16",
    "stacked": "float32",
    "small": "float32",
  }
  assert cast_large(params, axes, None) is params
  assert cast_large(params, axes, "bfloat16", kept=("big",))["big"].dtype == jnp.float32


def test_randomness_is_a_function_of_seed_and_step():
  one, two, three = (started(**SGD, seed=seed)[1].params for seed in (3, 3, 4))
  jax.tree.map(np.testing.assert_array_equal, one, two)
  assert any(not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(three)))


def test_a_program_is_built_from_shapes_alone():
  cfg = run_config(tiny_run.config(**SGD))
  mesh = make_mesh(cfg.mesh)
  batch = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch_sharding(mesh)),
    next(iter(cfg.data.build("train", seed=0))),
  )
  program = build_program(cfg, mesh, batch)
  with program.context():
    text = program.step.lower(program.state, batch).compile().as_text()
  assert "all-gather" in text and "all-reduce" in text  # weights are gathered, gradients summed
