"""Devices of TPUs that are not there, one chip or several, for tests marked `compile`."""

import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

ONE_CHIP = {"v5e": "v5e:1x1", "v5p": "v5p:2x2x1", "v6e": "v6e:1x1"}


def mesh_of(topology: str, **axes: int) -> Mesh:
  """A mesh of the first devices of a topology, as many as the axes ask for."""
  pytest.importorskip("libtpu")
  from jax.experimental import topologies

  devices = np.array(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
  shape = tuple(axes.values())
  return Mesh(
    devices[: np.prod(shape)].reshape(shape), tuple(axes), axis_types=(AxisType.Auto,) * len(shape)
  )
