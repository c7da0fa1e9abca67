"""The TPU kernels of ema_upsample and of the moves of rows, compiled for TPUs that are not there."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from topologies import ONE_CHIP, mesh_of

from jaxlm.kernels.compact import compact, gather, upsample
from jaxlm.kernels.ema_upsample import blocks, ema_upsample, shapes

pytestmark = pytest.mark.compile


def lowered(mesh, shape, dtype=jnp.bfloat16, batch=None, implementation="pallas"):
  """gather, ema_upsample and upsample with their gradients."""
  B, T, C, D = shape

  def place(shape, dtype):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(batch)))

  options = dict(implementation=implementation, spec=P(batch, None, None))

  def loss(h, x, p, keep):
    slots = compact(keep, C)
    z = gather(h, slots, **options) + x
    y, last = ema_upsample(z, p, slots, **options)
    again = upsample(x, slots, **options)
    return jnp.sum(y**2) + jnp.sum(last) + jnp.sum(jnp.square(again.astype(jnp.float32)))

  args = (
    place((B, T, D), dtype),
    place((B, C, D), dtype),
    place((B, C), jnp.float32),
    place((B, T), jnp.bool_),
  )
  with jax.set_mesh(mesh), jax.default_matmul_precision("default"):
    return jax.jit(jax.value_and_grad(loss, (0, 1, 2))).lower(*args)


def kernels(program) -> int:
  return program.as_text().count("@tpu_custom_call")


@pytest.mark.parametrize("chip", ONE_CHIP)
@pytest.mark.parametrize(
  "case",
  [
    dict(shape=shapes.HNET_1STAGE),
    dict(shape=shapes.HNET_2STAGE),
    dict(shape=(2, 300, 140, 72), dtype=jnp.float32),
  ],
  ids=["one_stage", "inner_stage", "float32"],
)
def test_the_kernels_compile_forward_and_backward(chip, case):
  program = lowered(mesh_of(ONE_CHIP[chip], data=1), **case)
  assert kernels(program) == 6
  program.compile()


def test_on_a_mesh_each_device_takes_its_rows():
  program = lowered(mesh_of("v5e:2x2", data=4), (4, 1024, 384, 1024), batch="data")
  assert kernels(program) == 6
  program.compile()


@pytest.mark.parametrize(
  "chip, kind", [("v5e", "TPU v5 lite"), ("v5p", "TPU v5"), ("v6e", "TPU v6 lite")]
)
def test_smoothing_is_the_default_where_the_table_says_so(chip, kind):
  program = lowered(mesh_of(ONE_CHIP[chip], data=1), (1, 1024, 384, 1024), implementation=None)
  assert kernels(program) == 2 * (kind in blocks.PREFERRED)  # rows are moved by XLA
