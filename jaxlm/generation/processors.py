"""Logit processors: pure functions of a batch of logits, chosen by `kind`.

Axes: B batch, V vocab. A processor is a frozen dataclass of base `Processor`, registered in
PROCESSORS. It is hashable, so that a sampler takes it as a static argument and compiles it in.
Temperature, top-k, top-p and min-p mean what the processors of Hugging Face of the same names mean.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxlm.config import ConfigError, Kinds, checked
from jaxlm.ranges import Count, Positive, UpToOne

PROCESSORS = Kinds(
  "logit processor",
  {
    "temperature": "jaxlm.generation.processors:Temperature",
    "top_k": "jaxlm.generation.processors:TopK",
    "top_p": "jaxlm.generation.processors:TopP",
    "min_p": "jaxlm.generation.processors:MinP",
    "add": "jaxlm.generation.engine.cyclic_reflex:Add",
    "cyclic": "jaxlm.generation.engine.cyclic_reflex:Cyclic",
    "random_phase": "jaxlm.generation.engine.cyclic_reflex:RandomPhase",
  },
)


class Processor:
  """Base of logit processors (frozen dataclasses). Override `__call__`.

  until: a token id; the processor is idle in a row that has drawn it. None: it is never idle.
  counts_tokens: whether the result depends on num_new_B.
  """

  until: int | None = None
  counts_tokens: ClassVar[bool] = False

  def __call__(self, logits_BV, num_new_B):
    """Float32 logits (B, V) after the change; -inf excludes a token, one must stay.

    logits_BV: float32. num_new_B: int32, tokens that each row has drawn so far. A row's result may
    depend on that row alone.
    """
    raise NotImplementedError(f"{type(self).__name__} changes no logits")


def process(logits_BV, processors: Sequence[Processor], num_new_B=None, met_BP=None):
  """Float32 logits (B, V) after all processors, in order. num_new_B: None: no token so far.

  met_BP: bool, whether the row has drawn the `until` of processor p; None: no row has.
  """
  logits_BV = logits_BV.astype(jnp.float32)
  num_new_B = jnp.zeros(logits_BV.shape[:1], jnp.int32) if num_new_B is None else num_new_B
  for p, processor in enumerate(processors):
    after_BV = processor(logits_BV, num_new_B)
    if met_BP is not None and processor.until is not None:
      after_BV = jnp.where(met_BP[:, p, None], logits_BV, after_BV)
    logits_BV = after_BV
  return logits_BV


def refuse_order(processors: Sequence[Processor], engine: str) -> None:
  """ConfigError for a processor that needs the order of a row's tokens, which the engine does not
  have: it writes several at once, or anywhere.
  """
  for processor in processors:
    if processor.counts_tokens or processor.until is not None:
      raise ConfigError(
        f"the logit processor {type(processor).__name__} goes by the number of tokens before, or by one that was drawn "
        f"(`until`), and {engine} writes tokens in no such order; use algorithm = 'left_to_right', or leave it out"
      )


def refuse_until(processors: Sequence[Processor], engine: str) -> None:
  """ConfigError for a processor with `until`, for an engine that does not follow what a row has drawn."""
  if any(p.until is not None for p in processors):
    raise ConfigError(
      f"a logit processor with `until` needs to know what each row has drawn, which {engine} does not tell it; use "
      f"algorithm = 'left_to_right', or a processor without `until`"
    )


def none_met(processors: Sequence[Processor], num_rows: int):
  """`met_BP` of rows that have drawn nothing."""
  return jnp.zeros((num_rows, len(processors)), bool)


def met_by(processors: Sequence[Processor], token_B, drawn_B, met_BP):
  """`met_BP` after the rows of drawn_B (bool) have drawn their token."""
  for p, processor in enumerate(processors):
    if processor.until is not None:
      met_BP = met_BP.at[:, p].max(drawn_B & (token_B == processor.until))
  return met_BP


@dataclasses.dataclass(frozen=True)
@checked
class Temperature(Processor):
  """z / temperature."""

  temperature: Positive

  def __call__(self, logits_BV, num_new_B):
    return logits_BV / self.temperature


@dataclasses.dataclass(frozen=True)
@checked
class TopK(Processor):
  """Keeps the k largest logits, and those that equal the k-th."""

  k: Count

  def __call__(self, logits_BV, num_new_B):
    if self.k >= logits_BV.shape[-1]:
      return logits_BV
    kth_B1 = jax.lax.top_k(logits_BV, self.k)[0][:, -1:]
    return jnp.where(logits_BV < kth_B1, -jnp.inf, logits_BV)


@dataclasses.dataclass(frozen=True)
@checked
class TopP(Processor):
  """Keeps the smallest set of most probable tokens whose probability reaches p.

  A token stays while the probability of those before it is below p, and so does what equals the
  last that stays.
  """

  p: UpToOne

  def __call__(self, logits_BV, num_new_B):
    if self.p == 1:
      return logits_BV
    sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
    p_BV = jax.nn.softmax(sorted_BV, axis=-1)
    before_BV = jnp.cumsum(p_BV, axis=-1) - p_BV
    last_B1 = jnp.min(jnp.where(before_BV < self.p, sorted_BV, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits_BV < last_B1, -jnp.inf, logits_BV)


@dataclasses.dataclass(frozen=True)
@checked
class MinP(Processor):
  """Keeps tokens whose probability is at least p times that of the most probable one."""

  p: UpToOne

  def __call__(self, logits_BV, num_new_B):
    # log p(v) - log p(best) is the difference of the logits: no partition is needed.
    least_B1 = jnp.max(logits_BV, axis=-1, keepdims=True) + math.log(self.p)
    return jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)
