"""The device mesh: four named axes, always all present.

data      batch only; parameters replicated         (across slices: gradients, once a step)
fsdp      batch and parameters; gathered per layer   (the default for everything)
sequence  time axis of activations                   (long contexts)
tensor    heads, d_ff, vocabulary                    (last resort)
"""

import collections
import dataclasses
import math
from collections.abc import Sequence
from typing import Annotated

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from jaxlm.config import ConfigError, checked
from jaxlm.ranges import Range

AXES = ("data", "fsdp", "sequence", "tensor")
BATCH_AXES = ("data", "fsdp")
#: Along one axis; -1: the rest.
Devices = Annotated[int, Range(1, also=(-1,))]


@dataclasses.dataclass(frozen=True)
@checked
class MeshConfig:
  """Number of devices along each axis; one of them may be -1: whatever is left."""

  data: Devices = 1
  fsdp: Devices = -1
  sequence: Devices = 1
  tensor: Devices = 1

  def __post_init__(self):
    sizes = dataclasses.asdict(self)
    if list(sizes.values()).count(-1) > 1:
      names = [name for name, size in sizes.items() if size == -1]
      raise ConfigError(
        f"mesh.{' and mesh.'.join(names)} are both -1; only one axis can take the rest"
      )

  def shape(self, num_devices: int) -> tuple[int, int, int, int]:
    """Sizes along AXES with -1 filled in; their product is num_devices."""
    sizes = dataclasses.asdict(self)
    fixed = math.prod(size for size in sizes.values() if size != -1)
    text = " x ".join(f"{name}={size}" for name, size in sizes.items())
    if -1 in sizes.values():
      if num_devices % fixed:
        raise ConfigError(
          f"mesh {text}: the fixed axes need a multiple of {fixed} devices, there are {num_devices}"
        )
      sizes = {name: num_devices // fixed if size == -1 else size for name, size in sizes.items()}
    elif fixed != num_devices:
      raise ConfigError(
        f"mesh {text} = {fixed} devices, but there are {num_devices}; "
        f"set one axis to -1 to take the rest"
      )
    return tuple(sizes[name] for name in AXES)


def make_mesh(cfg: MeshConfig, devices: Sequence | None = None) -> Mesh:
  """Mesh over `devices` (default: all), Auto axes; neighbours along inner axes are neighbours on
  the network.

  Several slices (devices with different `slice_index`) are joined along `data`, the only axis that
  is worth the slower network between slices.
  """
  devices = list(jax.devices() if devices is None else devices)
  shape = cfg.shape(len(devices))
  slices = collections.Counter(getattr(d, "slice_index", 0) or 0 for d in devices)
  if len(slices) > 1:
    if len(set(slices.values())) > 1:
      raise ConfigError(
        f"slices of {' and '.join(map(str, slices.values()))} devices cannot be joined into one mesh; "
        f"ask for slices of one size"
      )
    if shape[0] % len(slices):
      raise ConfigError(f"mesh.data = {shape[0]} is not a multiple of the {len(slices)} slices")
    inner, outer = (shape[0] // len(slices), *shape[1:]), (len(slices), 1, 1, 1)
    array = mesh_utils.create_hybrid_device_mesh(inner, outer, devices)
  elif devices[0].platform == "tpu":
    array = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
  else:
    array = np.array(devices).reshape(shape)
  return Mesh(array, AXES, axis_types=(AxisType.Auto,) * len(AXES))
