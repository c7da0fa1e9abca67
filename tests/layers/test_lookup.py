"""A table's rows on a mesh are those of one device, and so is the table's gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlm.layers.lookup import lookup
from jaxlm.parallel.mesh import MeshConfig, make_mesh

SPEC, TABLE_SPEC = P(("data", "fsdp"), "sequence", None), P("tensor", "fsdp")


def run(table, tokens, mesh=None):
  """(rows, gradient of the table) of a random linear loss."""
  g = jax.random.normal(jax.random.key(1), (*tokens.shape, table.shape[1]))

  def loss(table, tokens):
    x = lookup(table, tokens, SPEC, TABLE_SPEC)
    return jnp.sum(x * g), x

  both = jax.grad(loss, has_aux=True)
  if mesh is None:
    d, x = jax.jit(both)(table, tokens)
  else:
    split = all(n % mesh.shape[a] == 0 for n, a in zip(table.shape, ("tensor", "fsdp")))
    place = NamedSharding(mesh, TABLE_SPEC if split else P())
    with jax.set_mesh(mesh):
      d, x = jax.jit(both, out_shardings=(place, None))(jax.device_put(table, place), tokens)
  return np.asarray(x), np.asarray(d)


@pytest.mark.parametrize("V", [8, 64])  # fewer and more rows than a device has tokens
@pytest.mark.parametrize(
  "axes, D",
  [
    (dict(data=2, fsdp=4), 8),
    (dict(data=8, fsdp=1), 8),
    (dict(data=1, fsdp=8), 8),
    (dict(data=2, fsdp=4), 6),  # columns that fsdp does not divide
    (dict(data=1, fsdp=2, sequence=4), 8),
    (dict(data=2, fsdp=2, sequence=2), 8),
    (dict(data=2, fsdp=2, tensor=2), 8),
    (dict(data=1, fsdp=1, tensor=8), 8),
  ],
)
def test_on_a_mesh_as_on_one_device(axes, D, V):
  table = jax.random.normal(jax.random.key(0), (V, D))
  tokens = jax.random.randint(jax.random.key(2), (8, 12), -2, V + 3)  # outside: first or last row
  want = run(table, tokens)
  got = run(table, tokens, make_mesh(MeshConfig(**axes)))
  np.testing.assert_array_equal(got[0], want[0])
  # At most 96 terms of unit size per row, float32, in another order.
  np.testing.assert_allclose(got[1], want[1], rtol=0, atol=96 * 2**-23)


def test_rows_that_the_mesh_does_not_divide_are_left_to_the_partitioner():
  table = jax.random.normal(jax.random.key(0), (16, 8))
  tokens = jax.random.randint(jax.random.key(2), (3, 12), 0, 16)
  want = run(table, tokens)
  got = run(table, tokens, make_mesh(MeshConfig(data=2, fsdp=4)))
  np.testing.assert_array_equal(got[0], want[0])
  np.testing.assert_allclose(got[1], want[1], rtol=0, atol=36 * 2**-23)
