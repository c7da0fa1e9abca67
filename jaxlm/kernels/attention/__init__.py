"""Softmax attention with masks and biases computed from positions."""

from jaxlm.kernels.attention.api import attention, attention_weights
from jaxlm.kernels.attention.bias import BucketBias, CoPE, KeyBias, LinearBias, relative_bucket
from jaxlm.kernels.operation import callable_package

__all__ = [
  "attention",
  "attention_weights",
  "LinearBias",
  "KeyBias",
  "BucketBias",
  "CoPE",
  "relative_bucket",
]

callable_package(attention)
