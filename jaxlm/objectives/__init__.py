"""What is minimised, chosen by `objective.kind`; the contract is in `base.py`."""

from typing import TYPE_CHECKING

from jaxlm import lazy
from jaxlm.config import Kinds

if TYPE_CHECKING:
  from jaxlm.objectives.base import LossOutput as LossOutput
  from jaxlm.objectives.base import Objective as Objective
  from jaxlm.objectives.base import Pair as Pair
  from jaxlm.objectives.distillation import Distillation as Distillation
  from jaxlm.objectives.insertion import Insertion as Insertion
  from jaxlm.objectives.insertion_transformer import InsertionTransformer as InsertionTransformer
  from jaxlm.objectives.masked_diffusion import MaskedDiffusion as MaskedDiffusion
  from jaxlm.objectives.next_byte import NextByte as NextByte
  from jaxlm.objectives.next_token import NextToken as NextToken
  from jaxlm.objectives.sequence_to_sequence import SequenceToSequence as SequenceToSequence
  from jaxlm.objectives.view_synthesis import ViewSynthesis as ViewSynthesis

OBJECTIVES = Kinds(
  "objective",
  {
    "block_diffusion": "jaxlm.objectives.block_diffusion:BlockDiffusion",
    "confusion": "jaxlm.objectives.confusion:Confusion",
    "decorrelation": "jaxlm.objectives.decorrelation:Decorrelation",
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

_NAMES = lazy.by_name(
  {
    "jaxlm.objectives.base": "LossOutput Objective Pair",
    "jaxlm.objectives.distillation": "Distillation",
    "jaxlm.objectives.insertion": "Insertion",
    "jaxlm.objectives.insertion_transformer": "InsertionTransformer",
    "jaxlm.objectives.masked_diffusion": "MaskedDiffusion",
    "jaxlm.objectives.next_byte": "NextByte",
    "jaxlm.objectives.next_token": "NextToken",
    "jaxlm.objectives.sequence_to_sequence": "SequenceToSequence",
    "jaxlm.objectives.view_synthesis": "ViewSynthesis",
  }
)
__getattr__, __dir__ = lazy.attributes(__name__, _NAMES)
__all__ = ["OBJECTIVES", *_NAMES]
