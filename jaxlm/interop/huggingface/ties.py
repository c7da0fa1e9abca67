"""One rule for all converters: what a file means that stores a tied array twice, or under one of
its names only.

A table's `tied` says {copy: original} for arrays that the configuration makes one.

  stored                  meaning
  the original alone      tied
  the copy alone          tied: the copy is the original
  both, equal             tied
  both, different         the head is the file's own, as transformers 5 reads it; releases with loaders of their own: refused
"""

import collections
import dataclasses
from collections.abc import Mapping

import numpy as np

from jaxlm.checkpoint.errors import WeightsError

HEAD = "lm_head.weight"


def unequal(
  state: Mapping, tied: Mapping[str, str], names: Mapping[str, str] | None = None
) -> list[str]:
  """A sentence per copy that differs from its original. names: {name in `tied`: name in the file}."""

  def at(name):
    return name if names is None else names.get(name)

  both = [
    (copy, original)
    for copy, original in tied.items()
    if at(copy) in state and at(original) in state
  ]
  return [
    f"{copy} differs from {original}, but the configuration ties them; set tie_word_embeddings (or tie_embeddings) to "
    f"false in config.json to keep it"
    for copy, original in both
    if not np.array_equal(np.asarray(state[at(copy)]), np.asarray(state[at(original)]))
  ]


def settle(architecture, cfg, state: Mapping):
  """(configuration, state, notes) with the head that the file holds.

  Raises WeightsError where the two cannot agree.
  """
  table, notes = architecture.table(cfg), []
  names = table.canonical(state)
  if not cfg.tie_embeddings:
    if architecture.headless_ties and HEAD not in names:
      notes.append(
        f"{HEAD} is not stored: the head is the embedding's table, as transformers 5 reads it"
      )
      return dataclasses.replace(cfg, tie_embeddings=True), state, notes
    return cfg, state, notes
  for copy, original in table.tied.items():
    if copy in names and original not in names:
      state = collections.ChainMap({original: state[names[copy]]}, state)
      names = table.canonical(state)
      notes.append(
        f"{original} is not stored: {copy}, which the configuration ties to it, takes its place"
      )
  if not unequal(state, {k: v for k, v in table.tied.items() if k == HEAD}, names):
    return cfg, state, notes
  if not architecture.own_head:
    raise WeightsError(
      f"{HEAD} differs from {table.tied[HEAD]}, but the configuration ties them; set tie_embeddings (or "
      f"tie_word_embeddings) to false in config.json to keep it"
    )
  notes.append(
    f"{HEAD} differs from {table.tied[HEAD]} although config.json ties them: the head is kept as a parameter of its "
    f"own, as transformers 5 reads such a file"
  )
  return dataclasses.replace(cfg, tie_embeddings=False), state, notes
