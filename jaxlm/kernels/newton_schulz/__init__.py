from jaxlm.kernels.newton_schulz.api import LANGUAGE, VIEWS, coefficients, newton_schulz

__all__ = ["LANGUAGE", "VIEWS", "coefficients", "newton_schulz"]
