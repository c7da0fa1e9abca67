"""Several mixers side by side in one layer: a window of attention next to a recurrence, say."""

import dataclasses
from typing import Annotated

import flax.linen as nn

from jaxlm.config import ConfigError, checked
from jaxlm.layers.mixer import MIXERS, Context, Mixer, PatternConfig, given_or_plain


@dataclasses.dataclass(frozen=True)
@checked
class HybridConfig(Mixer):
  """y = sum of the members' outputs, all of the same input."""

  members: tuple[Annotated[object, MIXERS], ...]

  def __post_init__(self):
    if len(self.members) < 2:
      raise ConfigError(f"members: a hybrid needs at least two mixers, got {len(self.members)}")
    for member in self.members:
      if isinstance(member, (PatternConfig, HybridConfig)):
        raise ConfigError(
          f"members: {MIXERS.kind_of(member)} cannot stand inside a hybrid; write its mixers here"
        )

  def heads(self, d_model: int):
    """Of the member that takes a position; all are checked."""
    return next(filter(None, [m.heads(d_model) for m in self.members]), None)

  @property
  def position(self):
    return next((m.position for m in self.members if m.position is not None), None)

  def with_position(self, position):
    return dataclasses.replace(self, members=tuple(m.with_position(position) for m in self.members))

  def build(self, d_model: int, dtype: str, name=None) -> nn.Module:
    return Hybrid(self, d_model, dtype, name=name)

  def init_state(self, d_model: int, batch_size: int, max_len: int, dtype, rewindable: int = 0):
    return tuple(
      m.init_state(d_model, batch_size, max_len, dtype, rewindable) for m in self.members
    )


class Hybrid(nn.Module):
  """Parameters of member i lie under `member_i`."""

  cfg: HybridConfig
  d_model: int
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x_BTD, context: Context | None = None, state=None):
    context = given_or_plain(context, x_BTD, state)
    total, states = None, []
    for i, member in enumerate(self.cfg.members):
      y_BTD, new = member.build(self.d_model, self.dtype, f"member_{i}")(
        x_BTD, context, None if state is None else state[i]
      )
      total = y_BTD if total is None else total + y_BTD
      states.append(new)
    return total, None if state is None else tuple(states)
