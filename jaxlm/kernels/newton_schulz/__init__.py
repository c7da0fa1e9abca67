from jaxlm.kernels.newton_schulz.api import LANGUAGE, VIEWS, coefficients, newton_schulz
from jaxlm.kernels.operation import callable_package

__all__ = ["LANGUAGE", "VIEWS", "coefficients", "newton_schulz"]

callable_package(newton_schulz)
