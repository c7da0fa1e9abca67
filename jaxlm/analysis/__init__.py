"""Looking into trained models and changing what happens inside them. Where the taps are:
`jaxlm.layers.taps`.
"""

from jaxlm.analysis.activations import edits, record, sites
from jaxlm.layers.taps import Edit

__all__ = ["Edit", "edits", "record", "sites"]
