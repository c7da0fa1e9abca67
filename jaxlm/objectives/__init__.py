"""What is minimised, chosen by `objective.kind`; the contract is in `base.py`."""

from jaxlm.config import Kinds

OBJECTIVES = Kinds(
  "objective",
  {
    "block_diffusion": "jaxlm.objectives.block_diffusion:BlockDiffusion",
    "confusion": "jaxlm.objectives.confusion:Confusion",
    "distillation": "jaxlm.objectives.distillation:Distillation",
    "masked_diffusion": "jaxlm.objectives.masked_diffusion:MaskedDiffusion",
    "insertion_transformer": "jaxlm.objectives.insertion_transformer:InsertionTransformer",
    "insertion": "jaxlm.objectives.insertion:Insertion",
    "next_byte": "jaxlm.objectives.next_byte:NextByte",
    "view_synthesis": "jaxlm.objectives.view_synthesis:ViewSynthesis",
    "next_token": "jaxlm.objectives.next_token:NextToken",
    "sequence_to_sequence": "jaxlm.objectives.sequence_to_sequence:SequenceToSequence",
  },
)
