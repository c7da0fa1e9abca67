"""Which checkpoints stay when a new one is whole: the last few and every so many steps; all while
steps are skipped.

The state of a run whose steps are being skipped is finite, but it may be the one that makes every
step fail. Until a step succeeds, it takes no older checkpoint's place.
"""

from orbax.checkpoint import checkpoint_managers


class Rotation:
  """Orbax's PreservationPolicy. `paused`: no checkpoint is removed while it is set."""

  def __init__(self, keep_last: int, keep_every: int | None):
    policies = [checkpoint_managers.LatestN(n=keep_last)]
    if keep_every is not None:
      policies.append(checkpoint_managers.EveryNSteps(keep_every))
    self.policy, self.paused = checkpoint_managers.AnyPreservationPolicy(policies), False

  def should_preserve(self, checkpoints, *, context) -> list[bool]:
    if self.paused:
      return [True] * len(checkpoints)
    return self.policy.should_preserve(checkpoints, context=context)
