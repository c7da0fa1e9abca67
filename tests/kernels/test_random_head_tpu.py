"""The TPU kernels of random_head compiled for TPUs that are not there, forward and backward."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from topologies import ONE_CHIP, mesh_of

from jaxlm.kernels.random_head import random_head

pytestmark = pytest.mark.compile


def lowered(
  mesh,
  B,
  T,
  V,
  D,
  dtype=jnp.bfloat16,
  learned=False,
  batch=None,
  words=None,
  implementation="pallas",
):
  def place(shape, dtype, *s):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*s)))

  args = (
    place((B, T, D), dtype, batch),
    place((V, D), dtype) if learned else None,
    place((B, 2), jnp.uint32, batch),
    place((B, T), jnp.int32, batch),
  )

  def loss(h, embed, seed, targets):
    return -jnp.sum(
      random_head(
        h,
        seed,
        targets,
        vocab_size=V,
        embed_VD=embed,
        probability=0.5 if learned else 1.0,
        implementation=implementation,
        spec=P(batch, None),
        vocab_spec=words,
      )[0]
    )

  with jax.set_mesh(mesh), jax.default_matmul_precision("default"):
    return jax.jit(jax.value_and_grad(loss, (0, 1) if learned else (0,))).lower(*args)


def kernels(program) -> int:
  return program.as_text().count("@tpu_custom_call")


@pytest.mark.parametrize("chip", ONE_CHIP)
@pytest.mark.parametrize(
  "case",
  [
    dict(B=8, T=512, V=257, D=1024),
    dict(B=8, T=512, V=32_768, D=1024, learned=True),
    dict(B=2, T=100, V=300, D=768, dtype=jnp.float32, learned=True),
  ],
  ids=["characters", "words", "float32"],
)
def test_the_kernels_compile_and_no_rows_reach_memory(chip, case):
  program = lowered(mesh_of(ONE_CHIP[chip], data=1), **case)
  assert kernels(program) == 1 + case.get("learned", False)
  memory = program.compile().memory_analysis()
  B, T, V, D = (case[k] for k in "BTVD")
  # The float32 gradient of learned rows, twice (a sum), and what positions need; one table per
  # sequence would be 2 B V D.
  assert (
    memory.temp_size_in_bytes
    < 8 * V * D * case.get("learned", False) + 12 * B * (T + 128) * D + 2**20
  )


def test_on_a_mesh_each_device_generates_its_range():
  program = lowered(
    mesh_of("v5e:2x2", fsdp=2, tensor=2), 4, 512, 32_768, 1024, batch="fsdp", words="tensor"
  )
  assert kernels(program) == 1
  program.compile()


@pytest.mark.parametrize("chip,chosen", [("v5e", 1), ("v5p", 0), ("v6e", 1)])
def test_it_is_the_default_where_its_estimate_is_better(chip, chosen):
  mesh = mesh_of(ONE_CHIP[chip], data=1)
  assert kernels(lowered(mesh, B=8, T=512, V=32_768, D=1024, implementation=None)) == chosen
  assert kernels(lowered(mesh, B=8, T=512, V=257, D=1024, implementation=None)) == 0
