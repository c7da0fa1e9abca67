"""Attention with biases on TPUs that are not there: the compiler's cycles of the Pallas kernel and
of the XLA form.

  python bench/attention_estimates.py [--chips v5e v5p v6e] [--cases mrt5_encoder ...] [--write]

Each estimate is a process of its own: the profiler ends the process where it meets an instruction
that it does not know, and its flags are read once. One program computes o and all gradients of
given q, k, v and do. Their layout is what suits the form, as that of projections in a model would
be: time last for the kernel; for XLA's form as the compiler likes, or where the profiler dies of
that (v5p), heads before time. Cycles of an instruction come from libtpu's static profile
(undocumented; figures are comparable for one libtpu only) and count once per trip of the loops
around it. Instructions that share a profile with another one are listed once by it: the XLA form's
sum is a little too low.

The profiled program is cut to 2 rows of 2 heads, as the profiler's time and memory grow with the
work. At that size XLA's scores stay on the chip. So the same program is compiled, without the
profiler, at `real` rows and heads of a device, and what it writes to HBM and reads back there is
counted: results of fusions and the like, and operands made in the same computation. Arguments,
slices of them and sums updated in place are not counted, so XLA's bytes are too low as well.
`seconds` are those of the real size: the larger of cycles (scaled by rows times heads) / clock and
bytes / bandwidth. Figures: bench/attention_estimates.json.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

from kernel_estimates import write

from jaxlm import json_text

RESULTS = pathlib.Path(__file__).with_suffix(".json")
TOPOLOGIES = {"v5e": "v5e:1x1", "v5p": "v5p:2x2x1", "v6e": "v6e:1x1"}
LIMIT_S = 240
ORDERS = {"free": (0, 1, 2, 3), "time_last": (0, 2, 3, 1), "heads_first": (0, 2, 1, 3)}
LAYOUTS = {
  "pallas": ("time_last",),
  "xla": ("free", "heads_first"),
  "splash": ("heads_first",),
}
FLAGS = "--xla_jf_dump_static_llo_profile_to={} --xla_tpu_check_llo_types=false"


@dataclasses.dataclass(frozen=True)
class Case:
  """An attention of a paper. real: rows and heads of a device, batch and N: those that are
  profiled.

  keys: numbers per key and query (CABLE: 2); gate: a number per key. other: the implementation that
  the kernel is compared with.
  """

  T: int
  causal: bool
  S: int | None = None
  H: int = 64
  buckets: int = 0
  slopes: bool = False
  keys: int = 0
  gate: bool = False
  valid: bool = False
  packed: bool = False
  softmax1: bool = False
  real: tuple[int, int] = (16, 12)
  batch: int = 2
  N: int = 2
  other: str = "xla"


CASES = {
  "mrt5_encoder": Case(1024, False, buckets=32, gate=True, valid=True, softmax1=True, real=(32, 6)),
  "mrt5_decoder": Case(1024, True, buckets=32, valid=True, softmax1=True, real=(32, 6)),
  "mrt5_cross": Case(256, False, S=1024, gate=True, valid=True, softmax1=True, real=(32, 6)),
  "lexinvariant_t5": Case(512, True, H=128, buckets=32, packed=True, real=(16, 8)),
  "carope_small_alibi": Case(512, True, slopes=True, packed=True),
  "carope_small_cable": Case(512, True, keys=2, packed=True),
  "alibi_1024": Case(1024, True, slopes=True, packed=True),
  "cable_1024": Case(1024, True, keys=2, packed=True),
  "short_t5": Case(256, True, buckets=32),
  "gpt2_small": Case(512, True, packed=True, real=(64, 12), other="splash"),
  "packed_256": Case(256, True, packed=True, real=(64, 12), other="splash"),
  "packed_wide": Case(512, True, H=128, packed=True, real=(32, 12), other="splash"),
  "plain_512": Case(512, True, real=(64, 12), other="splash"),
}


def program(case: Case, implementation: str, order: tuple):
  """(function, shapes) of o and the gradients of attention; order: the axes of (B, T, N, H) as the
  arrays have them.
  """
  import jax
  import jax.numpy as jnp

  from jaxlm.kernels.attention import BucketBias, KeyBias, LinearBias, attention

  B, T, S, N, H = case.batch, case.T, case.S or case.T, case.N, case.H
  of = jax.ShapeDtypeStruct
  parameters = {}
  if case.buckets:
    parameters["table"] = of((case.buckets, N), jnp.float32)
  if case.slopes:
    parameters["slopes"] = of((N,), jnp.float32)
  if case.keys:
    parameters["numbers"] = of((case.keys, 2, B, T, N), jnp.float32)
  if case.gate:
    parameters["gate"] = of((B, S, 1), jnp.float32)
  ids = {}
  if case.valid:
    ids["kv_segment_ids_BS"] = of((B, S), jnp.int32)
  if case.packed:
    ids["q_segment_ids_BT"] = of((B, T), jnp.int32)

  def bias(p):
    found = []
    if case.buckets:
      found.append(BucketBias(p["table"], bidirectional=not case.causal))
    if case.slopes:
      found.append(LinearBias(p["slopes"]))
    if case.keys:
      found += [KeyBias(p["numbers"][n, 0], p["numbers"][n, 1]) for n in range(case.keys)]
    if case.gate:
      found.append(KeyBias(None, p["gate"]))
    return tuple(found) or None

  back = [order.index(axis) for axis in range(4)]

  def gradients(q, k, v, do, p, ids):
    def run(q, k, v, p):
      o = attention(
        *(x.transpose(back) for x in (q, k, v)),
        causal=case.causal,
        bias=bias(p),
        softmax1=case.softmax1,
        implementation=implementation,
        **ids,
      )
      return o.transpose(order)

    o, pull = jax.vjp(run, q, k, v, p)
    return o, pull(do)

  def array(length):
    return of([(B, length, N, H)[axis] for axis in order], jnp.bfloat16)

  return gradients, (array(T), array(S), array(S), array(T), parameters, ids)


def hbm_bytes(sites, module) -> int:
  """Bytes that a program surely moves between HBM and the chip: see above."""
  made = (
    "fusion",
    "copy",
    "convolution",
    "dot",
    "custom-call",
    "reduce",
    "transpose",
    "broadcast",
    "pad",
    "concatenate",
    "slice",
  )

  def off_chip(instruction):
    """Bytes of results in HBM, but those that are an argument updated in place."""
    roots = [None] * len(instruction.arrays)
    if instruction.opcode == "fusion":
      body = module.computations[instruction.calls("calls")]
      root = body.root
      roots = (
        [body.instructions[name] for name in root.operands] if root.opcode == "tuple" else [root]
      )
      roots = [body.instructions[r.operands[0]] if r.opcode == "bitcast" else r for r in roots]
    return sum(
      array.bytes
      for array, root in zip(instruction.arrays, roots)
      if not array.on_chip and (root is None or root.opcode != "dynamic-update-slice")
    )

  total = 0
  for site in sites:
    if site.instruction.opcode in made:
      peers = (site.computation.instructions.get(name) for name in site.instruction.operands)
      read = sum(off_chip(peer) for peer in peers if peer is not None and peer.opcode in made)
      total += site.count * (off_chip(site.instruction) + read)
  return total


def estimate(chip: str, case: Case, implementation: str, layout: str, profiled: bool) -> dict:
  """In a process of its own: compiles and measures one program. layout: one of ORDERS."""
  folder = tempfile.mkdtemp()
  if profiled:
    os.environ["LIBTPU_INIT_ARGS"] = FLAGS.format(folder)
  import jax
  import numpy as np
  from jax.experimental import topologies
  from jax.experimental.layout import Format, Layout
  from jax.sharding import AxisType, Mesh, NamedSharding
  from jax.sharding import PartitionSpec as P

  from jaxlm.preflight.hlo import parse
  from jaxlm.preflight.loops import Loops

  topology = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[chip])
  mesh = Mesh(np.array(topology.devices[:1]), ("d",), axis_types=(AxisType.Auto,))
  if not profiled:
    case = dataclasses.replace(case, batch=case.real[0], N=case.real[1])
  fn, shapes = program(case, implementation, ORDERS[layout])
  place = NamedSharding(mesh, P())
  if layout == "free":
    place = Format(Layout.AUTO, place)
  with jax.set_mesh(mesh):
    text = jax.jit(fn, in_shardings=place, out_shardings=place).lower(*shapes).compile().as_text()
    leaves = jax.tree.leaves((shapes, jax.eval_shape(fn, *shapes)))
  module = parse(text)
  loops = Loops(module)
  sites = list(loops.sites())
  if loops.unknown:
    raise RuntimeError(f"trip counts of {loops.unknown} are not known")
  vmem = re.findall(
    r'used_scoped_memory_configs":\[\{"memory_space":"1","offset":"0","size":"(\d+)"', text
  )
  if not profiled:
    arguments = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    return dict(
      hbm_bytes=arguments + hbm_bytes(sites, module), vmem_bytes=max(map(int, vmem), default=0)
    )
  found = {
    name: int(cycles)
    for file in pathlib.Path(folder).glob("*.textproto")
    for name, cycles in re.findall(
      r'hlo_op_name: "([^"]+)"\s+estimated_cycles: (\d+)', file.read_text()
    )
  }
  cycles = {}
  for site in sites:
    if site.instruction.name in found:
      cycles[site.instruction.name] = (
        cycles.get(site.instruction.name, 0) + found[site.instruction.name] * site.count
      )
  if not cycles:
    raise RuntimeError("libtpu wrote no profile")
  kernels = {
    kind: sum(c for name, c in cycles.items() if f"attention_{kind}" in name)
    for kind in ("forward", "backward")
  }
  if implementation == "pallas" and not all(kernels.values()):
    raise RuntimeError(f"no cycles of the kernels among {sorted(cycles)}")
  unlisted = sum(
    site.count
    for site in sites
    if site.instruction.name not in found
    and site.instruction.opcode in ("fusion", "custom-call", "copy", "convolution")
  )
  return dict(cycles=sum(cycles.values()), **kernels, unlisted=unlisted)


def both(chip: str, name: str, implementation: str) -> dict:
  """The profiled program and the real one, joined."""
  from jaxlm.preflight.chips import CHIPS

  case = CASES[name]
  small = separately(chip, name, implementation, "profiled")
  real = separately(chip, name, implementation, "real")
  if "failed" in small or "failed" in real:
    return dict(small, **real)
  compute = (
    small["cycles"] * case.real[0] * case.real[1] / (case.batch * case.N) / CHIPS[chip].clock_hz
  )
  memory = real["hbm_bytes"] / CHIPS[chip].hbm_bandwidth
  return dict(
    small, **real, compute_seconds=compute, memory_seconds=memory, seconds=max(compute, memory)
  )


def separately(chip: str, name: str, implementation: str, size: str) -> dict:
  """`estimate` in a new process, for the first layout with a figure; {"failed": cause} if none has
  one.
  """
  environment = dict(
    os.environ,
    JAX_PLATFORMS="cpu",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    TPU_SKIP_MDS_QUERY="1",
    JAX_ENABLE_COMPILATION_CACHE="false",
  )
  for layout in LAYOUTS[implementation]:
    try:
      done = subprocess.run(
        [sys.executable, __file__, "--one", chip, name, implementation, layout, size],
        env=environment,
        text=True,
        capture_output=True,
        timeout=LIMIT_S,
      )
    except subprocess.TimeoutExpired:
      cause = f"no figure within {LIMIT_S} s"
      continue
    if done.returncode == 0:
      return dict(json.loads(done.stdout.splitlines()[-1]), layout=layout)
    causes = [
      line
      for line in done.stderr.splitlines()
      if "failed:" in line or "Error" in line and "hostname" not in line
    ]
    cause = re.sub(r"^.*\] ", "", causes[0])[:200] if causes else f"exit {done.returncode}"
  return dict(failed=cause)


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--chips", nargs="*", default=["v5e", "v5p", "v6e"])
  parser.add_argument("--cases", nargs="*", default=list(CASES))
  parser.add_argument("--write", action="store_true", help=f"keep the figures in {RESULTS.name}")
  parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.one:
    chip, name, implementation, layout, size = args.one
    print(json_text.dumps(estimate(chip, CASES[name], implementation, layout, size == "profiled")))
    return
  import importlib.metadata as metadata

  from jaxlm.training.provenance import revision

  at = revision()
  results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
  results["versions"] = {package: metadata.version(package) for package in ("jax", "libtpu")}
  rows = results.setdefault("rows", {})
  print(
    f"{'chip':5} {'case':20} {'pallas':>10} {'forward':>10} {'backward':>10} {'xla':>10} {'by cycles':>9} {'ratio':>6}"
  )
  for name in args.cases:
    for chip in args.chips:
      other = CASES[name].other
      pallas, xla = (both(chip, name, form) for form in ("pallas", other))
      ratio = (
        xla["seconds"] / pallas["seconds"] if "seconds" in pallas and "seconds" in xla else None
      )
      rows[f"{chip} {name}"] = dict(
        case=dataclasses.asdict(CASES[name]),
        pallas=pallas,
        **{other: xla},
        revision=at,
        ratio=ratio and round(ratio, 2),
      )
      by_cycles = xla["cycles"] / pallas["cycles"] if ratio else None

      def show(value):
        return f"{value:>10,}" if isinstance(value, int) else f"{'-':>10}"

      print(
        f"{chip:5} {name:20}",
        show(pallas.get("cycles")),
        show(pallas.get("forward")),
        show(pallas.get("backward")),
        show(xla.get("cycles")),
        f"{by_cycles:9.2f} {ratio:6.2f}"
        if ratio
        else f"  {pallas.get('failed') or xla.get('failed')}",
        flush=True,
      )
      if args.write:
        RESULTS.write_text(json_text.dumps(results, indent=1) + "\n")
        write("attention", "attention_estimates.py", table(rows))


def table(rows: dict) -> str:
  """Per case and chip: cycles of both forms for the rows and heads that were compiled, and the
  ratio of their times.
  """
  lines = [
    "| case | chip | other form | its cycles | Pallas, cycles | other / Pallas | revision |",
    "| --- | --- | --- | ---: | ---: | ---: | --- |",
  ]

  def show(form):
    return f"{form['cycles']:,}" if "cycles" in form else "-"

  for name, row in sorted(rows.items(), key=lambda item: item[0].split()[::-1]):
    chip, case = name.split()
    other = row["case"].get("other", "xla")
    ratio = "-" if row["ratio"] is None else f"{row['ratio']:.2f}"
    length = f"T {row['case']['T']:,}" + (f", S {row['case']['S']:,}" if row["case"]["S"] else "")
    lines.append(
      f"| {case} ({length}, H {row['case']['H']}) | {chip} | {other} | {show(row[other])} | {show(row['pallas'])} | {ratio} | {row.get('revision', '-')} |"
    )
  return "\n".join(lines)


if __name__ == "__main__":
  main()
