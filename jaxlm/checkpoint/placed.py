"""Abstract parameters of a model with the places that they are read to."""

import flax.linen as nn
import jax

from jaxlm.models import base
from jaxlm.parallel.rules import param_shardings


def abstract_params(model, mesh=None):
  """`jax.ShapeDtypeStruct`s with shardings: over the mesh by the model's rules, or whole on the
  first local device.
  """
  boxed = base.abstract_params(model)
  params = nn.unbox(boxed)
  if mesh is not None:
    shardings = param_shardings(boxed, mesh, model=model)
  else:
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shardings = jax.tree.map(lambda _: here, params)
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), params, shardings
  )
