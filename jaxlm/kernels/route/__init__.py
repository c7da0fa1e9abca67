"""Where does a new chunk start? A cosine between neighbours."""

from jaxlm.kernels.route.api import Route, route

__all__ = ["Route", "route"]
