"""Filling gaps in texts: by insertion into open slots, or by unmasking the places of what was
removed.

Axes: T position. docs/specs/ilm.md, section 5.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from jaxlm.config import ConfigError
from jaxlm.data.infilling import Gapped, insertion_prompt, masked_prompt
from jaxlm.generation.answers import Answering
from jaxlm.generation.base import Batch, Engine, Prompt, Row, engine_class, engine_for


@dataclasses.dataclass(frozen=True)
class Infilling(Engine):
  """Texts without special tokens in, filled texts without special tokens out.

  A prompt's `removed` says which of its tokens are to be found again; those are not read. through:
  the engine that fills, None for the model's default. Insertion is not told how many tokens a gap
  had, masked diffusion is.
  """

  scores: ClassVar[tuple[str, ...]] = ("inserted_tokens", "masked_tokens")
  is_default: ClassVar[bool] = False

  model: object
  ids: object
  through: Engine | None = None

  @classmethod
  def from_data(cls, data):
    return {"ids": data.special_tokens}

  @classmethod
  def from_command(cls, model, data, options, objective=None):
    through = engine_class(model, form=data.batch_form).from_command(
      model, data, options, objective
    )
    return cls(model, data.special_tokens, through)

  def decode_batch(self, params, batch: Batch):
    prompts = self._inner_prompts(batch.prompts)
    found, passes = self.engine.decode_batch(params, batch._replace(prompts=prompts))
    ids, rows = self.ids, []
    for prompt, (sequence, _, _) in zip(batch.prompts, found):
      special = [ids.cls, ids.bos, ids.eos, ids.pad, ids.mask]
      filled = np.asarray(sequence[~np.isin(sequence, special)], np.int32)
      rows.append(Row(filled, 0, len(filled) - int(np.sum(~np.asarray(prompt.removed)))))
    return rows, passes

  @property
  def engine(self) -> Engine:
    """The engine that fills."""
    return engine_for(self.model, ids=self.ids) if self.through is None else self.through

  def _room(self, prompts, max_new_tokens, max_len):
    return super()._room(self._inner_prompts(prompts), max_new_tokens, max_len)

  def _inner_prompts(self, prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts as the engine that fills reads them."""
    out = []
    for b, prompt in enumerate(prompts):
      if prompt.removed is None or not any(prompt.removed):
        raise ConfigError(f"prompt {b} has no gap: say which of its tokens are removed")
      example = Gapped(np.asarray(prompt.tokens, np.int32), np.asarray(prompt.removed, bool))
      if self.model.scores == "masked_tokens":
        out.append(Prompt(masked_prompt(example, self.ids)))
      else:
        out.append(Prompt(*insertion_prompt(example, self.ids)))
    return out


def infill(
  config, params, form: str, ids, examples: Sequence[Gapped], answering: Answering
) -> list[np.ndarray]:
  """The filled texts, int32 ids without special tokens. form: of the data (`jaxlm.data.forms`)."""
  Infilling.check(config)
  through = answering.engine(config, form, ids)
  engine = Infilling(config, ids, through)
  prompts = [Prompt(e.tokens, removed=e.removed) for e in examples]
  return answering.run(engine, params, prompts).sequences
