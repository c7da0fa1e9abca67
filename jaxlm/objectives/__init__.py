"""What is minimised, chosen by `objective.kind`; the contract is in `base.py`."""

from jaxlm.config import Kinds

OBJECTIVES = Kinds("objective", {
    "next_byte": "jaxlm.objectives.next_byte:NextByte",
    "next_token": "jaxlm.objectives.next_token:NextToken",
})
