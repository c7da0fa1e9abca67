"""The report on one compiled program: does it fit, what does it do, what does it send, how long
might it take.

Memory, matmul FLOPs and the kind, size and number of collectives are read off the compiled program.
Seconds and utilisation are estimates for comparing programs, not predictions: `best` hides all
communication and takes the low end of everything that is not a matmul, `worst` hides nothing.
"""

import collections
import dataclasses

from jaxlm.preflight import hlo
from jaxlm.preflight.chips import Chip
from jaxlm.preflight.collectives import Collective, collectives
from jaxlm.preflight.compile import Compiled
from jaxlm.preflight.cost import Cost, cost
from jaxlm.preflight.loops import Loops


@dataclasses.dataclass(frozen=True)
class Report:
  """Per device and per step. Bytes, FLOPs, seconds."""

  name: str
  program: str
  topology: str
  chip: Chip | None
  mesh: dict[str, int]
  fits: bool
  error: str
  memory: dict[str, int]
  state: dict[str, int]
  model_flops: float
  attention_flops: (
    float  # what a fused kernel executes, analytic: kernels are opaque to the compiler
  )
  cost: Cost
  collectives: tuple[Collective, ...]
  minimum: dict[str, int]
  kernels: int
  unknown_loops: tuple[str, ...]
  compile_seconds: float

  @property
  def executed_flops(self) -> float:
    return self.cost.flops + self.cost.kernel_flops + self.attention_flops

  @property
  def wire_bytes(self) -> int:
    return sum(c.total for c in self.collectives)

  @property
  def dcn_bytes(self) -> int:
    """Of wire_bytes, what comes from other slices over the data-centre network."""
    return sum(c.total for c in self.collectives if c.between_slices)

  @property
  def wire_ratio(self) -> float | None:
    least = sum(self.minimum.values())
    return self.wire_bytes / least if least else None

  @property
  def windowed_bytes(self) -> int:
    return sum(c.total for c in self.collectives if c.windowed)

  @property
  def seconds(self) -> dict[str, float]:
    """matmul: the compiler's cycles. other: HBM bytes at full bandwidth (low) to the compiler's
    cycles (high).
    attention: analytic, at peak. kernels: the FLOPs of the other Pallas kernels by their cost
    estimates, at peak. wire: all links of the slice busy. dcn: what comes from other
    slices, at the chip's share of its host's network; 0 where that is not known."""
    if self.chip is None or self.error:
      return {}
    rows, hz = self.cost.by_class(), self.chip.clock_hz
    rest = [row for name, row in rows.items() if name not in ("matmul", "collective")]
    high = sum(row["cycles"] for row in rest) / hz
    found = {
      "matmul": rows.get("matmul", {"cycles": 0})["cycles"] / hz,
      "other_low": min(sum(row["bytes"] for row in rest) / self.chip.hbm_bandwidth, high),
      "other_high": high,
      "attention": self.attention_flops / self.chip.peak_flops,
      "kernels": self.cost.kernel_flops / self.chip.peak_flops,
      "wire": (self.wire_bytes - self.dcn_bytes) / self.chip.wire_bandwidth,
      "dcn": self.dcn_bytes / self.chip.dcn_bandwidth if self.chip.dcn_bandwidth else 0.0,
    }
    products = found["matmul"] + found["attention"] + found["kernels"]
    found["best"] = products + found["other_low"]
    sent = found["wire"] + found["dcn"]
    found["worst"] = products + found["other_high"] + sent
    return found

  @property
  def utilisation(self) -> tuple[float, float] | None:
    """Model-FLOPs utilisation, (worst, best); None without a chip's peak."""
    s = self.seconds
    if not s or not s["best"] or not self.model_flops:
      return None
    return tuple(self.model_flops / (self.chip.peak_flops * s[end]) for end in ("worst", "best"))

  @property
  def dominating(self) -> str:
    """The collective that sends most: 'all-gather over fsdp'."""
    groups = self.by_collective()
    if not groups:
      return "none"
    kind, axes = max(groups, key=lambda key: groups[key]["wire"])
    return f"{kind} over {' x '.join(axes) or 'unrecognised groups'}"

  def by_collective(self) -> dict[tuple[str, tuple[str, ...]], dict[str, int]]:
    """(kind, axes) -> count, payload and wire bytes per step."""
    groups = collections.defaultdict(lambda: dict(count=0, payload=0, wire=0))
    for c in self.collectives:
      row = groups[f"{c.kind}{' between slices' if c.between_slices else ''}", c.axes]
      row["count"] += c.count
      row["payload"] += c.payload * c.count
      row["wire"] += c.total
    return dict(groups)

  def to_json(self) -> dict:
    """Plain values of everything above; seconds and utilisation are marked as estimates."""
    return {
      "name": self.name,
      "program": self.program,
      "topology": self.topology,
      "mesh": self.mesh,
      "fits": self.fits,
      "error": self.error,
      "memory_bytes": self.memory,
      "state_bytes": self.state,
      "capacity_bytes": self.chip.hbm_bytes if self.chip else None,
      "model_flops": self.model_flops,
      "matmul_flops": self.cost.flops,
      "attention_flops": self.attention_flops,
      "kernel_flops": self.cost.kernel_flops,
      "executed_over_model": self.executed_flops / self.model_flops if self.model_flops else None,
      "bytes_accessed": self.cost.bytes,
      "by_class": self.cost.by_class(),
      "kernels": self.kernels,
      "collectives": [
        {"kind": kind, "axes": axes, **row} for (kind, axes), row in self.by_collective().items()
      ],
      "wire_bytes": self.wire_bytes,
      "dcn_bytes": self.dcn_bytes,
      "wire_minimum": self.minimum,
      "wire_ratio": self.wire_ratio,
      "windowed_einsum_wire_bytes": self.windowed_bytes,
      "dominating_collective": self.dominating,
      "unknown_loops": self.unknown_loops,
      "compile_seconds": self.compile_seconds,
      "estimates": {"seconds": self.seconds, "utilisation": self.utilisation},
      "most_expensive": [dataclasses.asdict(w) for w in self.cost.most_expensive()],
    }


def make_report(
  name: str,
  topology: str,
  chip: Chip | None,
  compiled: Compiled,
  *,
  model_flops: float,
  attention_flops: float,
  minimum: dict[str, int],
) -> Report:
  """Reads the compiled text. FLOPs are per device; attention_flops counts only when the program has
  kernels.
  """
  common = dict(
    name=name,
    program=compiled.program,
    topology=topology,
    chip=chip,
    mesh=compiled.mesh_shape,
    error=compiled.error,
    memory=compiled.memory,
    state=compiled.state_bytes,
    model_flops=model_flops,
    minimum=minimum,
    compile_seconds=compiled.seconds,
  )
  if compiled.error:
    return Report(
      fits=False,
      attention_flops=attention_flops,
      cost=Cost(()),
      collectives=(),
      kernels=0,
      unknown_loops=(),
      **common,
    )
  loops = Loops(hlo.parse(compiled.text))
  total = cost(loops)
  kernels = sum(w.count for w in total.work if w.op_class == "kernel")
  return Report(
    fits=chip is None or compiled.memory["peak"] <= chip.hbm_bytes,
    attention_flops=attention_flops if kernels else 0.0,
    cost=total,
    collectives=tuple(collectives(loops, compiled.mesh_shape)),
    kernels=kernels,
    unknown_loops=tuple(loops.unknown),
    **common,
  )
