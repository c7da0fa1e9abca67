r"""Prompts with parts in no order: set-based prompting (McIlroy-Young et al., arXiv 2406.06581).

Axes: B batch, T time, R ranges of hidden keys.

Of a prefix P, a set of members S_1 .. S_k and a suffix Q, no member sees another, and all members begin
at the same position:

  mask        causal, without the pairs of two members of one set
  positions   P: 0 .. |P| - 1;   each S_a: from |P|;   Q: from |P| + f(|S_1|, .., |S_k|)

with f the maximum; the mean (rounded) and the sum are choices. Then every logit behind the set is the
same for all orders of its members, whatever the weights: the keys and values of a member depend on P
and itself alone, and attention sums over a set. Sums in another order differ in their last bits;
`canonical` sorts the members first, and the bits are the same. A prompt may have several sets, and
members may have sets inside. Generated tokens go on behind Q.

Models of attention with positions that go by number. With learned absolute positions the members
share rows of the table that were never trained together, and accuracy suffers: a warning says so.
"""

import dataclasses
import functools
import warnings
from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.config import ConfigError, checked
from jaxlm.generation.base import Batch, Prompt
from jaxlm.generation.engine.step import extend, round_up
from jaxlm.generation.left_to_right import LeftToRight
from jaxlm.generation.sampling import Sampling
from jaxlm.kernels.attention import SetMask
from jaxlm.layers.positions.additive import Learned
from jaxlm.ranges import Count, Natural


@dataclasses.dataclass(frozen=True)
class Unordered:
  """A set of members; each is a list of token ids and of sets."""

  members: tuple[Sequence, ...]


class LaidOut(NamedTuple):
  """A prompt as the model reads it. tokens_T, positions_T: int32. hidden_TR2: int32, ranges of
  indices that a token does not see. next_position: of the token behind it.
  """

  tokens_T: np.ndarray
  positions_T: np.ndarray
  hidden_TR2: np.ndarray
  next_position: int


class SetPrompt(Prompt):
  """A prompt of parts: token ids and `Unordered` sets, in order."""

  def __init__(self, parts: Sequence, rule: str = "max", canonical: bool = True):
    laid_out = lay_out(parts, rule, canonical)
    super().__init__(laid_out.tokens_T)
    object.__setattr__(self, "laid_out", laid_out)


def lay_out(parts: Sequence, rule: str = "max", canonical: bool = True) -> LaidOut:
  """The order in which a prompt is read, its positions and its mask. rule: max, mean or sum."""
  tokens, positions, hidden = [], [], []

  def flat(member) -> tuple[int, ...]:
    """A member as integers alone, so that any two compare: -3 and -1 enclose a set, -2 begins each of
    its members, in sorted order.
    """
    out: list[int] = []
    for part in member:
      if isinstance(part, Unordered):
        inner = sorted(map(flat, part.members))
        out += [-3, *(x for one in inner for x in (-2, *one)), -1]
      else:
        out.append(int(part))
    return tuple(out)

  def walk(parts, at: int, ranges: tuple) -> int:
    for part in parts:
      if not isinstance(part, Unordered):
        tokens.append(int(part))
        positions.append(at)
        hidden.append(ranges)
        at += 1
        continue
      if not part.members or any(not len(m) for m in part.members):
        raise ConfigError("a set without members, or with an empty one, says nothing; leave it out")
      members = sorted(part.members, key=flat) if canonical else part.members
      first, lengths = len(tokens), []
      for member in members:
        inside = (*ranges, (first, len(tokens)))
        lengths.append(walk(member, at, inside) - at)
      at += {"max": max(lengths), "sum": sum(lengths), "mean": round(np.mean(lengths))}[rule]
    return at

  if rule not in ("max", "mean", "sum"):
    raise ConfigError(f"rule = {rule!r} of positions behind a set; known: max, mean, sum")
  last = walk(parts, 0, ())
  R = max((len(r) for r in hidden), default=0) or 1
  hidden_TR2 = np.zeros((len(tokens), R, 2), np.int32)
  for t, ranges in enumerate(hidden):
    for r, (low, high) in enumerate(ranges):
      hidden_TR2[t, r] = low, high
  return LaidOut(np.asarray(tokens, np.int32), np.asarray(positions, np.int32), hidden_TR2, last)


@dataclasses.dataclass(frozen=True)
@checked
class SetPrompts(LeftToRight):
  """Left to right behind prompts that may be `SetPrompt`s; others are read as they are."""

  is_default: ClassVar[bool] = False
  form: ClassVar[str | None] = None

  model: object
  sampling: Sampling = Sampling()
  stops: tuple[Natural, ...] = ()
  tokens_per_dispatch: Count = 32
  deterministic: Literal[False] = False  # a set is read in one pass

  def __post_init__(self):
    super().__post_init__()
    position = getattr(self.model, "position", None)
    if isinstance(position, Learned):
      warnings.warn(
        "set prompts under learned absolute positions: the members of a set share rows of the table that were "
        "not trained for it, and answers suffer; a model with position = 'rope' suffers less",
        UserWarning,
        stacklevel=2,
      )

  @classmethod
  def misfit(cls, model):
    return super().misfit(model) or model.why_unstructured

  def begin(self, params, batch: Batch):
    laid_out = [
      p.laid_out if isinstance(p, SetPrompt) else lay_out(list(p.tokens)) for p in batch.prompts
    ]
    length_B = np.asarray([len(p.tokens_T) for p in laid_out], np.int32)
    shape, R = (
      (len(laid_out), round_up(int(length_B.max()))),
      max(p.hidden_TR2.shape[1] for p in laid_out),
    )
    tokens_BT, positions_BT = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    hidden_BTR2 = np.zeros((*shape, R, 2), np.int32)
    for b, p in enumerate(laid_out):
      n = len(p.tokens_T)
      tokens_BT[b, :n], positions_BT[b, :n] = p.tokens_T, p.positions_T
      hidden_BTR2[b, :n, : p.hidden_TR2.shape[1]] = p.hidden_TR2
    shift_B = jnp.asarray(length_B - [p.next_position for p in laid_out], jnp.int32)
    state = self.model.init_state(len(length_B), round_up(batch.longest))
    logits_BV, state = read(
      params,
      state,
      *map(jnp.asarray, (tokens_BT, positions_BT, hidden_BTR2, length_B)),
      model=self.model,
    )
    return logits_BV, state, shift_B


@functools.partial(jax.jit, static_argnames="model", donate_argnums=1)
def read(params, state, tokens_BT, positions_BT, hidden_BTR2, length_B, *, model):
  """(logits_BV behind each prompt, state)."""
  T = tokens_BT.shape[1]
  valid_BT = (jnp.arange(T)[None] < length_B[:, None]).astype(jnp.int32)
  logits_BTV, state = extend(
    model,
    params,
    tokens_BT,
    state,
    valid_BT,
    positions_BT=positions_BT,
    structure=SetMask(hidden_BTR2),
  )
  return logits_BTV[jnp.arange(len(length_B)), length_B - 1], state
