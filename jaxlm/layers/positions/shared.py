"""What a position encoding does once for a whole stack of layers. Axes: B batch, T time, D d_model."""

import flax.linen as nn

from jaxlm.layers.positions import Heads, Position


class SharedPosition(nn.Module):
  """Adds to the embedding and prepares what all layers share.

  heads: of the layers that use the encoding; None: there are none, so nothing is prepared. Its
  parameters lie under this module's name, not in the layers.
  """

  position: Position
  heads: Heads | None

  @nn.compact
  def __call__(self, x_BTD, context, state):
    """(x_BTD, the context of the layers, state). state: of `init_model_state`."""
    x_BTD = self.position.add(self, x_BTD, context)
    context = context.replace(embedding_BTD=x_BTD)
    if self.heads is not None:
      shared, state = self.position.prepare(self, self.heads, context, state)
      context = context.replace(shared=shared, shared_by=(self.position, self.heads))
    return x_BTD, context, state
