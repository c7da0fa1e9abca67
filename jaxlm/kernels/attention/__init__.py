"""Softmax attention with masks and biases computed from positions."""

from jaxlm.kernels.attention.api import attention, attention_weights
from jaxlm.kernels.attention.bias import BucketBias, CoPE, KeyBias, LinearBias, relative_bucket
from jaxlm.kernels.attention.similarity import (
  Kind,
  Weights,
  as_distribution,
  similarity_attention,
  similarity_weights,
)
from jaxlm.kernels.attention.structure import BlockDiffusionMask, SetMask, TreeMask
from jaxlm.kernels.operation import callable_package

__all__ = [
  "attention",
  "attention_weights",
  "LinearBias",
  "KeyBias",
  "BucketBias",
  "CoPE",
  "relative_bucket",
  "Kind",
  "Weights",
  "as_distribution",
  "similarity_attention",
  "similarity_weights",
  "BlockDiffusionMask",
  "SetMask",
  "TreeMask",
]

callable_package(attention)
