"""The report as a page for people."""

from rich.console import Console, Group
from rich.table import Table

from jaxlm.commands.tables import console_for
from jaxlm.preflight.report import Report

NOTE = (
  "Memory, matmul FLOPs and collectives are read off the compiled program. Seconds and utilisation are estimates "
  "for comparing programs: compiler cycles (matmuls good to 2-20 %, more on thin shapes and v6e; element-wise "
  "work 1.2-6x too high), kernels at peak, every link busy. Nothing was timed on hardware."
)
SLICES = (
  " Traffic between slices is charged at a chip's share of its host's network (6.25 GB/s for v5p, 3.1 for v5e, "
  "12.5 for v6e), without its latency and without what the runtime does on the hosts."
)
LIBRARIES = " Products in library calls (cuBLAS, cuDNN, a CPU's) are not counted: executed FLOPs are a lower bound."


def show(report: Report, console: Console | None = None) -> None:
  parts = list(_tables(report))
  console = console or console_for(*parts)
  console.print(Group(*parts))
  note = (
    NOTE
    + (SLICES if " x v" in report.topology else "")
    + (LIBRARIES if report.chip is None else "")
  )
  console.print(f"[dim]{note}[/dim]")


def _tables(r: Report):
  mesh = ", ".join(f"{axis}={size}" for axis, size in r.mesh.items() if size > 1) or "one device"
  yield f"[bold]{r.name}[/bold]: {r.program} step on {r.topology} ({mesh}), compiled in {r.compile_seconds:.0f} s"
  if r.error:
    yield f"[red]does not fit:[/red] {r.error}"
    return
  memory = Table("memory per device", "GiB", box=None)
  for label, value in (
    ("parameters", r.state["parameters"]),
    ("optimizer", r.state["optimizer"]),
    ("arguments", r.memory["argument"]),
    ("outputs", r.memory["output"]),
    ("  of which donated", r.memory["alias"]),
    ("temporaries", r.memory["temp"]),
    ("peak", r.memory["peak"]),
  ):
    memory.add_row(label, _gib(value))
  if r.chip:
    share = r.memory["peak"] / r.chip.hbm_bytes
    memory.add_row(
      "capacity",
      f"{_gib(r.chip.hbm_bytes)}  ({share:.0%} used: {'fits' if r.fits else 'DOES NOT FIT'})",
    )
  yield memory

  work = Table("work per device and step", "", box=None)
  work.add_row("model FLOPs", f"{_number(r.model_flops / 1e12, 2)} T")
  work.add_row("executed: matmuls", f"{_number(r.cost.flops / 1e12, 2)} T")
  if r.attention_flops:
    work.add_row(
      "executed: attention kernels (analytic)",
      f"{_number(r.attention_flops / 1e12, 2)} T in {r.kernels} calls",
    )
  if r.cost.kernel_flops:
    work.add_row(
      "executed: other kernels (declared)", f"{_number(r.cost.kernel_flops / 1e12, 2)} T"
    )
  if r.model_flops:
    work.add_row("executed / model", f"{r.executed_flops / r.model_flops:.3f}")
  work.add_row("HBM bytes (approximate)", f"{_number(r.cost.bytes / 1e9, 1)} GB")
  for row in _estimates(r):
    work.add_row(*row)
  yield work

  classes = Table("op class", "instructions", "TFLOP", "GB", "cycles (M)", box=None)
  for name, row in sorted(r.cost.by_class().items(), key=lambda item: -item[1]["cycles"]):
    classes.add_row(
      name,
      str(row["count"]),
      _number(row["flops"] / 1e12, 2),
      _number(row["bytes"] / 1e9, 2),
      _number(row["cycles"] / 1e6, 1),
    )
  yield classes

  wire = Table("collective", "axes", "count", "payload GB", "received GB", box=None)
  for (kind, axes), row in sorted(r.by_collective().items(), key=lambda item: -item[1]["wire"]):
    wire.add_row(
      kind,
      " x ".join(axes) or "?",
      str(row["count"]),
      _number(row["payload"] / 1e9, 3),
      _number(row["wire"] / 1e9, 3),
    )
  least = sum(r.minimum.values())
  wire.add_row("[bold]total[/bold]", "", "", "", _number(r.wire_bytes / 1e9, 3))
  if least:
    parts = " + ".join(f"{axis} {_number(value / 1e9, 3)}" for axis, value in r.minimum.items())
    wire.add_row(
      "analytic minimum", parts, "", "", f"{_number(least / 1e9, 3)}  (x {r.wire_ratio:.2f})"
    )
  yield wire

  expensive = Table("most expensive instructions", "class", "runs", "cycles (M)", "where", box=None)
  for w in r.cost.most_expensive():
    expensive.add_row(
      w.name,
      w.op_class,
      str(w.count),
      _number(w.cycles * w.count / 1e6, 2),
      f"{_short(w.source)}  {w.op_name[-48:]}",
    )
  yield expensive
  if r.unknown_loops:
    yield f"[red]loops of unknown trip count (counted once):[/red] {', '.join(r.unknown_loops)}"


def _estimates(r: Report):
  s = r.seconds
  if not s:
    return
  yield "estimate: matmuls", f"{_number(s['matmul'], 3)} s"
  yield "estimate: attention kernels, at peak", f"{_number(s['attention'], 3)} s"
  yield "estimate: other kernels, at peak", f"{_number(s['kernels'], 3)} s"
  yield (
    "estimate: everything else",
    f"{_number(s['other_low'], 3)} to {_number(s['other_high'], 3)} s",
  )
  yield "estimate: communication in a slice", f"{_number(s['wire'] * 1e3, 1)} ms"
  if r.dcn_bytes:
    known = r.chip.dcn_bandwidth is not None
    text = (
      f"{_number(s['dcn'] * 1e3, 1)} ms"
      if known
      else "the network of this chip's hosts is not known"
    )
    yield "estimate: communication between slices", text
  yield (
    "estimate: step",
    f"{_number(s['best'], 3)} (communication hidden) to {_number(s['worst'], 3)} s",
  )
  if r.utilisation:
    yield "estimate: model-FLOPs utilisation", f"{r.utilisation[0]:.2f} to {r.utilisation[1]:.2f}"


def ranking(reports: list[Report]) -> tuple[tuple[str, ...], list[list[str]]]:
  """(columns, rows): layouts side by side, those that fit first, by the pessimistic step time."""
  columns, rows = (
    (
      "mesh",
      "program",
      "fits",
      "peak GiB",
      "matmul s",
      "wire GB",
      "x minimum",
      "step s (estimate)",
      "dominating",
    ),
    [],
  )
  for r in sorted(reports, key=lambda r: (not r.fits, r.seconds.get("worst", float("inf")))):
    mesh = ",".join(f"{a}={n}" for a, n in r.mesh.items() if n > 1) or "1"
    s = r.seconds
    rows.append(
      [
        mesh,
        r.program,
        "yes" if r.fits else "no",
        _gib(r.memory["peak"]) if r.memory else "-",
        _number(s["matmul"], 3) if s else "-",
        _number(r.wire_bytes / 1e9, 3),
        f"{r.wire_ratio:.2f}" if r.wire_ratio else "-",
        f"{_number(s['best'], 3)} to {_number(s['worst'], 3)}" if s else "-",
        r.dominating if not r.error else "-",
      ]
    )
  return columns, rows


def _number(value: float, digits: int) -> str:
  """With so many decimals; a number that would lose its digits, with two significant ones."""
  return f"{value:.2g}" if 0 < abs(value) < 10.0 ** (1 - digits) else f"{value:.{digits}f}"


def _gib(size: float) -> str:
  return _number(size / 2**30, 2)


def _short(source: str) -> str:
  return "/".join(source.split("/")[-2:])
