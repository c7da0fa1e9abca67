"""A function of rows and weights, with the batch shared among devices."""

import jax


def over_rows(fn, spec, rows, weights):
  """fn(*rows, *weights) under shard_map where the context mesh has several devices.

  rows: arrays whose first axis is the batch, shared as spec says. weights: whole on every device;
  their gradients are added up over devices. The result's first axis is the batch.
  """
  if spec is None or jax.sharding.get_abstract_mesh().size <= 1:
    return fn(*rows, *weights)
  batch = jax.P((*spec, None)[0])
  specs = (batch,) * len(rows) + (jax.P(),) * len(weights)
  return jax.shard_map(fn, in_specs=specs, out_specs=batch, check_vma=False)(*rows, *weights)
