"""Perplexity and bits per byte by position and length, task scores, throughput, FLOPs."""

from typing import TYPE_CHECKING

from jaxlm import lazy

if TYPE_CHECKING:
  from jaxlm.evaluation.flops import (
    num_params as num_params,
  )
  from jaxlm.evaluation.flops import (
    train_flops_per_token as train_flops_per_token,
  )
  from jaxlm.evaluation.perplexity import (
    Evaluation as Evaluation,
  )
  from jaxlm.evaluation.perplexity import (
    evaluate as evaluate,
  )
  from jaxlm.evaluation.perplexity import (
    evaluate_lengths as evaluate_lengths,
  )

_NAMES = lazy.by_name(
  {
    "jaxlm.evaluation.perplexity": "Evaluation evaluate evaluate_lengths",
    "jaxlm.evaluation.flops": "num_params train_flops_per_token",
  }
)
__getattr__, __dir__ = lazy.attributes(__name__, _NAMES)
__all__ = list(_NAMES)
