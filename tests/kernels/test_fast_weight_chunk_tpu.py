"""The TPU kernels of fast_weight_chunk compiled for TPUs that are not there, forward and backward."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from topologies import ONE_CHIP, mesh_of

from jaxlm.kernels.fast_weight_chunk import Causal, Rule, fast_weight_chunk, pallas_tpu
from jaxlm.kernels.fast_weight_chunk.shapes import PAPER

pytestmark = pytest.mark.compile


def lowered(mesh, B, N, T, H, F, schedule, spec=(None, None, None), **options):
  def place(shape, dtype, spec):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*spec)))

  weights = tuple(place((B, N, *s), jnp.float32, spec[:2]) for s in ((F, H), (H, F), (F, H)))
  x = place((B, N, T, H), jnp.bfloat16, spec)
  eta = (place((B, N, T, 1), jnp.float32, spec),) * 3

  def loss(weights, q, k, v, eta):
    o, _ = fast_weight_chunk(
      weights,
      q,
      k,
      v,
      eta,
      schedule=schedule,
      rule=Rule(dtype="bfloat16"),
      spec=P(*spec),
      **options,
    )
    return jnp.sum(o.astype(jnp.float32))

  with jax.set_mesh(mesh):
    return jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3, 4))).lower(weights, x, x, x, eta)


def kernels(program) -> int:
  return program.as_text().count("@tpu_custom_call")


@pytest.mark.parametrize("chip", ONE_CHIP)
@pytest.mark.parametrize("case", PAPER)
def test_the_kernels_compile_at_the_papers_widths(chip, case):
  """The four kernels without what XLA compiles around them, which takes minutes."""
  B, N, H, F, C = PAPER[case]
  mesh, rule = mesh_of(ONE_CHIP[chip], data=1), Rule(dtype="bfloat16")
  place = NamedSharding(mesh, P())

  def struct(shape, dtype):
    return jax.ShapeDtypeStruct((B, N, *shape), dtype, sharding=place)

  weights = tuple(struct(s, jnp.float32) for s in ((F, H), (H, F), (F, H)))
  x, eta = struct((C, H), jnp.bfloat16), (struct((C, 1), jnp.float32),) * 3

  def loss(weights, q, k, v, eta):
    moved = pallas_tpu.step(rule, weights, k, v, eta)
    return jnp.sum(pallas_tpu.read(rule, moved, q).astype(jnp.float32))

  with jax.set_mesh(mesh):
    program = jax.jit(jax.grad(loss, (0, 1, 2, 3, 4))).lower(weights, x, x, x, eta)
    assert kernels(program) == 3  # nobody reads what was read
    program.compile()


def test_on_a_mesh_each_device_has_its_rows_heads_and_tokens():
  program = lowered(
    mesh_of("v5e:2x4", fsdp=2, tensor=2, sequence=2),
    2,
    2,
    600,
    192,
    320,
    Causal(256),
    ("fsdp", "tensor", "sequence"),
    implementation="pallas",
  )
  assert kernels(program) >= 4
  text = program.compile().as_text()
  assert "all-reduce" in text  # of the steps, over the devices that share a chunk's tokens
  # Tokens come in contiguous pieces and go into chunks that devices share: they are gathered over
  # `sequence`, the last axis, and nothing is gathered over another one.
  axes = re.findall(r" all-gather\(.*?replica_groups=mesh\[[^]]*\] \{([^}]*)\}", text)
  assert set(axes) == {"'axis_2'"}


@pytest.mark.parametrize("chip, chosen", [("v5e", True), ("v5p", False), ("v6e", True)])
def test_they_are_the_default_where_their_estimate_is_better(chip, chosen):
  mesh = mesh_of(ONE_CHIP[chip], data=1)
  assert (kernels(lowered(mesh, 1, 1, 256, 384, 384, Causal(128))) > 0) == chosen
  assert kernels(lowered(mesh, 1, 1, 256, 128, 128, Causal(128))) == 0
