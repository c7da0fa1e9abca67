"""Output projection and log softmax in one op, without the (batch, length, vocabulary) array."""

from jaxlm.kernels.linear_cross_entropy.api import linear_cross_entropy

__all__ = ["linear_cross_entropy"]
