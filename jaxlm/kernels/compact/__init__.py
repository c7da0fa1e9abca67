"""Keep some positions of every row, in order, in a buffer of static capacity; and put them back."""

from jaxlm.kernels.compact.api import Compaction, compact, gather, scatter, upsample
from jaxlm.kernels.operation import callable_package

__all__ = ["Compaction", "compact", "gather", "scatter", "upsample"]

callable_package(compact)
