"""Keep some positions of every row, in order, in a buffer of static capacity; and put them back."""

from jaxlm.kernels.compact.api import Compaction, compact, gather, scatter, upsample

__all__ = ["Compaction", "compact", "gather", "scatter", "upsample"]
