"""The TPU kernels of carope_rotate compiled for TPUs that are not there, forward and backward."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from topologies import ONE_CHIP, mesh_of

from jaxlm.kernels.phase import blocks, carope_rotate, shapes

pytestmark = pytest.mark.compile


def lowered(
  mesh, shape, dtype=jnp.bfloat16, packed=False, spec=(None,) * 3, implementation="pallas"
):
  B, T, N, K, H = shape

  def place(shape, dtype):
    return jax.ShapeDtypeStruct(
      shape, dtype, sharding=NamedSharding(mesh, P(*spec[: min(len(shape), 3)]))
    )

  args = (
    place((B, T, N, H), dtype),
    place((B, T, K, H), dtype),
    place((B, T, K), jnp.float32),
    place((B, T), jnp.int32) if packed else None,
  )

  def loss(q, k, log_f, segments):
    q, k, final = carope_rotate(
      q,
      k,
      log_f,
      rotary_dim=H,
      segment_ids_BT=segments,
      implementation=implementation,
      spec=P(*spec),
    )
    return sum(jnp.sum(jnp.square(x.astype(jnp.float32))) for x in (q, k, final))

  with jax.set_mesh(mesh), jax.default_matmul_precision("default"):
    return jax.jit(jax.value_and_grad(loss, (0, 1, 2))).lower(*args)


def kernels(program) -> int:
  return program.as_text().count("@tpu_custom_call")


@pytest.mark.parametrize("chip", ONE_CHIP)
@pytest.mark.parametrize(
  "case",
  [
    dict(shape=shapes.CAROPE_SMALL),
    dict(shape=shapes.CAROPE_REDUCED, packed=True),
    dict(shape=shapes.LONG_ROWS),
    dict(shape=(1, 1000, 32, 8, 128), packed=True),
    dict(shape=(1, 100, 4, 4, 64), dtype=jnp.float32),
    dict(shape=(1, 512, 9, 3, 64), packed=True),
    dict(shape=(1, 256, 2, 1, 32)),
    dict(shape=(1, 256, 4, 4, 96)),
  ],
  ids=["small", "reduced", "long", "grouped", "float32", "shared 64", "one of 32", "96"],
)
def test_the_kernels_compile_and_no_phases_reach_memory(chip, case):
  program = lowered(mesh_of(ONE_CHIP[chip], data=1), **case)
  assert kernels(program) == 2
  B, T, N, K, H = case["shape"]
  size = jnp.dtype(case.get("dtype", jnp.bfloat16)).itemsize
  # q and k as turned, their gradients in another layout, log f: phases, cosines and
  # sines in float32 would add 6 B T K H.
  memory = program.compile().memory_analysis()
  assert memory.temp_size_in_bytes < 6 * size * B * T * (N + K) * H + 2**22


def test_time_may_be_sharded():
  mesh = mesh_of("v5e:2x2", sequence=2, tensor=2)
  program = lowered(mesh, (2, 1024, 8, 8, 64), spec=(None, "sequence", "tensor"))
  assert kernels(program) == 2
  program.compile()


@pytest.mark.parametrize(
  "chip, kind", [("v5e", "TPU v5 lite"), ("v5p", "TPU v5"), ("v6e", "TPU v6 lite")]
)
def test_it_is_the_default_where_the_table_says_so(chip, kind):
  program = lowered(mesh_of(ONE_CHIP[chip], data=1), (2, 512, 12, 12, 64), implementation=None)
  assert kernels(program) == 2 * (kind in blocks.PREFERRED)
