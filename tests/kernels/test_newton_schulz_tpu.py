"""The TPU kernels of newton_schulz compiled for TPUs that are not there, forward and backward."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from topologies import ONE_CHIP, mesh_of

from jaxlm.kernels.newton_schulz import coefficients, newton_schulz
from jaxlm.kernels.newton_schulz.shapes import PAPER

pytestmark = pytest.mark.compile


def lowered(mesh, shape, kind="language", spec=None, **options):
  g = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, P(*(spec or ()))))

  def loss(g):
    return jnp.sum(newton_schulz(g, coefficients(kind), spec=spec, **options))

  with jax.set_mesh(mesh):
    return jax.jit(jax.value_and_grad(loss)).lower(g)


def kernels(program) -> int:
  return program.as_text().count("@tpu_custom_call")


@pytest.mark.parametrize("chip", ONE_CHIP)
@pytest.mark.parametrize("case", PAPER)
def test_the_kernels_compile(chip, case):
  mesh = mesh_of(ONE_CHIP[chip], data=1)
  program = lowered(mesh, PAPER[case], dtype="bfloat16", implementation="pallas")
  assert kernels(program) == 2
  program.compile()


def test_odd_matrices_in_float32_and_a_mesh():
  mesh = mesh_of("v5e:2x2", fsdp=4)
  program = lowered(mesh, (4, 100, 60), "views", P("fsdp"), implementation="pallas")
  assert kernels(program) == 2
  assert "all-gather" not in program.compile().as_text()


def test_they_are_not_the_default():
  """Their estimate is not 1.3 times better anywhere (kernels/README.md)."""
  for chip in ONE_CHIP.values():
    assert kernels(lowered(mesh_of(chip, data=1), (1, 384, 384), dtype="bfloat16")) == 0
