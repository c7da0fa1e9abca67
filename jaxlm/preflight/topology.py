"""Devices of a slice that this machine does not have, from the TPU compiler in libtpu."""

import math
import os
import re

import numpy as np

from jaxlm.config import ConfigError
from jaxlm.preflight.chips import chip_of, known_topologies


def devices(topology: str, num_slices: int = 1) -> np.ndarray:
  """The devices of `topology` (`chip:AxB`, in chips), to be put into a mesh; nothing can run on
  them.

  num_slices > 1 joins several such slices over the data-centre network (devices then have a
  slice_index). Raises ConfigError for an unknown name (with the known ones) and when libtpu is
  missing.
  """
  if not re.fullmatch(r"v\d\w*:\d+x\d+(x\d+)?", topology):
    known, chip = known_topologies(), topology.partition(":")[0].partition("-")[0]
    meant = _of_as_many_chips(topology)
    own = [name for name in known if name.startswith(f"{chip}:")]
    raise ConfigError(
      f"topology {topology!r} is not of the form chip:AxB or chip:AxBxC{meant}"
      + ("" if meant else f"; known: {', '.join(own or known)}; GPUs of this machine are --gpu")
    )
  chip = chip_of(topology)
  # Set before libtpu loads: several compilations may run side by side, and no metadata server is
  # asked.
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  # Of a host that does not exist either: without them libtpu prints ten lines of warnings.
  os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5p-128")
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  from jax.experimental import topologies

  arguments = {"num_slices": num_slices} if num_slices > 1 else {}
  if chip.name == "v4":
    arguments["chip_config_name"] = "megacore"  # two cores of a chip as one device, as v4 is run
  try:
    description = topologies.get_topology_desc(platform="tpu", topology_name=topology, **arguments)
  except Exception as error:  # the runtime raises several types; only the text tells them apart
    text = str(error)
    if "TPU support not installed" in text or "libtpu" in text.lower() and "lockfile" not in text:
      raise ConfigError(
        "compiling for a TPU needs libtpu, which is not installed: pip install -e '.[preflight]'"
      ) from None
    if "lockfile" in text:
      raise ConfigError(
        "another process holds libtpu; set ALLOW_MULTIPLE_LIBTPU_LOAD=1 in both"
      ) from None
    raise ConfigError(
      f"topology {topology!r} is not one the compiler knows ({text.splitlines()[0][:160]}); "
      f"known: {', '.join(known_topologies())}"
    ) from None
  return np.array(description.devices)


def _of_as_many_chips(name: str) -> str:
  """'; write v5e:4x4 for v5e-16' for a name of the cloud such as 'v5e-16', else ''.

  The number in the cloud's names counts chips for v5e and v6e. For v4 and v5p it counts cores, two
  per chip.
  """
  found = re.fullmatch(r"(v\d\w*)-(\d+)", name.replace("v5litepod", "v5e"))
  if found is None:
    return ""
  chip, number = found[1], int(found[2])
  chips = number // 2 if chip in ("v4", "v5p") else number
  alike = [
    topology
    for topology in known_topologies()
    if topology.split(":")[0] == chip
    and math.prod(map(int, topology.split(":")[1].split("x"))) == chips
  ]
  return f"; write {alike[0]} for {name}" if alike else ""
