"""How many floating-point operations the matrix products of a traced function take."""

import jax
import numpy as np


def dot_flops(fn, *args):
  """FLOPs of the matrix products of a traced function, those in scans as often as they run: what a
  compiler is given.
  """

  def walk(jaxpr, times):
    total = 0
    for eqn in jaxpr.eqns:
      if eqn.primitive.name == "dot_general":
        (contract, _), _ = eqn.params["dimension_numbers"]
        total += (
          times
          * 2
          * int(np.prod(eqn.outvars[0].aval.shape))
          * int(np.prod([eqn.invars[0].aval.shape[i] for i in contract]))
        )
      inner = times * eqn.params.get("length", 1) if eqn.primitive.name == "scan" else times
      for value in eqn.params.values():
        for sub in value if isinstance(value, (tuple, list)) else (value,):
          if hasattr(sub, "eqns"):
            total += walk(sub, inner)
          elif hasattr(sub, "jaxpr"):
            total += walk(sub.jaxpr, inner)
    return total

  return walk(jax.make_jaxpr(fn)(*args).jaxpr, 1)
