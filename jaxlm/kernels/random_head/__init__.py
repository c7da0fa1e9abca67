"""Random embedding rows as a function of (seed, token), and the softmax over all of them without
their table.
"""

from jaxlm.kernels.operation import callable_package
from jaxlm.kernels.random_head.api import random_head, random_logits
from jaxlm.kernels.random_head.reference import effective, segment_seeds
from jaxlm.kernels.random_head.rows import LAWS, TABLE, bits, fold_in, keyed_rows, random_mask

__all__ = [
  "random_head",
  "random_logits",
  "segment_seeds",
  "effective",
  "keyed_rows",
  "random_mask",
  "bits",
  "fold_in",
  "LAWS",
  "TABLE",
]

callable_package(random_head)
