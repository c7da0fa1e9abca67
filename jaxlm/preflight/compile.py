"""A config's real programs, compiled ahead of time for devices that this machine does not have.

The step is the trainer's own (`training.step.build_program`): same sharding rules, same donation,
same function.
"""

import dataclasses
import pathlib
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxlm.config import ConfigError
from jaxlm.data.special_tokens import SpecialTokens
from jaxlm.parallel.mesh import BATCH_AXES, make_mesh
from jaxlm.parallel.place import batch_sharding
from jaxlm.parallel.tpu import compiler_options
from jaxlm.training.config import RunConfig, check
from jaxlm.training.frozen import frozen_configs
from jaxlm.training.step import Program, build_program

#: jax 0.10 reads no program back that runs on SparseCores; the compiler itself can write it.
CANNOT_PRINT = jax.__version_info__ < (0, 11)

PROGRAMS = ("train", "eval", "decode")


@dataclasses.dataclass(frozen=True)
class Compiled:
  """One program for one mesh. text: optimised HLO. memory: bytes per device. error: the compiler's,
  when it refused.
  """

  program: str
  mesh_shape: dict[str, int]
  text: str
  memory: dict[str, int]
  seconds: float
  state_bytes: dict[str, int]  # parameters, optimizer, other: per device
  num_params: int
  error: str = ""
  bucket: tuple | None = (
    None  # capacities that it was compiled for, where lengths depend on the data
  )


def compile_program(
  cfg: RunConfig,
  devices: np.ndarray,
  program: str = "train",
  *,
  decode_rows: int | None = None,
  options: dict[str, str] | None = None,
  bucket: int | None = None,
) -> Compiled:
  """Compiles `program` of a config for `devices`. An out-of-memory refusal is a result, not an
  exception.

  options: compiler options besides the program's own (`parallel.tpu`).
  bucket: which of the objective's capacities, smallest first; None: the largest, the one that must
  fit.
  """
  if program not in PROGRAMS:
    raise ConfigError(f"program {program!r}: wanted one of {', '.join(PROGRAMS)}")
  check(cfg, devices.size)
  mesh = make_mesh(cfg.mesh, list(devices.flat))
  built = build_program(
    cfg,
    mesh,
    abstract_batch(cfg),
    frozen=frozen_configs(cfg),
    special_tokens=abstract_special_tokens(cfg),
  )
  if bucket is not None and not -len(built.buckets) <= bucket < len(built.buckets):
    raise ConfigError(f"bucket {bucket}: this objective has {len(built.buckets)} ({built.buckets})")
  capacities = built.buckets[-1 if bucket is None else bucket] if built.buckets else None
  start = time.perf_counter()
  with built.context():
    lowered = _lower(built, program, mesh, decode_rows, capacities)
  shape, sizes = dict(mesh.shape), _state_bytes(built.state)
  num_params = sum(x.size for x in jax.tree.leaves(built.state.params))
  try:
    compiled, text = compile_and_print(lowered, options)
  except (
    Exception
  ) as error:  # the runtime's exception type differs between versions; the text does not
    if "RESOURCE_EXHAUSTED" not in str(error) or "vmem" in str(
      error
    ):  # a kernel's own memory is not the chip's
      raise
    return Compiled(
      program,
      shape,
      "",
      {},
      time.perf_counter() - start,
      sizes,
      num_params,
      str(error).split("\n\n")[0],
      capacities,
    )
  seconds = time.perf_counter() - start
  stats = compiled.memory_analysis()
  memory = {
    name: int(getattr(stats, f"{name}_size_in_bytes", 0))
    for name in ("argument", "output", "alias", "temp", "generated_code")
  }
  # Donated arguments are their outputs; the code of the program lies in HBM too, and the compiler
  # counts it apart.
  memory["peak"] = int(getattr(stats, "peak_memory_in_bytes", 0)) or (
    memory["argument"] + memory["output"] - memory["alias"] + memory["temp"]
  )
  return Compiled(program, shape, text, memory, seconds, sizes, num_params, bucket=capacities)


def compile_and_print(lowered, options: dict[str, str] | None = None) -> tuple[Any, str]:
  """(the executable, its optimised HLO text with the compiler's cycle estimates)."""
  if not CANNOT_PRINT:
    compiled = lowered.compile(compiler_options=options or None)
    return compiled, compiled.as_text()
  with tempfile.TemporaryDirectory() as folder:
    compiled = lowered.compile(
      compiler_options=(options or {}) | {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
    )
    written = next(pathlib.Path(folder).glob("*after_codegen.txt"), None)  # a TPU's compiler only
    return compiled, compiled.as_text() if written is None else written.read_text()


def abstract_batch(cfg: RunConfig) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes of one global batch: the data config's `batch_fields`, for which no corpus is read, or
  those of a first batch.
  """
  fields = cfg.data.batch_fields
  if fields is None:
    fields = {
      name: (x.shape, x.dtype) for name, x in next(iter(cfg.data.build("train", seed=0))).items()
    }
  return {name: jax.ShapeDtypeStruct(*field) for name, field in fields.items()}


def abstract_special_tokens(cfg: RunConfig) -> SpecialTokens:
  """Those of the data, or, where the tokenizer's file is not here, the last ids of the model's
  vocabulary: what is compiled does not depend on which they are.
  """
  try:
    return cfg.data.special_tokens
  except ConfigError:
    names = [field.name for field in dataclasses.fields(SpecialTokens)]
    return SpecialTokens.after(cfg.model.vocab_size - len(names), tuple(names))


def _lower(built: Program, program: str, mesh, decode_rows, bucket):
  batch = {
    name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch_sharding(mesh))
    for name, x in abstract_batch(built.cfg).items()
  }
  if program == "train":
    return built.step.lower(built.state, batch, built.frozen, bucket=bucket)
  if program == "eval":
    return built.evaluate.lower(
      built.state.params, batch, built.state.objective, built.frozen, bucket=bucket
    )
  model = built.cfg.model
  if not model.decodes:
    raise ConfigError(
      f"model {type(model).__name__} has no decoding state, so there is no decode step to compile"
    )
  rows = decode_rows or mesh.shape["data"] * mesh.shape["fsdp"]

  def shapes(rows):
    return jax.eval_shape(lambda: model.init_state(rows, built.cfg.data.seq_len))

  state = jax.tree.map(lambda x, more: _with_rows(x, more, mesh), shapes(rows), shapes(2 * rows))
  token_B1 = jax.ShapeDtypeStruct((rows, 1), jnp.int32, sharding=batch_sharding(mesh))

  def step(params, token_B1, state):
    logits_BTV, state = built.model.apply({"params": params}, token_B1, state, method="extend")
    return jnp.argmax(logits_BTV[:, 0], axis=-1).astype(jnp.int32), state

  options = compiler_options(mesh.devices.flat[0].device_kind)
  return jax.jit(step, donate_argnums=2, compiler_options=options).lower(
    built.state.params, token_B1, state
  )


def _with_rows(x, more, mesh):
  """A cache leaf with its batch axis, the one that is longer in `more`, split over the batch axes."""
  devices = mesh.shape["data"] * mesh.shape["fsdp"]
  spec = [BATCH_AXES if a != b and a % devices == 0 else None for a, b in zip(x.shape, more.shape)]
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, PartitionSpec(*spec)))


def _state_bytes(state: Any) -> dict[str, int]:
  """Bytes that one device holds of each part of the train state."""

  def held(tree):
    return sum(
      int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize
      for x in jax.tree.leaves(tree)
    )

  return {
    "parameters": held(state.params),
    "optimizer": held(state.opt_state),
    "other": held((state.ema, state.objective, state.step, state.skipped, state.skipped_in_row)),
  }
