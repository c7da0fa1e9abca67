"""Looking into trained models and changing what happens inside them. Where the taps are:
docs/taps.md.
"""

from jaxlm.analysis.activations import edits, record, sites
from jaxlm.analysis.opened import intervene, observe
from jaxlm.layers.taps import Edit

__all__ = ["Edit", "edits", "intervene", "observe", "record", "sites"]
