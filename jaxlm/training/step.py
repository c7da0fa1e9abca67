"""The train step: one jitted, donated program.

    batch -> A micro-batches -> sums of loss and gradient -> / total weight -> clip -> update ->
    average

The same program is trained with, compiled ahead of time by preflight, and timed by the benchmark.
"""

import dataclasses
import functools
import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxlm.checkpoint.placed import abstract_params
from jaxlm.config import ConfigError
from jaxlm.data.special_tokens import SpecialTokens
from jaxlm.models import base
from jaxlm.models.torch_init import redraw
from jaxlm.objectives.base import LossOutput, Pair
from jaxlm.objectives.frozen import FrozenModel
from jaxlm.parallel.place import like_params, replicated
from jaxlm.parallel.rules import RULES, logical_axes, param_shardings, path_name, sharding_context
from jaxlm.parallel.tpu import compiler_options
from jaxlm.training.config import RunConfig
from jaxlm.training.guard import Watched, all_sane, append_loss, is_spike, watched
from jaxlm.training.state import TrainState

# What each random number is for; folded in after the step.
INIT, LOSS, REDRAW = 0, 1, 2
#: Per layer; smaller parameters cost nothing to gather, and some of them (routers, phases) want
#: float32.
MIN_CAST_SIZE = 2**17


class Fitted(NamedTuple):
  """What a step with buckets tells the loop. overflow: float32, above 0 if the batch did not fit,
  and then nothing was updated. bucket: int32, index of the bucket for the next step.
  """

  overflow: jax.Array
  bucket: jax.Array


@dataclasses.dataclass(frozen=True)
class Program:
  """Everything compiled for one config and mesh: `init()`,
  `step(state, batch, frozen, bucket=) -> (state, metrics, Fitted or None)`,
  `evaluate(params, batch, objective_state, frozen, bucket=) -> (metrics, Fitted or None)`.

  state: abstract TrainState whose leaves carry their shardings. axes: logical names of the
  parameters. frozen: {name: abstract parameters} of the models that the objective reads and no step
  changes; what is handed to `step` and `evaluate` looks like it.
  """

  cfg: RunConfig
  mesh: Any
  model: nn.Module
  state: TrainState
  axes: Any
  buckets: tuple
  frozen: dict[str, Any]
  init: Any
  step: Any
  evaluate: Any

  def context(self):
    """Calls and traces happen inside."""
    return sharding_context(self.mesh)

  def trace(self, batch, bucket: int, frozen=None):
    """Traces the train step of a bucket and neither compiles nor runs it; a call of the same shapes
    that follows does not trace it again. batch: abstract, global, with shardings. frozen: as of
    `step`."""
    bucketed = self.buckets and self.cfg.objective.bucketed_training
    with self.context():
      options = {"bucket": self.buckets[bucket]} if bucketed else {}
      self.step.trace(self.state, batch, frozen, **options)


def build_program(
  cfg: RunConfig,
  mesh,
  batch,
  *,
  frozen: Mapping[str, Any] | None = None,
  special_tokens: SpecialTokens | None = None,
) -> Program:
  """batch: one global batch, concrete or abstract. Nothing is allocated or run here.

  frozen: {name: model config} of the objective's frozen models. special_tokens: None: the data's.
  """
  model = cfg.model.build()
  batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)

  def init_boxed():
    return base.init(cfg.model.rolled(), jax.random.fold_in(jax.random.key(cfg.seed), INIT), batch)

  def init_params():
    params = nn.unbox(init_boxed())
    if cfg.train.init == "own":
      return params
    return redraw(
      params,
      jax.random.fold_in(jax.random.key(cfg.seed), REDRAW),
      identical_layers=cfg.train.init == "torch_identical_layers",
    )

  # Outside any mesh: boxes of abstract values cannot be constrained.
  boxed = jax.eval_shape(init_boxed)
  axes, params, shardings = (
    logical_axes(boxed),
    nn.unbox(boxed),
    param_shardings(boxed, mesh, RULES, cfg.model),
  )
  tx = cfg.optimizer.build(axes)

  def init():
    return create(init_params())

  def create(params):
    state = TrainState.create(params, tx, cfg.objective, cfg.train.ema_decay is not None)
    return (
      state.replace(opt_state=watched(state.opt_state, cfg.train.spike_window))
      if cfg.train.spike_factor
      else state
    )

  shapes = jax.eval_shape(create, params)
  state_shardings = like_params(shapes, params, shardings, mesh)
  state = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, state_shardings
  )
  frozen = dict(frozen or {})
  missing = [name for name in cfg.objective.frozen if name not in frozen]
  if missing:
    raise ConfigError(f"the frozen model {missing[0]!r} of the objective has not been opened")
  reads = objective_reads(cfg, frozen, special_tokens)
  rows = next(iter(jax.tree.leaves(batch))).shape[0]
  shape = (rows // cfg.train.accumulation, cfg.data.seq_len)
  buckets = tuple(cfg.objective.buckets(cfg.model, shape))
  options = compiler_options(mesh.devices.flat[0].device_kind)
  step = jax.jit(
    functools.partial(
      train_step, cfg=cfg, model=model, tx=tx, axes=axes, buckets=buckets, reads=reads
    ),
    donate_argnums=0,
    static_argnames="bucket",
    compiler_options=options,
    out_shardings=(state_shardings, replicated(mesh), replicated(mesh)),
  )
  evaluate = jax.jit(
    functools.partial(eval_step, cfg=cfg, model=model, buckets=buckets, reads=reads),
    static_argnames="bucket",
    compiler_options=options,
    out_shardings=replicated(mesh),
  )
  return Program(
    cfg,
    mesh,
    model,
    state,
    axes,
    buckets,
    {name: abstract_params(model, mesh) for name, model in frozen.items()},
    jax.jit(init, out_shardings=state_shardings, compiler_options=options | run_once(mesh)),
    step,
    evaluate,
  )


def run_once(mesh) -> dict[str, int]:
  """Compiler options for a program that runs once: on a CPU, the first level of LLVM, which compiles
  faster and rounds alike.
  """
  if mesh.devices.flat[0].platform != "cpu" or jax.config.read("jax_disable_most_optimizations"):
    return {}
  return {"xla_backend_optimization_level": 1}


def objective_reads(cfg: RunConfig, frozen: Mapping[str, Any], special_tokens=None):
  """{name: parameters} of frozen models -> the keyword arguments that this objective's loss asks
  for.

  frozen: {name: model config}. special_tokens: None: the data's.
  """
  modules, fixed = {name: model.build() for name, model in frozen.items()}, {}
  axes = {name: logical_axes(base.abstract_params(model)) for name, model in frozen.items()}
  if cfg.objective.special_tokens:
    fixed["special_tokens"] = special_tokens or cfg.data.special_tokens

  def opened(name: str, params) -> FrozenModel:
    params = cast_large(params, axes[name], cfg.train.gather_dtype, frozen[name].float32_params)
    return FrozenModel(modules[name], params)

  def arguments(params: Mapping[str, Any] | None) -> dict[str, Any]:
    if not modules:
      return fixed
    return fixed | {"frozen": {name: opened(name, params[name]) for name in modules}}

  return arguments


def train_step(
  state: TrainState,
  batch,
  frozen=None,
  *,
  cfg: RunConfig,
  model,
  tx,
  axes,
  buckets,
  reads,
  bucket=None,
):
  """(new state, metrics, Fitted or None).

  A step is skipped if its loss, its gradient, or the parameters or optimiser state that it would
  make are not finite, or if its loss is a spike (`train.spike_factor`): parameters, optimiser,
  average and objective state stay as they were, and `skipped` counts it. A batch of weight zero,
  which has nothing to learn from, changes nothing either: no weight decay, no momentum; it counts
  as `empty`. Both take their number of a step. A batch that overflows its bucket leaves everything
  as it was, the step number too.
  """
  key = jax.random.fold_in(jax.random.fold_in(jax.random.key(cfg.seed), LOSS), state.step)
  params = cast_large(state.params, axes, cfg.train.gather_dtype, cfg.model.float32_params)
  arguments = reads(frozen)

  def sums(params, batch, key, objective):
    output = cfg.objective.loss(
      model, params, batch, key, objective, train=True, bucket=bucket, **arguments
    )
    return output.loss.sum, output._replace(metrics=named(output))

  grads, output, objective = accumulate(
    sums,
    params,
    batch,
    key,
    cfg.train.accumulation,
    state.objective,
    cfg.objective.after_micro_batch,
    cfg.data.rows_per_group,
  )
  loss, metrics = output.loss, output.metrics
  weight = jnp.maximum(loss.weight, 1e-9)
  norm = optax.tree.norm(grads) / weight
  finite = jnp.isfinite(norm) & jnp.isfinite(loss.sum)
  empty = loss.weight == 0
  fits = jnp.array(True) if output.fit is None else output.fit.overflow <= 0
  clip = jnp.minimum(1.0, cfg.optimizer.clip_norm / norm) if cfg.optimizer.clip_norm else 1.0
  grads = jax.tree.map(lambda g: g * (clip / weight), grads)

  factor = cfg.schedule.factor(state.step, cfg.train.steps)
  learning_rate = cfg.optimizer.learning_rate * factor
  watch = cfg.train.spike_factor is not None
  updates, opt_state = tx.update(
    grads,
    state.opt_state.optimizer if watch else state.opt_state,
    state.params,
    learning_rate=learning_rate,
  )
  new = optax.apply_updates(state.params, updates)
  ema = state.ema
  if ema is not None:
    ema = jax.tree.map(lambda e, p: e + (1 - cfg.train.ema_decay) * (p - e), ema, new)
  new_objective = cfg.objective.update_state(objective, output)
  sane = all_sane(new, (opt_state, new_objective))
  spike = jnp.array(False)
  if watch:
    spike = is_spike(loss.sum / weight, state.opt_state.losses, cfg.train.spike_factor)
    opt_state = Watched(opt_state, append_loss(state.opt_state.losses, loss.sum / weight))
  good = finite & sane & ~spike
  applied = good & fits & ~empty

  # A select, not a cond: it fuses into the update and copies nothing.
  def keep(new, old):
    return jax.tree.map(lambda n, o: jnp.where(applied, n, o), new, old)

  empty &= fits & finite
  bad = (fits & ~good & ~empty).astype(jnp.int32)
  fitted = fitted_of(output, cfg, state.objective, buckets)
  state = TrainState(
    step=state.step + fits.astype(jnp.int32),
    params=keep(new, state.params),
    opt_state=keep(opt_state, state.opt_state),
    ema=keep(ema, state.ema),
    objective=keep(new_objective, state.objective),
    skipped=state.skipped + bad,
    skipped_in_row=jnp.where(fits & ~empty, (state.skipped_in_row + 1) * bad, state.skipped_in_row),
  )
  one = jnp.ones((), jnp.float32)
  metrics |= {
    "grad_norm": Pair(norm, one),
    "learning_rate": Pair(learning_rate, one),
    "skipped": Pair(bad.astype(jnp.float32), one),
    "empty": Pair(empty.astype(jnp.float32), one),
    "bad_update": Pair((fits & finite & ~sane).astype(jnp.float32), one),
    "spike": Pair((fits & finite & spike).astype(jnp.float32), one),
    "skipped_in_row": Pair(state.skipped_in_row.astype(jnp.float32), one),
  }
  return state, metrics, fitted


def eval_step(
  params, batch, objective_state, frozen=None, *, cfg: RunConfig, model, buckets, reads, bucket=None
):
  """(metrics of one batch as (sum, weight), Fitted or None), without dropout."""
  key = jax.random.key(cfg.seed)
  output = cfg.objective.loss(
    model, params, batch, key, objective_state, train=False, bucket=bucket, **reads(frozen)
  )
  return named(output), fitted_of(output, cfg, objective_state, buckets)


def fitted_of(output: LossOutput, cfg: RunConfig, objective_state, buckets) -> Fitted | None:
  """None of an objective without buckets."""
  if output.fit is None:
    return None
  return Fitted(
    output.fit.overflow, cfg.objective.next_bucket(output.fit, objective_state, buckets)
  )


def named(output: LossOutput) -> dict[str, Pair]:
  """The metrics with what is minimised among them: as `loss`, or as `objective` if the objective
  reports another loss.
  """
  loss, metrics = output.loss, output.metrics
  other = "loss" in metrics and metrics["loss"] is not loss
  return {"loss": loss, **metrics} | ({"objective": loss} if other else {})


def accumulate(sums, params, batch, key, num: int, state, advance, rows_per_group: int = 1):
  """Float32 gradient of sum_i sums(params, batch_i, key_i, state_i)[0], the added outputs, and the
  last state.

  Micro-batch i holds groups i, i + num, ... of rows_per_group neighbouring rows: with rows in
  contiguous shards each device keeps its own, and no group is split. The state after it is
  advance(state_i, output_i). Outputs add up as they say themselves (`LossOutput.__add__`).
  """
  grad = jax.grad(sums, has_aux=True)

  def to_f32(tree):
    return jax.tree.map(lambda g: g.astype(jnp.float32), tree)

  if num == 1:
    grads, output = grad(params, batch, jax.random.fold_in(key, 0), state)
    return to_f32(grads), output, advance(state, output)

  def micro_batches(x):
    groups = x.reshape(-1, num, rows_per_group, *x.shape[1:]).swapaxes(0, 1)
    return groups.reshape(num, x.shape[0] // num, *x.shape[1:])

  split = jax.tree.map(micro_batches, batch)

  def add(carry, inputs):
    ((grads, output), state), (i, micro) = carry, inputs
    new_grads, new_output = grad(params, micro, jax.random.fold_in(key, i), state)
    grads = jax.tree.map(lambda t, g: t + g.astype(t.dtype), grads, new_grads)
    return ((grads, output + new_output), advance(state, new_output)), None

  micro = jax.tree.map(lambda x: x[0], split)
  _, output = jax.eval_shape(grad, params, micro, key, state)
  zeros = (
    jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params),
    jax.tree.map(lambda m: jnp.zeros(m.shape, m.dtype), output),
  )
  (grads, output), state = jax.lax.scan(add, (zeros, state), (jnp.arange(num), split))[0]
  return grads, output, state


def cast_large(params, axes, dtype: str | None, kept: Collection[str] = ()):
  """Parameters in the dtype in which they are gathered; small ones stay as they are, and those of
  the names in `kept`, which the model computes with in float32."""
  if dtype is None:
    return params

  def cast(path, p, names):
    if path_name(path[-1:]) in kept:
      return p
    layers = math.prod(size for size, name in zip(p.shape, names) if name == "layers")
    return p.astype(dtype) if p.size // layers >= MIN_CAST_SIZE else p

  return jax.tree.map_with_path(cast, params, axes)
