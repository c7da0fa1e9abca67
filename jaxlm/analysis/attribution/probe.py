"""The probe "attribution": which tokens of a text its next token depends on.

Axes: B batch, T time.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

import jax
import numpy as np

from jaxlm.analysis.attribution.base import METHODS, Method, Question
from jaxlm.analysis.attribution.gradients import IntegratedGradients
from jaxlm.analysis.attribution.metrics import completeness_gap
from jaxlm.analysis.opened import observe
from jaxlm.analysis.probes import Panel, Probe, Reading
from jaxlm.config import ConfigError, checked
from jaxlm.ranges import Natural, Seed


@dataclasses.dataclass(frozen=True)
@checked
class Attribution(Probe):
  """log p of the most probable next token (or `target`), by each token of the row."""

  sites: ClassVar[tuple[str, ...]] = ()
  method: Annotated[object, METHODS] = IntegratedGradients(steps=256, decades=24)
  target: Natural | None = None
  seed: Seed = 0

  def read(self, opened, batch, texts: Sequence[Sequence[str]] = ()) -> Reading:
    cfg = opened.config
    if cfg.scores not in ("next_token", "target_sequence"):
      raise ConfigError(
        f"probe 'attribution' asks for the next token, and {type(cfg).__name__} scores {cfg.scores}; "
        "use the probes 'sinks', 'heads' or 'norms'"
      )
    extra = {}
    if isinstance(batch, Mapping):
      extra = {name: x for name, x in batch.items() if name != "tokens"}
      batch = batch["tokens"]
    tokens_BT = np.atleast_2d(np.asarray(batch, np.int32))
    found = observe(opened, {"tokens": tokens_BT} | extra)["output"]
    likely_B = np.asarray(found[:, -1].argmax(axis=-1))
    targets_B = likely_B if self.target is None else np.full(len(tokens_BT), self.target)
    question = Question(cfg, opened.params, tokens_BT, targets_B, extra=extra)
    method: Method = self.method
    a_BT = np.asarray(method(question, jax.random.key(self.seed)), np.float64)
    value_B = np.asarray(jax.jit(question.value)(question.params, question.vectors), np.float64)
    rows = [
      {"row": b, "position": t, "token": int(tokens_BT[b, t]), "attribution": float(a_BT[b, t])}
      | ({"text": texts[b][t]} if texts else {})
      for b, t in np.ndindex(tokens_BT.shape)
    ]
    complete = isinstance(method, IntegratedGradients)
    gap = {"gap of completeness": completeness_gap(question, a_BT)} if complete else {}
    labels = list(texts[0]) if len(texts) == 1 and tokens_BT.shape[1] <= 64 else ()
    return Reading(
      {
        "log p of the target": float(value_B.mean()),
        "sum of attributions": float(a_BT.sum(1).mean()),
      }
      | gap,
      {"attribution": rows},
      [Panel("attribution of the next token", "token", "row", heat=a_BT, x_ticks=labels)],
    )
