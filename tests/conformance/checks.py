"""What a configuration must do: be refused in one sentence, or work in every way that jaxlm has."""

import dataclasses
import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tiny

from jaxlm.checkpoint import weights_folder
from jaxlm.config import ConfigError
from jaxlm.models import MODELS, base
from jaxlm.parallel.mesh import make_mesh
from jaxlm.training.config import RunConfig, check, run_config
from jaxlm.training.frozen import frozen_configs
from jaxlm.training.run import flops_per_token
from jaxlm.training.step import build_program


def configured(mapping: dict) -> RunConfig | str:
  """The run, or the sentence that refuses it."""
  try:
    cfg = run_config(mapping)
    check(cfg, 1)
    return cfg
  except ConfigError as error:
    return str(error)


def is_sentence(text: str) -> bool:
  """One line that says what is wrong and how to mend it."""
  return 20 < len(text) < 700 and "\n" not in text and "Traceback" not in text


def with_teacher(mapping: dict, folder, *, weights: bool) -> dict:
  """The case with a trained model of its own kind, where its objective reads one.

  weights: False writes a run folder without checkpoints, which is enough to trace.
  """
  if mapping["objective"].get("teacher") != tiny.TEACHER:
    return mapping
  model = MODELS.build(mapping["model"])
  if weights:
    weights_folder.save(folder, model, nn.unbox(base.init(model, jax.random.key(1))))
  else:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model": mapping["model"]}))
  return mapping | {"objective": mapping["objective"] | {"teacher": str(folder)}}


@functools.lru_cache(maxsize=64)
def first_batch(data) -> dict[str, np.ndarray]:
  return next(iter(data.build("train", seed=0)))


def abstract_pass(cfg: RunConfig) -> dict[str, bool]:
  """Traces training, evaluation and decoding, and counts FLOPs. Nothing is compiled.

  Returns which of the abilities there are to show: {"decodes": bool}.
  """
  batch = first_batch(cfg.data)
  shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()}
  mesh = make_mesh(cfg.mesh, jax.devices()[:1])
  program = build_program(cfg, mesh, shapes, frozen=frozen_configs(cfg))
  bucket = program.buckets[-1] if program.buckets else None
  with program.context():
    state, metrics, _ = jax.eval_shape(
      functools.partial(program.step, bucket=bucket), program.state, shapes, program.frozen
    )
    jax.eval_shape(
      functools.partial(program.evaluate, bucket=bucket),
      program.state.params,
      shapes,
      program.state.objective,
      program.frozen,
    )
  kept = jax.tree.map(lambda a, b: a.shape == b.shape and a.dtype == b.dtype, state, program.state)
  assert all(jax.tree.leaves(kept)), "a step must keep every shape of the state"
  assert "loss" in metrics
  assert flops_per_token(cfg) > 0
  if cfg.model.decodes:
    carry = jax.eval_shape(lambda: cfg.model.init_state(2, 8))
    tokens_BT = jax.ShapeDtypeStruct((2, 3), jnp.int32)
    module, params = cfg.model.build(), program.state.params
    logits_BTV, after = jax.eval_shape(
      lambda *args: module.apply({"params": args[0]}, *args[1:], method="extend"),
      params,
      tokens_BT,
      carry,
    )
    assert logits_BTV.shape[:2] == (2, 3) and jax.tree.map(jnp.shape, after) == jax.tree.map(
      jnp.shape, carry
    )
  return {"decodes": cfg.model.decodes}


def streamed_is_whole(cfg: RunConfig, params) -> None:
  """In pieces of uneven size, and token by token with another token read and taken back before
  each, decoding gives the logits of the parallel pass.
  """
  module = cfg.model.build()
  vocab = cfg.model.vocab_size
  tokens_BT = jnp.asarray(np.random.default_rng(0).integers(4, vocab, (2, 9)), jnp.int32)
  whole_BTV = jax.jit(lambda p, t: module.apply({"params": p}, t))(params, tokens_BT)
  extend = jax.jit(lambda p, t, s: module.apply({"params": p}, t, s, method="extend"))
  for cuts, rewindable in (((4, 5), 0), ((1, 2, 3, 4, 5, 6, 7, 8), 1)):
    state, parts = cfg.model.init_state(2, 16, rewindable), []
    for start, piece in zip((0, *cuts), jnp.split(tokens_BT, cuts, axis=1)):
      if rewindable:
        _, state = extend(params, (piece + 1) % vocab, state)
        state = cfg.model.rewind(state, jnp.full(2, start, jnp.int32))
      logits_BTV, state = extend(params, piece, state)
      parts.append(logits_BTV)
    np.testing.assert_allclose(jnp.concatenate(parts, 1), whole_BTV, rtol=2e-4, atol=2e-4)


def trains(cfg: RunConfig, mapping: dict, folder) -> None:
  """Two steps on a device with a known peak, evaluation, a saved and an opened model that decodes."""
  import jaxlm
  from jaxlm.training import run

  run.peak_flops, kept = (lambda device_kind: 1e12), run.peak_flops
  try:
    done = run.train(mapping, folder, quiet=True)
  finally:
    run.peak_flops = kept
  assert done.step == 2 and np.isfinite(done.metrics["loss"])
  opened = jaxlm.open_model(folder)
  assert opened.config == cfg.model
  same = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), opened.params, done.params)
  assert all(jax.tree.leaves(same))
  if cfg.model.decodes:
    streamed_is_whole(dataclasses.replace(cfg, model=opened.config), opened.params)
