"""Which input tokens a prediction depends on: methods behind one contract (`Question`)."""

from jaxlm.analysis.attribution.base import METHODS, Method, Question

__all__ = ["METHODS", "Method", "Question"]
