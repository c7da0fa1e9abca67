"""Logical axis -> mesh axes: the one table that decides every layout.

    parameter   w_in  (embed, mlp)          -> (fsdp, tensor)
    activation  x     (batch, seq, embed_act) -> ((data, fsdp), sequence, -)

A parameter's `embed` axis lies on fsdp and is gathered when its layer runs; an activation's is
whole.
"""

import contextlib
import dataclasses
import math

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxlm.config import ConfigError, nearest
from jaxlm.parallel.mesh import BATCH_AXES
from jaxlm.parameter import Parameter, Role, default_role

RULES = (
  # parameters
  ("embed", "fsdp"),
  ("vocab", "tensor"),
  ("heads", "tensor"),
  ("kv_heads", "tensor"),
  ("mlp", "tensor"),
  ("head_dim", None),
  ("layers", None),
  # activations
  ("batch", BATCH_AXES),
  ("seq", "sequence"),
  ("chunk", "sequence"),
  ("embed_act", None),
)


@contextlib.contextmanager
def sharding_context(mesh: Mesh, rules=RULES):
  """Inside: logical constraints and kernels see this mesh.

  Everything jitted for it is traced here.
  """
  with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
    yield mesh


def path_name(path) -> str:
  """'blocks/mixer/w_q' of a key path."""
  return "/".join(
    str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path
  )


#: Logical axis -> what its size is called in a model's configuration.
FIELDS = {
  "embed": "d_model",
  "vocab": "vocab_size",
  "heads": "num_heads",
  "kv_heads": "num_kv_heads",
  "mlp": "d_ff",
  "head_dim": "head_dim",
  "layers": "num_layers",
}


def param_shardings(boxed, mesh: Mesh, rules=RULES, model=None):
  """NamedSharding of every parameter, from the logical axes it was declared with.

  boxed: abstract parameters (`jax.eval_shape` of init), still boxed by
  `nn.with_logical_partitioning`. A name without a rule, and a dimension that its mesh axes do not
  divide, are errors: Flax would replicate, or fail far from here.
  model: the configuration that the sizes come from, to name the field that does not fit.
  """
  table, names = dict(rules), logical_axes(boxed)

  def sharding(path, leaf, axes):
    where = f"parameter {path_name(path)} {tuple(leaf.shape)}"
    unknown = [axis for axis in axes if axis is not None and axis not in table]
    if unknown:
      raise ConfigError(
        f"{where}: no sharding rule for logical axis {unknown[0]!r}; {nearest(unknown[0], table)}"
      )
    spec = [table.get(axis) for axis in axes]
    for size, axis, target in zip(leaf.shape, axes, spec):
      ways = math.prod(mesh.shape[name] for name in _as_tuple(target))
      if size % ways:
        given = " x ".join(f"mesh.{name} = {mesh.shape[name]}" for name in _as_tuple(target))
        field = _field(model, FIELDS.get(axis), size)
        if field:
          raise ConfigError(
            f"{field} = {size} is not divisible by {given} ({where} is split along its {axis!r} axis); "
            f"change one of them"
          )
        raise ConfigError(f"{where}: its {axis!r} axis of size {size} is not divisible by {given}")
    return NamedSharding(mesh, PartitionSpec(*spec))

  return jax.tree.map_with_path(sharding, nn.unbox(boxed), names)


def _field(cfg, name: str | None, size: int, at: str = "model") -> str | None:
  """Dotted name of the field `name` with this value, in the configuration or in a part of it."""
  if not dataclasses.is_dataclass(cfg):
    return None
  if name is not None and getattr(cfg, name, None) == size:
    return f"{at}.{name}"
  inner = ((f"{at}.{field.name}", getattr(cfg, field.name)) for field in dataclasses.fields(cfg))
  return next((found for where, part in inner if (found := _field(part, name, size, where))), None)


def logical_axes(boxed):
  """Tree of `Axes`: logical names, one per dimension (all None where a parameter was declared
  without), and role.
  """

  def is_box(x):
    return isinstance(x, nn.meta.AxisMetadata)

  def axes(x):
    if not is_box(x):
      return Axes((None,) * x.ndim)
    return Axes(x.names, x.role if isinstance(x, Parameter) else None)

  return jax.tree.map(axes, boxed, is_leaf=is_box)


class Axes(tuple):
  """Logical names of one parameter; a leaf to jax.tree (a subclass of tuple is not a pytree node).

  role: what the parameter is to an optimiser, as declared, or the default of its names.
  """

  def __new__(cls, names, role: Role | None = None):
    axes = super().__new__(cls, names)
    axes.role = default_role(axes) if role is None else role
    return axes


def unsharded(params, shardings, min_bytes: int = 2**20) -> list[tuple[str, int]]:
  """[(name, bytes)] of parameters of at least `min_bytes` that every device of a larger mesh holds
  in full.
  """
  found = []
  for (path, leaf), sharding in zip(jax.tree.leaves_with_path(params), jax.tree.leaves(shardings)):
    size = leaf.size * leaf.dtype.itemsize
    if size >= min_bytes and sharding.is_fully_replicated and sharding.mesh.size > 1:
      found.append((path_name(path), size))
  return found


def _as_tuple(target) -> tuple[str, ...]:
  return () if target is None else (target,) if isinstance(target, str) else tuple(target)
