"""Decoders without a loop over layers, for loops over tokens.

Axes: L layers.

A scan over layers has their weights and caches in stacks (L, ...). Every pass copies each layer's weights
out of the stack, and its cache out and back. A pass over many tokens does not notice; a pass over one token
takes about as long for the copies as for its products. Here each layer has arrays of its own, so that weights
are read where they lie and caches are written in place. The numbers are those of the scan up to the rounding of
another program.

Only plain decoders of equal layers, at most MOST of them: the program grows with their number.
"""

import dataclasses
import functools

import jax

from jaxlm.layers import stack
from jaxlm.models.decoder import DecoderConfig

MOST = 12


class UnrolledDecoder(DecoderConfig):
  """A decoder whose parameters are `open_params` of the plain one's, and whose states are tuples."""

  def build_stack(self, *, init: bool):
    return stack.Group(self.block, self.mixers, name="blocks")

  def init_state(self, batch_size: int, max_len: int, rewindable: int = 0):
    state = super().init_state(batch_size, max_len, rewindable)
    return state._replace(layers=_apart(state.layers, self.num_layers))


def unrolled(model):
  """The decoder without a loop over layers; the model itself where there is no such form."""
  if type(model) is not DecoderConfig or model.period != 1 or not 1 < model.num_layers <= MOST:
    return model
  return UnrolledDecoder(
    **{field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
  )


@functools.partial(jax.jit, static_argnames="num_layers")
def _apart(stacked, num_layers: int) -> tuple:
  return tuple(jax.tree.map(lambda x, l=l: x[l], stacked) for l in range(num_layers))


def open_params(model, params):
  """The parameters of `unrolled(model)`."""
  if not isinstance(unrolled(model), UnrolledDecoder):
    return params
  layers = _apart(params["blocks"], model.num_layers)
  return params | {"blocks": {f"layer_{l}": layer for l, layer in enumerate(layers)}}


def opened(engine, params):
  """(the engine of the unrolled model, its parameters). A deterministic engine stays as it is: its
  logits are the same to the last bit in every engine.
  """
  model = engine.model if engine.deterministic else unrolled(engine.model)
  if model is engine.model:
    return engine, params
  return dataclasses.replace(engine, model=model), open_params(engine.model, params)


def opened_pair(engine, params):
  """As `opened`, of an engine with a target and a draft; params: {"target": .., "draft": ..}."""
  if engine.deterministic:
    return engine, params
  models = {"target": engine.model, "draft": engine.draft}
  other = {role: unrolled(model) for role, model in models.items()}
  if other == models:
    return engine, params
  engine = dataclasses.replace(engine, model=other["target"], draft=other["draft"])
  return engine, {role: open_params(model, params[role]) for role, model in models.items()}
