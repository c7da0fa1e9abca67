"""jaxlm: research language models in JAX, one set of parts, checked against the authors' arrays."""

__version__ = "0.1.0"
__all__ = ["open_model"]


def __getattr__(name: str):
  if name == "open_model":  # imported when it is asked for, so that `import jaxlm` stays cheap
    from jaxlm.checkpoint.opening import open_model

    return open_model
  raise AttributeError(f"module 'jaxlm' has no attribute {name!r}")
