"""The TPU kernels of route, compiled for TPUs that are not there."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from topologies import ONE_CHIP, mesh_of

from jaxlm.kernels.route import blocks, route, shapes

pytestmark = pytest.mark.compile


def lowered(mesh, shape, dtype=jnp.bfloat16, batch=None, implementation="pallas"):
  """The probabilities with the gradients of rows, weights and the row before."""
  B, T, D = shape

  def place(shape, dtype, spec=None):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(spec)))

  def loss(x, w_q, w_k, previous, mask):
    options = dict(implementation=implementation, spec=P(batch, None, None))
    out = route(x, w_q, w_k, first_BT=mask, valid_BT=mask, previous_BD=previous, **options)
    return jnp.sum(out.p_BT**2)

  args = (
    place((B, T, D), dtype, batch),
    place((D, D), dtype),
    place((D, D), dtype),
    place((B, D), dtype, batch),
    place((B, T), jnp.bool_, batch),
  )
  with jax.set_mesh(mesh), jax.default_matmul_precision("default"):
    return jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3))).lower(*args)


def kernels(program) -> int:
  return program.as_text().count("@tpu_custom_call")


@pytest.mark.parametrize("chip", ONE_CHIP)
@pytest.mark.parametrize(
  "case",
  [
    dict(shape=shapes.HNET_1STAGE_L),
    dict(shape=shapes.HNET_2STAGE_XL_INNER),
    dict(shape=(2, 300, 256), dtype=jnp.float32),
  ],
  ids=["one_stage", "inner_stage", "float32"],
)
def test_the_kernels_compile_forward_and_backward(chip, case):
  program = lowered(mesh_of(ONE_CHIP[chip], data=1), **case)
  assert kernels(program) == 2
  program.compile()


def test_on_a_mesh_each_device_takes_its_rows():
  program = lowered(mesh_of("v5e:2x2", data=4), (4, 1024, 1024), batch="data")
  assert kernels(program) == 2
  program.compile()


@pytest.mark.parametrize(
  "chip, kind", [("v5e", "TPU v5 lite"), ("v5p", "TPU v5"), ("v6e", "TPU v6 lite")]
)
def test_the_kernels_are_the_default_where_the_table_says_so(chip, kind):
  program = lowered(mesh_of(ONE_CHIP[chip], data=1), shapes.HNET_1STAGE_L, implementation=None)
  assert kernels(program) == 2 * (kind in blocks.PREFERRED)
