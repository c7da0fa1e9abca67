"""Output projection and log softmax in one op, without the (batch, length, vocabulary) array."""

from jaxlm.kernels.linear_cross_entropy.api import linear_cross_entropy
from jaxlm.kernels.operation import callable_package

__all__ = ["linear_cross_entropy"]

callable_package(linear_cross_entropy)
