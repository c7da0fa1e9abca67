"""The TPU kernels of gla and of the delta rules compiled for TPUs that are not there, forward and
backward.
"""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from topologies import ONE_CHIP, mesh_of

from jaxlm.kernels.delta_rule import delta_rule
from jaxlm.kernels.delta_rule import shapes as delta_shapes
from jaxlm.kernels.gla import gla
from jaxlm.kernels.gla import shapes as gla_shapes

pytestmark = pytest.mark.compile

#: One row of 256 tokens: the grid repeats itself along batch and length.
CASES = [("gla", (1, 256, *shape[2:])) for shape in gla_shapes.PAPER.values()] + [
  (kind, (1, 256, *shape[2:]))
  for shape in delta_shapes.PAPER.values()
  for kind in ("delta", "gated")
]


def lowered(mesh, kind, shape, dtype=jnp.bfloat16, batch=None, heads=None):
  B, T, N, H, E = shape

  def place(shape, dtype, *s):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*s)))

  def per_token(dtype, *width):
    return place((B, T, N, *width), dtype, batch, None, heads)

  args = [per_token(dtype, H), per_token(dtype, H), per_token(dtype, E)]
  if kind == "gla":
    args.append(per_token(jnp.float32, H))
  else:
    args += [per_token(jnp.float32)] * (2 if kind == "gated" else 1)
  state = place((B, N, H, E), jnp.float32, batch, heads)
  ids = place((B, T), jnp.int32, batch)

  def loss(state, ids, *args):
    o, state = (gla if kind == "gla" else delta_rule)(
      *args,
      initial_state_BNHE=state,
      segment_ids_BT=ids,
      implementation="pallas",
      spec=P(batch, None, heads, None),
    )
    return jnp.sum(jnp.square(o.astype(jnp.float32))) + jnp.sum(state)

  with jax.set_mesh(mesh), jax.default_matmul_precision("default"):
    wanted = (0, *range(2, 2 + len(args)))
    return jax.jit(jax.value_and_grad(loss, wanted)).lower(state, ids, *args)


def kernels(program) -> int:
  return program.as_text().count("@tpu_custom_call")


@pytest.mark.parametrize("chip", ONE_CHIP)
@pytest.mark.parametrize("kind,shape", CASES, ids=[kind for kind, _ in CASES])
def test_the_kernels_compile_at_every_paper_shape(chip, kind, shape):
  program = lowered(mesh_of(ONE_CHIP[chip], data=1), kind, shape)
  assert kernels(program) == 2
  program.compile()


@pytest.mark.parametrize("kind", ["gla", "gated"])
def test_odd_sizes_compile(kind):
  program = lowered(mesh_of(ONE_CHIP["v5e"], data=1), kind, (2, 130, 2, 64, 128), dtype=jnp.float32)
  assert kernels(program) == 2
  program.compile()


def test_on_a_mesh_each_device_has_its_rows_and_heads():
  mesh = mesh_of("v5e:2x2", fsdp=2, tensor=2)
  program = lowered(mesh, "gated", (2, 256, 4, 128, 128), batch="fsdp", heads="tensor")
  assert kernels(program) == 2
  program.compile()
