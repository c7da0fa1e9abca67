"""A table's rows on a mesh are those of one device, and so is the table's gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlm.layers.lookup import lookup
from jaxlm.parallel.mesh import MeshConfig, make_mesh

V, D = 11, 8


def run(table, tokens, mesh=None, spec=None, table_spec=None):
  g = jax.random.normal(jax.random.key(1), (*tokens.shape, D))

  def loss(table, tokens):
    x = lookup(table, tokens, spec, table_spec)
    return jnp.sum(x * g), x

  f = jax.jit(jax.value_and_grad(loss, has_aux=True))
  if mesh is None:
    (_, x), d = f(table, tokens)
  else:
    with jax.set_mesh(mesh):
      (_, x), d = f(
        jax.device_put(table, NamedSharding(mesh, table_spec)),
        jax.device_put(tokens, NamedSharding(mesh, P(*spec[:2]))),
      )
  return np.asarray(x), np.asarray(d)


@pytest.mark.parametrize(
  "axes, spec, table_spec",
  [
    (dict(data=2, fsdp=4), P(("data", "fsdp"), None, None), P(None, "fsdp")),
    (dict(data=8, fsdp=1), P(("data", "fsdp"), None, None), P(None, "fsdp")),
    (dict(data=1, fsdp=2, sequence=4), P(("data", "fsdp"), "sequence", None), P(None, "fsdp")),
    (dict(data=2, fsdp=2, sequence=2), P(("data", "fsdp"), "sequence", None), P(None, "fsdp")),
  ],
)
def test_on_a_mesh_as_on_one_device(axes, spec, table_spec):
  table = jax.random.normal(jax.random.key(0), (V, D))
  tokens = jax.random.randint(jax.random.key(2), (8, 12), -2, V + 3)  # outside: first or last row
  want = run(table, tokens)
  got = run(table, tokens, make_mesh(MeshConfig(**axes)), spec, table_spec)
  np.testing.assert_array_equal(got[0], want[0])
  # At most 96 terms of unit size per row, float32, in another order.
  np.testing.assert_allclose(got[1], want[1], rtol=0, atol=96 * 2**-23)


def test_rows_that_the_mesh_does_not_divide_are_left_to_the_partitioner():
  table = jax.random.normal(jax.random.key(0), (V, D))
  tokens = jax.random.randint(jax.random.key(2), (8, 12), 0, V)
  g = jnp.ones((3, 12, D))
  mesh = make_mesh(MeshConfig(data=2, fsdp=4))
  with jax.set_mesh(mesh):
    f = jax.jit(
      jax.grad(
        lambda e: jnp.sum(
          lookup(e, tokens[:3], P(("data", "fsdp"), None, None), P(None, "fsdp")) * g
        )
      )
    )
    got = np.asarray(f(table))
  np.testing.assert_array_equal(got.sum(), 3 * 12 * D)
