"""Where does a new chunk start? A cosine between neighbours."""

from jaxlm.kernels.operation import callable_package
from jaxlm.kernels.route.api import Route, route

__all__ = ["Route", "route"]

callable_package(route)
