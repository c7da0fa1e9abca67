"""What one step costs, read off the compiled program: matmul FLOPs, HBM bytes, the compiler's
cycles by op class.

FLOPs count multiply and add of dots and convolutions (the TPU compiler turns many dots into
convolutions), inside fusions too, times the loops around them. Pallas kernels are opaque: they have
no cycles, and their FLOPs are the cost estimate that their author attached; those of attention
kernels are left out, for `flops.py` counts attention. Bytes are operands and results of each
top-level instruction that lie in HBM, slices charged as slices; an approximation. Cycles are the
compiler's, good to about 2-20 % for large matmuls and 1.2 to 6 times too high for element-wise work.
"""

import collections
import dataclasses
import math
import re

from jaxlm.preflight.hlo import Computation, Instruction, Module
from jaxlm.preflight.loops import Loops

FREE = {
  "parameter",
  "constant",
  "tuple",
  "get-tuple-element",
  "bitcast",
  "while",
  "call",
  "conditional",
  "after-all",
  "partition-id",
  "replica-id",
  "opt-barrier",
  "async-start",  # what it calls is counted by itself
}

#: Custom calls of the compiler that move nothing.
FREE_CALLS = {
  "AllocateBuffer",
  "AssumeGatherIndicesInBound",
  "AsyncCollectiveDone",
  "AsyncCollectiveStart",
  "ConcatBitcast",
}


@dataclasses.dataclass(frozen=True)
class Work:
  """One top-level instruction's cost, per occurrence, and how often it runs."""

  name: str
  op_class: str  # matmul, kernel, elementwise, reduce, copy, gather/scatter, collective
  cycles: int
  flops: int
  bytes: int
  count: int
  op_name: str
  source: str
  kernel_flops: int = 0  # by the cost estimate of a Pallas kernel that is not attention


@dataclasses.dataclass(frozen=True)
class Cost:
  work: tuple[Work, ...]

  @property
  def flops(self) -> int:
    return sum(w.flops * w.count for w in self.work)

  @property
  def kernel_flops(self) -> int:
    return sum(w.kernel_flops * w.count for w in self.work)

  @property
  def bytes(self) -> int:
    return sum(w.bytes * w.count for w in self.work)

  def by_class(self) -> dict[str, dict[str, int]]:
    """op class -> cycles, flops, bytes and instruction count per step."""
    table = collections.defaultdict(lambda: dict(cycles=0, flops=0, bytes=0, count=0))
    for w in self.work:
      row = table[w.op_class]
      row["cycles"] += w.cycles * w.count
      row["flops"] += w.flops * w.count
      row["bytes"] += w.bytes * w.count
      row["count"] += w.count
    return dict(table)

  def most_expensive(self, n: int = 10) -> list[Work]:
    return sorted(self.work, key=lambda w: -w.cycles * w.count)[:n]


def cost(loops: Loops) -> Cost:
  module, rows = loops.module, []
  for site in loops.sites():
    instruction = site.instruction
    if instruction.opcode in FREE or instruction.opcode.endswith("-done"):
      continue
    if instruction.opcode == "custom-call" and _target(instruction) in FREE_CALLS:
      continue
    flops = instruction_flops(module, site.computation, instruction)
    rows.append(
      Work(
        name=instruction.name,
        op_class=_op_class(module, instruction, flops),
        cycles=instruction.cycles,
        flops=flops,
        bytes=_bytes(module, site.computation, instruction),
        count=site.count,
        op_name=_op_name(module, instruction),
        source=_source(module, instruction),
        kernel_flops=_kernel_flops(module, instruction),
      )
    )
  return Cost(tuple(rows))


def instruction_flops(module: Module, computation: Computation, instruction: Instruction) -> int:
  """Matmul FLOPs of one occurrence, fusions opened."""
  if instruction.opcode == "dot":
    lhs = computation.instructions[instruction.operands[0]].arrays[0]
    contracted = math.prod(lhs.dims[d] for d in instruction.integers("lhs_contracting_dims"))
    return 2 * instruction.arrays[0].size * contracted
  if instruction.opcode == "convolution":
    return _convolution_flops(computation, instruction)
  if instruction.opcode == "fusion":
    inner = module.computations[instruction.calls("calls")]
    return sum(instruction_flops(module, inner, i) for i in inner.instructions.values())
  return 0


def _convolution_flops(computation: Computation, instruction: Instruction) -> int:
  """2 x the multiply-adds whose window position holds a real element: padding and dilation holes
  cost nothing.
  """
  lhs, rhs = (computation.instructions[o].arrays[0] for o in instruction.operands[:2])
  lhs_labels, rhs_labels, out_labels = re.match(
    r"([\w?]+)_([\w?]+)->([\w?]+)", instruction.attribute("dim_labels")
  ).groups()
  out, window = instruction.arrays[0], _window(instruction.attribute("window") or "")
  positions = 1
  spatial = sorted(c for c in lhs_labels if c.isdigit())
  for k, label in enumerate(spatial):
    positions *= _valid_positions(
      size=lhs.dims[lhs_labels.index(label)],
      kernel=rhs.dims[rhs_labels.index(label)],
      out=out.dims[out_labels.index(label)],
      **{key: values[k] for key, values in window.items() if k < len(values)},
    )
  groups = int(instruction.attribute("feature_group_count") or 1)
  batch_groups = int(instruction.attribute("batch_group_count") or 1)
  features_in = lhs.dims[lhs_labels.index("f")] // groups
  features_out = rhs.dims[rhs_labels.index("o")]
  batch = lhs.dims[lhs_labels.index("b")] // batch_groups
  return 2 * features_in * features_out * batch * positions


def _window(text: str) -> dict[str, list]:
  fields = dict(part.split("=") for part in text.split())

  def numbers(key):
    return [int(v) for v in fields[key].split("x")] if key in fields else []

  pads = (
    [tuple(int(v) for v in p.split("_"))[0] for p in fields["pad"].split("x")]
    if "pad" in fields
    else []
  )
  return {
    "stride": numbers("stride"),
    "pad": pads,
    "lhs_dilate": numbers("lhs_dilate"),
    "rhs_dilate": numbers("rhs_dilate"),
  }


def _valid_positions(size, kernel, out, stride=1, pad=0, lhs_dilate=1, rhs_dilate=1) -> int:
  """Pairs (output index, kernel index) that meet an element of the input along one dimension."""
  if stride == lhs_dilate == rhs_dilate == 1 and pad == 0 and out == size - kernel + 1:
    return out * kernel
  reach, count = (size - 1) * lhs_dilate, 0
  for k in range(kernel):
    # Input coordinate o * stride + offset must be a multiple of lhs_dilate within [0, reach].
    offset = k * rhs_dilate - pad
    low = max(0, -(offset // stride) if offset < 0 else 0)
    high = min(out - 1, (reach - offset) // stride)
    if high < low:
      continue
    if lhs_dilate == 1:
      count += high - low + 1
    else:
      count += sum(
        1
        for o in range(low, high + 1)
        if (o * stride + offset) >= 0 and (o * stride + offset) % lhs_dilate == 0
      )
  return count


def _op_class(module: Module, instruction: Instruction, flops: int) -> str:
  opcodes = _opcodes(module, instruction)
  if flops:
    return "matmul"
  if instruction.opcode == "custom-call":
    return "kernel" if "tpu_custom_call" in instruction.attributes else "other"
  if any(o.startswith(("all-", "reduce-scatter", "collective", "ragged-all")) for o in opcodes):
    return "collective"
  if opcodes & {"gather", "scatter", "sort"}:
    return "gather/scatter"
  if opcodes & {"reduce", "reduce-window"}:
    return "reduce"
  if opcodes <= {
    "parameter",
    "constant",
    "copy",
    "copy-start",
    "bitcast",
    "slice",
    "dynamic-slice",
    "dynamic-update-slice",
    "transpose",
    "tuple",
    "get-tuple-element",
    "fusion",
    "pad",
    "concatenate",
    "reshape",
    "broadcast",
  }:
    return "copy"
  return "elementwise"


def _kernel_flops(module: Module, instruction: Instruction) -> int:
  """By the kernel's cost estimate; 0 of what is no Pallas kernel, and of attention kernels."""
  if instruction.opcode != "custom-call" or _target(instruction) != "tpu_custom_call":
    return 0
  names = f"{instruction.name} {_op_name(module, instruction)}"
  if re.search("attention|splash", names):
    return 0
  found = re.search(r'"cost_estimate":\{[^}]*"flops":"?(\d+)', instruction.attributes)
  return int(found.group(1)) if found else 0


def _target(instruction: Instruction) -> str:
  found = re.search(r'custom_call_target="(\w+)"', instruction.attributes)
  return found.group(1) if found else ""


def _opcodes(module: Module, instruction: Instruction) -> set[str]:
  found = {instruction.opcode}
  if instruction.opcode == "fusion":
    for inner in module.computations[instruction.calls("calls")].instructions.values():
      found |= _opcodes(module, inner)
  return found


def _bytes(module: Module, computation: Computation, instruction: Instruction) -> int:
  """HBM bytes read and written by one occurrence."""
  if instruction.opcode == "copy-start":  # (copy, source, context): one of them may be on chip
    return sum(a.bytes for a in instruction.arrays[:2] if not a.on_chip)
  if instruction.opcode in ("slice", "dynamic-slice"):
    source = computation.instructions.get(instruction.operands[0])
    moved = sum(a.bytes for a in instruction.arrays)
    return _hbm(instruction) + (moved if source is None or _hbm(source) else 0)
  if instruction.opcode == "dynamic-update-slice":
    return 2 * _hbm(computation.instructions[instruction.operands[1]])
  inner = (
    module.computations[instruction.calls("calls")] if instruction.opcode == "fusion" else None
  )
  written = _hbm(instruction)
  if inner is not None:
    written = _written(inner, instruction)
  read = 0
  for k, name in enumerate(instruction.operands):
    operand = computation.instructions.get(name)
    if operand is None:
      continue
    size = _hbm(operand)
    if size and inner is not None and k in inner.parameters:
      size = min(size, _read_of_parameter(inner, inner.parameters[k].name, size))
    read += size
  return read + written


def _hbm(instruction: Instruction) -> int:
  return sum(a.bytes for a in instruction.arrays if not a.on_chip)


def _read_of_parameter(inner: Computation, name: str, size: int) -> int:
  """Bytes of a fused parameter that are really read: slices of it, nothing where it is only updated
  in place.
  """
  total = 0
  for user in inner.instructions.values():
    if name not in user.operands:
      continue
    if user.opcode in ("dynamic-slice", "slice", "gather"):
      total += sum(a.bytes for a in user.arrays)
    elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
      continue
    elif user.opcode == "bitcast":
      total += _read_of_parameter(inner, user.name, size)
    else:
      return size
  return total


def _written(inner: Computation, fusion: Instruction) -> int:
  root = inner.root
  roots = [inner.instructions[o] for o in root.operands] if root.opcode == "tuple" else [root]
  total = 0
  for out, array in zip(roots, fusion.arrays):
    while out.opcode == "bitcast":
      out = inner.instructions[out.operands[0]]
    if out.opcode == "dynamic-update-slice":
      array = inner.instructions[out.operands[1]].arrays[0]
    total += 0 if array.on_chip else array.bytes
  return total


def _op_name(module: Module, instruction: Instruction) -> str:
  if instruction.op_name or instruction.opcode != "fusion":
    return instruction.op_name
  return module.computations[instruction.calls("calls")].root.op_name


def _source(module: Module, instruction: Instruction) -> str:
  where = module.source(instruction)
  if where or instruction.opcode != "fusion":
    return where
  inner = module.computations[instruction.calls("calls")]
  return next((s for i in reversed(inner.instructions.values()) if (s := module.source(i))), "")
