"""Where a NaN arose, for `train.debug`: which step, which layer, which line."""

import pathlib
from collections.abc import Callable

import flax.linen as nn
import jax

#: Packages whose lines say nothing about the model.
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy", "contextlib", "functools")


def located(error: FloatingPointError, step: int, again: Callable) -> FloatingPointError:
  """The error whose text names the step and the place. again: makes the step once more, where its
  buffers still exist.

  The compiled step is repeated by JAX operation by operation, but a loop over layers is one
  operation to it. Without compilation the loop is a loop.
  """
  try:
    with jax.disable_jit():
      again()
  except FloatingPointError as closer:
    error = closer
  except Exception:  # buffers given up, an operation that needs compilation: what is known is said
    pass
  return FloatingPointError(f"step {step}: {str(error).splitlines()[0]}{place(error)}")


def place(error: BaseException) -> str:
  """' in layer blocks/mlp (norm.py, line 12)', as far as the traceback says it."""
  layer, line, trace = None, None, error.__traceback__
  while trace is not None:
    frame = trace.tb_frame
    if frame.f_globals.get("__name__", "").split(".")[0] not in LIBRARIES:
      line = f"{pathlib.Path(frame.f_code.co_filename).name}, line {trace.tb_lineno}"
      module = frame.f_locals.get("self")
      if isinstance(module, nn.Module) and module.scope is not None:
        layer = "/".join(module.path) or type(module).__name__
    trace = trace.tb_next
  return (f" in layer {layer}" if layer else ", outside the layers") + (
    f" ({line})" if line else ""
  )
