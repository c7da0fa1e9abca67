"""Every collective of a compiled program: kind, mesh axes, payload, bytes on the wire, count per
step.

Wire bytes are what one device must *receive*, for a group of n devices and a payload of P bytes
(the full, gathered array): all-gather P (n-1)/n, reduce-scatter P (n-1)/n, all-reduce 2 P (n-1)/n,
all-to-all P (n-1)/n, permute P. What goes from slice to slice is no collective in the program but
a transfer to the host, which sends it over the data-centre network (DCN): its kind is read off the
transfer, its n is the number of slices, its P the array that each device hands over. Asynchronous collectives that the compiler cuts into pieces share a
channel id:
they are counted once, at the outermost loop level where one of the pieces stands.
"""

import dataclasses
import math
import re

import numpy as np

from jaxlm.preflight.hlo import Instruction
from jaxlm.preflight.loops import Loops

KINDS = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
  "ragged-all-to-all",
  "collective-broadcast",
)


@dataclasses.dataclass(frozen=True)
class Collective:
  kind: str
  axes: tuple[str, ...]  # mesh axes it runs along; () when the groups match no set of axes
  group: int  # devices per group
  payload: int  # bytes of the full array, per occurrence
  wire: int  # bytes one device receives, per occurrence
  count: int  # occurrences per step
  dtype: str
  op_name: str
  source: str
  windowed: bool  # a permute of a windowed einsum: a weight gather turned into a ring
  between_slices: bool = False  # over the data-centre network, not over the slice's own links

  @property
  def total(self) -> int:
    return self.wire * self.count


def collectives(loops: Loops, mesh_shape: dict[str, int]) -> list[Collective]:
  """All collectives, the most expensive first. mesh_shape: axis name -> size, in the order of the device
  array.
  """
  found: dict[tuple, tuple[int, int, object]] = {}
  for order, site in enumerate(loops.sites(fused=True)):
    kind = _kind(site.instruction.opcode)
    if kind is None:
      continue
    # The pieces of one collective share all of this; the collectives of all shard_map bodies share
    # channel 1. Two of those that agree in all of it (a psum of a pair of equal shape) would count
    # once: pieces cannot be told from them.
    channel = (
      site.instruction.channel or f"unnumbered {site.computation.name} {site.instruction.name}"
    )
    key = (channel, kind, tuple(a.dims for a in site.instruction.arrays), site.instruction.op_name)
    known = found.get(key)
    if known is None or site.depth < known[0]:
      found[key] = (site.depth, order, site)
  result = []
  for _, _, site in found.values():
    kind, n_axes = _kind(site.instruction.opcode), mesh_shape
    group, axes = _groups(site.instruction, n_axes)
    payload = _payload(kind, site.instruction, group)
    if group <= 1 and kind != "collective-permute":
      continue
    fraction = {"all-reduce": 2 * (group - 1) / group, "collective-permute": 1.0}.get(
      kind, (group - 1) / group
    )
    computation = site.computation.name
    result.append(
      Collective(
        kind=kind,
        axes=axes,
        group=group,
        payload=payload,
        wire=int(payload * fraction),
        count=site.count,
        dtype=site.instruction.arrays[0].dtype if site.instruction.arrays else "",
        op_name=site.instruction.op_name,
        source=loops.module.source(site.instruction),
        windowed=kind == "collective-permute" and _windowed(loops, site, computation),
      )
    )
  result += [_between_slices(site, loops) for site in loops.sites(fused=True) if _is_sent(site)]
  return sorted(result, key=lambda c: -c.total)


_TRANSFER = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_TARGET = re.compile(r'_xla_megascale_target="(\{[^}]*\})x')


def _is_sent(site) -> bool:
  return site.instruction.opcode == "send" and "_xla_megascale_" in site.instruction.attributes


def _between_slices(site, loops: Loops) -> Collective:
  """The transfer of one array to the hosts of other slices. They are joined along `data`."""
  said = _TRANSFER.search(site.instruction.attributes)
  kind = said[1].lower().replace("_", "-") if said else "transfer"
  target = _TARGET.search(site.instruction.attributes)
  slices = _members(target[1]) if target else 2
  payload = site.instruction.arrays[0].bytes  # (array, context, token)
  fraction = {
    "all-reduce": 2 * (slices - 1) / slices,
    "reduce-scatter": (slices - 1) / slices,
    "all-to-all": (slices - 1) / slices,
    "all-gather": slices - 1,  # what is handed over is a part, not the whole
  }.get(kind, 1.0)
  return Collective(
    kind=kind,
    axes=("data",),
    group=slices,
    payload=payload,
    wire=int(payload * fraction),
    count=site.count,
    dtype=site.instruction.arrays[0].dtype,
    op_name=site.instruction.op_name,
    source=loops.module.source(site.instruction),
    windowed=False,
    between_slices=True,
  )


def _members(text: str) -> int:
  """How many numbers {1,2} or {0:3} names."""
  count = 0
  for part in text.strip("{}").split(","):
    first, colon, last = part.partition(":")
    count += int(last) - int(first) + 1 if colon else 1
  return count


def _kind(opcode: str) -> str | None:
  base = opcode.removesuffix("-start")
  return base if base in KINDS else None


def _windowed(loops: Loops, site, computation: str) -> bool:
  """Inside a windowed-einsum loop, or feeding one (the first step of the ring stands before the
  loop).
  """
  if "windowed_dot_general" in computation or any("windowed_dot_general" in c for c in site.inside):
    return True
  return "dot_general" in site.instruction.op_name


def _payload(kind: str, instruction: Instruction, group: int) -> int:
  arrays = instruction.arrays
  if (
    instruction.opcode.endswith("-start")
    and kind in ("all-gather", "collective-permute")
    and len(arrays) >= 2
  ):
    arrays = (
      arrays[len(arrays) // 2 :] if kind == "all-gather" else arrays[1:2]
    )  # (operand, result, context ...)
  size = sum(a.bytes for a in arrays if a.dtype != "token")
  return size * group if kind == "reduce-scatter" else size


def _groups(instruction: Instruction, mesh_shape: dict[str, int]) -> tuple[int, tuple[str, ...]]:
  """(devices per group, mesh axes along which the members of a group differ)."""
  total = math.prod(mesh_shape.values())
  group = first_group(instruction.attributes, total)
  if group is None:
    return total, tuple(a for a, n in mesh_shape.items() if n > 1)
  coordinates = np.array(np.unravel_index(np.array(group), tuple(mesh_shape.values())))
  varying = [len(set(row)) > 1 for row in coordinates]
  axes = tuple(a for a, v in zip(mesh_shape, varying) if v)
  return len(group), axes


def first_group(attributes: str, total: int) -> list[int] | None:
  """Members of the first replica group, in any of the four notations; None when all devices are one
  group.
  """
  match = re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", attributes)
  if match:
    pairs = re.findall(
      r"\{(\d+),(\d+)\}", re.search(r"source_target_pairs=\{(.*?)\}\}", attributes).group(0)
    )
    target = {int(a): int(b) for a, b in pairs}
    ring, device = [int(pairs[0][0])], target[int(pairs[0][0])]
    while device not in ring and device in target:
      ring.append(device)
      device = target[device]
    return ring if len(ring) > 1 else [ring[0], device]
  match = re.search(r"replica_groups=\{\{([\d,]*)\}", attributes)
  if match:
    return [int(d) for d in match.group(1).split(",") if d] or None
  match = re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
  if match:
    rows, columns, shape, order = match.groups()
    ids = np.arange(total).reshape([int(s) for s in shape.split(",")])
    if order:
      ids = ids.transpose([int(o) for o in order.split(",")])
    return ids.reshape(int(rows), int(columns))[0].tolist()
  match = re.search(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^)]*)\))? \{([^}]*)\}", attributes
  )
  if match:
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", match.group(1))}
    chosen = re.findall(r"'([^']+)'", match.group(3))
    ids = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
    picked = tuple(slice(None) if name in chosen else 0 for name in sizes)
    return ids[picked].reshape(-1).tolist()
  return None
