r"""A cyclic offset on the logits of reflection tokens: CyclicReflex (Fan et al., arXiv 2506.11077).

Axes: B batch, V vocab.

With t the tokens that the row has generated, C the period and A the amplitude,

  u = ((t + shift C) mod C) / C
  offset(u) = 4 A u                  0   <= u <= 1/4
              A - 4 A (u - 1/4)      1/4 <  u <= 3/4
              -A + 4 A (u - 3/4)     3/4 <  u <  1

is added to the logits of the listed ids before the temperature, until the row has drawn the id
that ends its thinking. The wave begins at 0 and rises. The equation is that of the authors'
repository (`cyclic` logits processor).

`RandomPhase` is our control: the same offsets in random order, so that their mean and variance stay and
the wave is gone.

Source of `Add`: the same repository's constant penalty, -3 by default; TIP as published also
limits how long it lasts (from memory).
"""

import dataclasses
import math
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp

from jaxlm.config import ConfigError, checked
from jaxlm.generation.processors import Processor
from jaxlm.ranges import Finite, Natural, Positive, Range


def add_to_ids(logits_BV, ids, offset_B1):
  """The logits with an offset on the listed ids, and every other logit as it was, to the last bit."""
  listed_V = jnp.isin(jnp.arange(logits_BV.shape[-1]), jnp.asarray(ids, jnp.int32))
  return jnp.where(listed_V[None], logits_BV + offset_B1, logits_BV)


def triangle(num_new_B, amplitude: float, period: float, shift: float = 0.0):
  """The offset, float32 (B,), of rows that have num_new_B tokens."""
  u_B = jnp.mod(num_new_B.astype(jnp.float32) + shift * period, period) / period
  return amplitude * jnp.where(
    u_B <= 0.25, 4 * u_B, jnp.where(u_B <= 0.75, 1 - 4 * (u_B - 0.25), -1 + 4 * (u_B - 0.75))
  )


@dataclasses.dataclass(frozen=True)
@checked
class Add(Processor):
  """z + value on the ids, until the row has drawn `until`."""

  ids: tuple[Natural, ...]
  value: Finite
  until: Natural | None = None

  def __call__(self, logits_BV, num_new_B):
    return add_to_ids(logits_BV, self.ids, jnp.full((1, 1), self.value, jnp.float32))


@dataclasses.dataclass(frozen=True)
@checked
class Cyclic(Processor):
  """z + triangle(t) on the ids, until the row has drawn `until`. shift: of the phase, in periods.

  amplitude 0 or no ids: the logits stay as they are. Defaults are those of the authors' code. The
  phase goes by the number of the token: exact with drafts, whose numbers are known (`Speculative`,
  `TreeSpeculative`); refused by engines that write tokens in no order.
  """

  counts_tokens: ClassVar[bool] = True

  ids: tuple[Natural, ...]
  amplitude: Finite = 3.0
  period: Positive = 100.0
  shift: Annotated[float, Range(0, 1)] = 0.0
  until: Natural | None = None

  def __call__(self, logits_BV, num_new_B):
    if self.amplitude == 0 or not self.ids:
      return logits_BV
    offset_B = triangle(num_new_B, self.amplitude, self.period, self.shift)
    return add_to_ids(logits_BV, self.ids, offset_B[:, None])


@dataclasses.dataclass(frozen=True)
@checked
class RandomPhase(Processor):
  """z + triangle(s) on the ids, s drawn from 0 .. ceil(period) - 1 for every number of a token.

  All rows have one draw, of `seed` and the number of the token.
  """

  counts_tokens: ClassVar[bool] = True

  ids: tuple[Natural, ...]
  amplitude: Finite = 3.0
  period: Positive = 100.0
  seed: Natural = 0
  until: Natural | None = None

  def __call__(self, logits_BV, num_new_B):
    if self.amplitude == 0 or not self.ids:
      return logits_BV
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(self.seed), num_new_B)
    s_B = jax.vmap(lambda key: jax.random.randint(key, (), 0, math.ceil(self.period)))(keys_B)
    return add_to_ids(logits_BV, self.ids, triangle(s_B, self.amplitude, self.period)[:, None])


def ids_of_words(words, tokenizer) -> tuple[int, ...]:
  """The id of every word. ConfigError for a word that is not one token: it lists the pieces.

  tokenizer: with `encode(text) -> ids` and `decode(ids) -> text`. ` wait` and `wait` are two words.
  """
  out = []
  for word in words:
    ids = [int(i) for i in tokenizer.encode(word)]
    if len(ids) != 1:
      pieces = ", ".join(repr(tokenizer.decode([i])) for i in ids)
      raise ConfigError(
        f"the word {word!r} is not one token of this vocabulary but {len(ids)}: {pieces}; name a word that "
        f"is one, with the space in front where it has one"
      )
    out += ids
  return tuple(out)
