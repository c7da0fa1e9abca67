"""A causal language model as a judge: log p of every token of a text behind the token that begins
one.

Axes: B batch, T time.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.config import ConfigError
from jaxlm.evaluation.judge import Scored

PIECE = 32  # lengths are rounded up to it: a handful of programs serves all texts


@dataclasses.dataclass(frozen=True, eq=False)
class CausalJudge:
  """config: of a model that answers `score`. tokenizer: encodes texts. start: the token in front of
  every text.
  """

  config: object
  params: object
  tokenizer: object
  start: int
  batch_size: int = 64

  def __call__(self, texts: Sequence[str]) -> list[Scored]:
    tokens = [np.asarray(self.tokenizer.encode(text), np.int32) for text in texts]
    longest, most = max(map(len, tokens), default=0), self.config.max_len
    if most is not None and longest > most:
      raise ConfigError(
        f"a text of {longest} tokens is longer than the judge's {most} positions; judge shorter texts"
      )
    out = []
    for at in range(0, len(tokens), self.batch_size):
      out += self._batch(tokens[at : at + self.batch_size])
    return out

  def _batch(self, tokens: list[np.ndarray]) -> list[Scored]:
    T = -(-max(max(map(len, tokens)), 1) // PIECE) * PIECE
    T = min(T, self.config.max_len or T)
    targets_BT, inputs_BT, inside_BT = (np.zeros((self.batch_size, T), np.int32) for _ in range(3))
    inputs_BT[:, 0], inside_BT[:, 0] = self.start, 1
    for b, row in enumerate(tokens):
      targets_BT[b, : len(row)], inputs_BT[b, 1 : len(row)], inside_BT[b, : len(row)] = (
        row,
        row[:-1],
        1,
      )
    log_prob_BT = np.asarray(
      _log_prob(self.params, inputs_BT, targets_BT, inside_BT, config=self.config), np.float64
    )
    return [Scored(row, log_prob_T[: len(row)]) for row, log_prob_T in zip(tokens, log_prob_BT)]


@functools.partial(jax.jit, static_argnames="config")
def _log_prob(params, tokens_BT, targets_BT, inside_BT, *, config):
  positions_BT = jnp.maximum(jnp.cumsum(inside_BT, axis=1) - 1, 0)
  return (
    config.build()
    .apply({"params": params}, tokens_BT, targets_BT, inside_BT, positions_BT, method="score")
    .log_prob_BT
  )
