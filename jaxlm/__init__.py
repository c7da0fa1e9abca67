"""jaxlm: research language models in JAX, one set of parts, checked against the authors' arrays."""

__version__ = "0.1.0"
