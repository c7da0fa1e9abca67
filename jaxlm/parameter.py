"""What a parameter is, said where it is declared: logical axes for its layout, a role for the
optimiser.

The declaration travels as metadata of the abstract parameters (`jax.eval_shape` of a model's init),
also through `nn.scan`, which stacks layers. It is gone once the parameters are unboxed, and a
checkpoint does not hold it.
"""

import dataclasses

import flax.linen as nn
from flax import struct


@dataclasses.dataclass(frozen=True)
class Role:
  """decays: weight decay shrinks it. inputs, outputs: the dimensions that a matrix maps from and
  to, counted without stacked `layers`; all others are independent matrices. Without them it is no
  matrix, and Muon leaves it to Adam."""

  decays: bool
  inputs: tuple[int, ...] = ()
  outputs: tuple[int, ...] = ()

  @property
  def is_matrix(self) -> bool:
    return bool(self.inputs)


#: Biases, scales, rates, depthwise convolutions, tables of biases: neither decayed nor a matrix,
#: whatever their shape.
SPARED = Role(decays=False)
#: Rows that are looked up or that a softmax chooses from: embeddings and heads.
TABLE = Role(decays=True)


def matrix(
  inputs: tuple[int, ...] = (0,), outputs: tuple[int, ...] = (1,), *, decays: bool = True
) -> Role:
  """y[outputs] = sum over inputs of x[inputs] w."""
  return Role(decays, inputs, outputs)


def default_role(axes) -> Role:
  """Of a parameter that was declared without one: a matrix if it reads or writes the residual
  stream (`embed`).

  `embed` in front is its input; otherwise the last dimension is its output. One dimension is no
  matrix.
  """
  axes = [axis for axis in axes if axis != "layers"]
  if len(axes) < 2 or "embed" not in axes:
    return SPARED
  if "vocab" in axes:
    return TABLE
  dims = tuple(range(len(axes)))
  split = 1 if axes[0] == "embed" else len(dims) - 1
  return matrix(dims[:split], dims[split:])


class Parameter(nn.LogicallyPartitioned):
  """Flax's box of a value and its logical axes, with a role. None: `default_role`."""

  role: Role | None = struct.field(default=None, pytree_node=False)


def declared(init, axes, role: Role | None = None):
  """An initializer whose value carries its declaration."""
  return lambda *args: Parameter(init(*args), axes, role=role)
