"""Attention with biases on TPUs that are not there: the compiler's cycles of the Pallas kernel and of the XLA form.

  python bench/attention_estimates.py [--chips v5e v5p v6e] [--cases mrt5_encoder ...] [--write]

Each estimate is a process of its own: the profiler ends the process where it meets an instruction that it does not know, and
its flags are read once. One program computes o and all gradients of given q, k, v and do. Their layout is what suits the form,
as that of projections in a model would be: time last for the kernel; for XLA's form as the compiler likes, or where the profiler
dies of that (v5p), heads before time.
Cycles of an instruction come from libtpu's static profile (undocumented; figures are comparable for one libtpu only) and count
once per trip of the loops around it. Instructions that share a profile with another one are listed once by it: the XLA form's
sum is a little too low. `seconds` is the larger of cycles / clock and bytes / bandwidth, where bytes are what the program reads
and writes once. Figures: bench/attention_estimates.json.
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

RESULTS = pathlib.Path(__file__).with_suffix(".json")
TOPOLOGIES = {"v5e": "v5e:1x1", "v5p": "v5p:2x2x1", "v6e": "v6e:1x1"}
LIMIT_S = 240
ORDERS = {"free": (0, 1, 2, 3), "time_last": (0, 2, 3, 1), "heads_first": (0, 2, 1, 3)}
LAYOUTS = {"pallas": ("time_last",), "xla": ("free", "heads_first")}
FLAGS = "--xla_jf_dump_static_llo_profile_to={} --xla_tpu_check_llo_types=false"


@dataclasses.dataclass(frozen=True)
class Case:
  """An attention of a paper, cut to 2 rows of 2 heads: the profiler's time and memory grow with the work.

  keys: numbers per key and query (CABLE: 2); gate: a number per key.
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
  batch: int = 2
  N: int = 2


CASES = {
    "mrt5_encoder": Case(1024, False, buckets=32, gate=True, valid=True, softmax1=True),
    "mrt5_decoder": Case(1024, True, buckets=32, valid=True, softmax1=True),
    "mrt5_cross": Case(256, False, S=1024, gate=True, valid=True, softmax1=True),
    "lexinvariant_t5": Case(512, True, H=128, buckets=32, packed=True),
    "carope_small_alibi": Case(512, True, slopes=True, packed=True),
    "carope_small_cable": Case(512, True, keys=2, packed=True),
    "alibi_1024": Case(1024, True, slopes=True, packed=True),
    "cable_1024": Case(1024, True, keys=2, packed=True),
    "short_t5": Case(256, True, buckets=32),
}


def program(case: Case, implementation: str, order: tuple):
  """(function, shapes) of o and the gradients of attention; order: the axes of (B, T, N, H) as the arrays have them."""
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
      o = attention(*(x.transpose(back) for x in (q, k, v)), causal=case.causal, bias=bias(p), softmax1=case.softmax1,
                    implementation=implementation, **ids)
      return o.transpose(order)
    o, pull = jax.vjp(run, q, k, v, p)
    return o, pull(do)
  array = lambda length: of([(B, length, N, H)[axis] for axis in order], jnp.bfloat16)
  return gradients, (array(T), array(S), array(S), array(T), parameters, ids)


def estimate(chip: str, case: Case, implementation: str, layout: str) -> dict:
  """In a process of its own: compiles and prints one row as JSON. layout: one of ORDERS."""
  folder = tempfile.mkdtemp()
  os.environ["LIBTPU_INIT_ARGS"] = FLAGS.format(folder)
  import jax
  import numpy as np
  from jax.experimental import topologies
  from jax.experimental.layout import Format, Layout
  from jax.sharding import AxisType, Mesh, NamedSharding
  from jax.sharding import PartitionSpec as P

  from jaxlm.preflight.chips import CHIPS
  from jaxlm.preflight.hlo import parse
  from jaxlm.preflight.loops import Loops
  topology = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[chip])
  mesh = Mesh(np.array(topology.devices[:1]), ("d",), axis_types=(AxisType.Auto,))
  fn, shapes = program(case, implementation, ORDERS[layout])
  place = NamedSharding(mesh, P())
  if layout == "free":
    place = Format(Layout.AUTO, place)
  with jax.set_mesh(mesh):
    text = jax.jit(fn, in_shardings=place, out_shardings=place).lower(*shapes).compile().as_text()
    leaves = jax.tree.leaves((shapes, jax.eval_shape(fn, *shapes)))
  found = {name: int(cycles) for file in pathlib.Path(folder).glob("*.textproto")
           for name, cycles in re.findall(r'hlo_op_name: "([^"]+)"\s+estimated_cycles: (\d+)', file.read_text())}
  loops = Loops(parse(text))
  sites = list(loops.sites())
  if loops.unknown:
    raise RuntimeError(f"trip counts of {loops.unknown} are not known")
  cycles = {}
  for site in sites:
    if site.instruction.name in found:
      cycles[site.instruction.name] = cycles.get(site.instruction.name, 0) + found[site.instruction.name] * site.count
  if not cycles:
    raise RuntimeError("libtpu wrote no profile")
  kernels = {kind: sum(c for name, c in cycles.items() if f"attention_{kind}" in name) for kind in ("forward", "backward")}
  if implementation == "pallas" and not all(kernels.values()):
    raise RuntimeError(f"no cycles of the kernels among {sorted(cycles)}")
  unlisted = sum(site.count for site in sites
                 if site.instruction.name not in found and site.instruction.opcode in ("fusion", "custom-call", "copy", "convolution"))
  vmem = re.findall(r'used_scoped_memory_configs":\[\{"memory_space":"1","offset":"0","size":"(\d+)"', text)
  total, chip = sum(cycles.values()), CHIPS[chip]
  memory = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) / chip.hbm_bandwidth
  return dict(cycles=total, seconds=max(total / chip.clock_hz, memory), memory_seconds=memory, kernels=kernels, unlisted=unlisted,
              vmem_bytes=max(map(int, vmem), default=0))


def separately(chip: str, name: str, implementation: str) -> dict:
  """`estimate` in a new process, for the first layout with a figure; {"failed": cause} if none has one."""
  environment = dict(os.environ, JAX_PLATFORMS="cpu", ALLOW_MULTIPLE_LIBTPU_LOAD="1", TPU_SKIP_MDS_QUERY="1",
                     JAX_ENABLE_COMPILATION_CACHE="false")
  for layout in LAYOUTS[implementation]:
    try:
      done = subprocess.run([sys.executable, __file__, "--one", chip, name, implementation, layout], env=environment, text=True,
                            capture_output=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
      cause = f"no figure within {LIMIT_S} s"
      continue
    if done.returncode == 0:
      return dict(json.loads(done.stdout.splitlines()[-1]), layout=layout)
    causes = [line for line in done.stderr.splitlines() if "failed:" in line or "Error" in line and "hostname" not in line]
    cause = re.sub(r"^.*\] ", "", causes[0])[:200] if causes else f"exit {done.returncode}"
  return dict(failed=cause)


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--chips", nargs="*", default=["v5e", "v5p", "v6e"])
  parser.add_argument("--cases", nargs="*", default=list(CASES))
  parser.add_argument("--write", action="store_true", help=f"keep the figures in {RESULTS.name}")
  parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.one:
    chip, name, implementation, layout = args.one
    print(json.dumps(estimate(chip, CASES[name], implementation, layout)))
    return
  import importlib.metadata as metadata
  results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
  results["versions"] = {package: metadata.version(package) for package in ("jax", "libtpu")}
  rows = results.setdefault("rows", {})
  print(f"{'chip':5} {'case':20} {'pallas':>10} {'forward':>10} {'backward':>10} {'xla':>10} {'ratio':>6}")
  for name in args.cases:
    for chip in args.chips:
      pallas, xla = (separately(chip, name, form) for form in ("pallas", "xla"))
      ratio = xla["seconds"] / pallas["seconds"] if "seconds" in pallas and "seconds" in xla else None
      rows[f"{chip} {name}"] = dict(case=dataclasses.asdict(CASES[name]), pallas=pallas, xla=xla,
                                    ratio=ratio and round(ratio, 2))
      show = lambda value: f"{value:>10,}" if isinstance(value, int) else f"{'-':>10}"
      kernels = pallas.get("kernels", {})
      print(f"{chip:5} {name:20}", show(pallas.get("cycles")), show(kernels.get("forward")), show(kernels.get("backward")),
            show(xla.get("cycles")), f"{ratio:6.2f}" if ratio else f"  {pallas.get('failed') or xla.get('failed')}", flush=True)
      if args.write:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
  main()
