"""The TPU kernels of ssd compiled for TPUs that are not there, forward and backward."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from topologies import ONE_CHIP, mesh_of

from jaxlm.kernels.ssd import shapes, ssd

pytestmark = pytest.mark.compile

#: (B, T, N, H, K, E) of one device: the grid repeats itself along batch and length.
ONE_ROW = {name: (1, 512, *shape[2:]) for name, shape in shapes.PAPER.items()}


def lowered(
  mesh, shape, dtype=jnp.bfloat16, resets=True, batch=None, heads=None, implementation="pallas"
):
  B, T, N, H, K, E = shape

  def place(shape, dtype, *s):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*s)))

  args = (
    place((B, T, N, H), dtype, batch, None, heads),
    place((B, T, N), jnp.float32, batch, None, heads),
    place((N,), jnp.float32, heads),
    place((B, T, K, E), dtype, batch),
    place((B, T, K, E), dtype, batch),
    place((N,), jnp.float32, heads),
    place((B, N, H, E), jnp.float32, batch, heads),
  )
  reset = place((B, T), bool, batch) if resets else None

  def loss(x, dt, a, b, c, d, state, reset):
    y, state = ssd(
      x,
      dt,
      a,
      b,
      c,
      d_N=d,
      initial_state_BNHE=state,
      reset_BT=reset,
      implementation=implementation,
      spec=P(batch, None, heads, None),
    )
    return jnp.sum(jnp.square(y.astype(jnp.float32))) + jnp.sum(state)

  with jax.set_mesh(mesh), jax.default_matmul_precision("default"):
    return jax.jit(jax.value_and_grad(loss, range(7))).lower(*args, reset)


def kernels(program) -> int:
  return program.as_text().count("@tpu_custom_call")


@pytest.mark.parametrize("chip", ONE_CHIP)
@pytest.mark.parametrize("name", ONE_ROW)
def test_the_kernels_compile_at_every_paper_shape(chip, name):
  program = lowered(mesh_of(ONE_CHIP[chip], data=1), ONE_ROW[name])
  assert kernels(program) == 2
  B, T, N, H, _, E = ONE_ROW[name]
  blocks, states = B * T * N * H, B * T // 128 * N * H * E
  # y, dy, their float32 squares, the states at chunk starts and parts of db and dc per block of heads;
  # a (T, chunk) square per head would be 4 B T N 128 alone, for each of its uses.
  assert program.compile().memory_analysis().temp_size_in_bytes < 16 * blocks + 8 * states + 2**23


@pytest.mark.parametrize(
  "case",
  [
    dict(shape=(2, 300, 4, 64, 2, 128), dtype=jnp.float32),
    dict(shape=(1, 100, 3, 64, 1, 64), resets=False),
    dict(shape=(1, 130, 8, 16, 1, 16)),
  ],
  ids=["float32, two groups", "three heads", "small"],
)
def test_odd_sizes_compile(case):
  program = lowered(mesh_of(ONE_CHIP["v5e"], data=1), **case)
  assert kernels(program) == 2
  program.compile()


def test_on_a_mesh_each_device_has_its_rows_and_heads():
  program = lowered(
    mesh_of("v5e:2x2", fsdp=2, tensor=2), (2, 256, 32, 64, 1, 128), batch="fsdp", heads="tensor"
  )
  assert kernels(program) == 2
  program.compile()


@pytest.mark.parametrize("chip", ONE_CHIP)
def test_the_kernels_are_the_default(chip):
  mesh = mesh_of(ONE_CHIP[chip], data=1)
  assert kernels(lowered(mesh, (1, 512, 32, 64, 1, 128), implementation=None)) == 2
