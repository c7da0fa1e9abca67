from jaxlm.kernels.delta_rule.api import delta_rule
from jaxlm.kernels.operation import callable_package

__all__ = ["delta_rule"]

callable_package(delta_rule)
