"""What a compiled step must not exceed, and which line breaks it."""

import dataclasses

from jaxlm.preflight.report import Report


@dataclasses.dataclass(frozen=True)
class Budget:
  """Limits per device; None is not checked. Bytes, seconds (the compiler's estimate), ratios.

  unknown_loops: how many loops may run a number of times that depends on the data; they count once.
  """

  peak_bytes: float | None = None
  matmul_seconds: float | None = None
  executed_over_model: float | None = None
  wire_ratio: float | None = None
  unknown_loops: int = 0


def broken(report: Report, budget: Budget = Budget()) -> list[str]:
  """A sentence for each limit that the report breaks; every program must fit, be readable, and
  gather no ring.
  """
  lines = []
  if not report.fits:
    lines.append(f"does not fit: {report.error or _gib(report.memory.get('peak', 0))}")
    return lines
  if len(report.unknown_loops) > budget.unknown_loops:
    lines.append(
      f"trip count of {len(report.unknown_loops)} loops unknown: {', '.join(report.unknown_loops[:3])}"
    )
  if report.windowed_bytes and report.mesh.get("tensor", 1) == 1:
    worst = max((c for c in report.collectives if c.windowed), key=lambda c: c.total)
    lines.append(
      f"windowed einsum: {report.windowed_bytes / 1e9:.3f} GB in rings, most at {worst.source or worst.op_name}"
    )
  if budget.peak_bytes and report.memory["peak"] > budget.peak_bytes:
    lines.append(
      f"peak HBM {_gib(report.memory['peak'])} over the budget of {_gib(budget.peak_bytes)}"
    )
  if budget.matmul_seconds and report.seconds["matmul"] > budget.matmul_seconds:
    worst = max(
      (w for w in report.cost.work if w.op_class == "matmul"), key=lambda w: w.cycles * w.count
    )
    lines.append(
      f"matmul {report.seconds['matmul']:.3f} s over the budget of {budget.matmul_seconds:.3f} s, "
      f"most at {worst.source or worst.op_name}"
    )
  if budget.executed_over_model and report.model_flops:
    ratio = report.executed_flops / report.model_flops
    if ratio > budget.executed_over_model:
      lines.append(
        f"executed / model FLOPs {ratio:.3f} over the budget of {budget.executed_over_model:.3f}"
      )
  if budget.wire_ratio and report.wire_ratio and report.wire_ratio > budget.wire_ratio:
    worst = max(report.collectives, key=lambda c: c.total)
    where = worst.source or worst.op_name
    lines.append(
      f"wire bytes {report.wire_ratio:.3f} x the minimum, budget {budget.wire_ratio:.2f}; most in "
      f"{worst.kind}{f' at {where}' if where else ''}"
    )
  return lines


def _gib(size: float) -> str:
  return f"{size / 2**30:.2f} GiB"
