"""Answers to many prompts, in batches of one size, by the engine of the data's form.

Lists of sequences in, lists of sequences out. docs/specs/ilm.md, sections 4 to 6.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from jaxlm.config import checked
from jaxlm.generation.base import Engine, Generations, Prompt, engine_class
from jaxlm.generation.insertion import Filter, InsertionSampling
from jaxlm.generation.sampling import GREEDY, PLAIN, Sampling
from jaxlm.ranges import Count, Inside, Seed


@dataclasses.dataclass(frozen=True)
@checked
class Answering:
  """How answers are made; every field is used by the engines that have it.

  max_len: tokens of a whole sequence. insertion, causal: how insertion engines, and those from left
  to right, choose. stop_threshold: of a stop head; the Insertion Transformer stops by its best
  tokens. passes, order, unmasking: of masked diffusion (`MaskedDiffusionEngine`). algorithm: name
  of an engine of ENGINES; None: the engine of the form. A row's tokens depend on seed and its
  number, not on batch_size (`jaxlm.generation.base`).
  """

  max_len: Count
  batch_size: Count = 100
  insertion: InsertionSampling = InsertionSampling(Filter(top_k=1), Filter(top_k=1))
  causal: Sampling = GREEDY
  stop_threshold: Inside = 0.9
  passes: Count | None = None
  order: Literal["ancestral", "confidence"] = "ancestral"
  unmasking: Sampling = PLAIN
  algorithm: str | None = None
  seed: Seed = 0

  def answer(
    self,
    config,
    params,
    form: str,
    ids,
    prompts: Sequence[Sequence[int]],
    lengths: Sequence[int] | None = None,
    closed: Sequence[Sequence[bool]] | None = None,
  ) -> Generations:
    """config, params: of the model. form: of the data it was trained on (`jaxlm.data.forms`). ids:
    SpecialTokens of the data. prompts: as the form begins, BOS last.

    lengths: tokens of each answer, which masked diffusion must be told (the release tells it the
    true ones). closed: slots of each prompt where nothing may be inserted; default all but its last
    token's.
    """
    rows = [
      Prompt(
        prompt,
        None if closed is None else closed[b],
        None if lengths is None else int(lengths[b]),
      )
      for b, prompt in enumerate(prompts)
    ]
    return self.run(self.engine(config, form, ids), params, rows)

  def engine(self, model, form: str, ids) -> Engine:
    """The engine for a model trained on data of a form, with the fields of this config that it has."""
    cls = engine_class(model, self.algorithm, form)
    offered = {
      "ids": ids,
      "stops": () if ids.eos is None else (ids.eos,),
      "sampling": self.causal,
      "insertion": self.insertion,
      "stop_threshold": self.stop_threshold,
      "passes": self.passes,
      "order": self.order,
      "unmasking": self.unmasking,
    }
    names = [field.name for field in dataclasses.fields(cls)]
    return cls(model, **{name: value for name, value in offered.items() if name in names})

  def run(self, engine: Engine, params, prompts: Sequence[Prompt]) -> Generations:
    """What an engine makes of the prompts under the limits of this config and of its model."""
    return engine.generate(
      params,
      prompts,
      self.max_len,
      max_len=min(self.max_len, engine.model.max_len or self.max_len),
      batch_size=self.batch_size,
      seed=self.seed,
    )
