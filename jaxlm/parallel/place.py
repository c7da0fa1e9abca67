"""Where arrays live: optimizer state beside its parameter, batches split over the batch axes."""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxlm.config import ConfigError
from jaxlm.parallel.mesh import BATCH_AXES
from jaxlm.parallel.rules import path_name


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """(B, ...) fields: rows over data x fsdp."""
  return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def like_params(tree, params, shardings, mesh: Mesh):
  """Shardings for a tree that holds copies of `params` (moments, averages) among other things.

  A leaf whose path ends in a parameter's path and whose shape is the parameter's lies where the
  parameter lies; everything else (counters) is replicated. All arguments but the mesh are abstract.
  """
  by_path = {
    path_name(path): (leaf.shape, sharding)
    for (path, leaf), sharding in zip(jax.tree.leaves_with_path(params), jax.tree.leaves(shardings))
  }

  def sharding(path, leaf):
    keys = path_name(path).split("/")
    for start in range(len(keys)):
      shape, found = by_path.get("/".join(keys[start:]), (None, None))
      if found is not None and shape == leaf.shape:
        return found
    return replicated(mesh)

  return jax.tree.map_with_path(sharding, tree)


def placer(mesh: Mesh) -> Callable:
  """batch -> the same tree of global arrays; each process gives its own rows (numpy, leading axis B
  / hosts).
  """
  sharding = batch_sharding(mesh)
  if jax.process_count() == 1:
    return lambda batch: jax.device_put(batch, sharding)
  return lambda batch: jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch
  )


def host_rows(mesh: Mesh) -> tuple[int, int]:
  """(index, count): which part of every global batch this process reads.

  Processes whose devices differ only along `sequence` or `tensor` hold the same rows and must read
  the same ones.
  """
  num_parts = mesh.shape["data"] * mesh.shape["fsdp"]
  rows = {}
  for (i, j, *_), device in np.ndenumerate(mesh.devices):
    rows.setdefault(device.process_index, set()).add(i * mesh.shape["fsdp"] + j)
  parts = sorted({tuple(sorted(held)) for held in rows.values()})
  if sum(map(len, parts)) != num_parts or len({len(part) for part in parts}) != 1:
    raise ConfigError(
      f"mesh {dict(mesh.shape)}: the processes hold overlapping parts of the batch {parts}; "
      "choose data x fsdp so that each process holds whole rows of the mesh"
    )
  return parts.index(tuple(sorted(rows[jax.process_index()]))), len(parts)
