"""The gradient of an output projection, scattered in the two pieces that SparseCores want, is the sum."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxlm.kernels.linear_cross_entropy import sharded


@pytest.mark.parametrize("V", [128 * 17 + 5, 128 * 17, 128 * 2, 5])
def test_in_two_pieces_as_in_one(V, monkeypatch):
  monkeypatch.setattr(sharded, "target_device_kind", lambda: sharded.SPARSE_CORES[0])
  mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))
  dw = np.random.default_rng(0).integers(-9, 9, (8, V, 16)).astype(np.float32)
  with jax.set_mesh(mesh):
    out = jax.jit(
      jax.shard_map(
        lambda x: sharded.scattered(x[0], ("fsdp",), whole=True),
        in_specs=P("fsdp"),
        out_specs=P(None, "fsdp"),
        check_vma=False,
      )
    )(dw)
  np.testing.assert_array_equal(out, dw.sum(0))  # small integers: exact
