"""Every paper-scale config and the slice it is meant for:  python tpu/matrix.py [--only NAME …]
[--write]

Compiles each row ahead of time (a few minutes each on two cores, nothing runs), checks its budget
and prints the table; `--write` puts it into tpu/PREFLIGHT.md. Rows whose config and budget are as
they were when last compiled are taken from tpu/preflight.json, which names the revision of each,
unless `--again` (what `make preflight` does, an hour).

The budgets of the decoder rows are what MaxText's own step needs for the same sizes, slice and
remat class, compiled by the same compiler (MaxText 0.2.5, jax 0.12, libtpu 0.0.52); its executed
FLOPs are its matmuls plus the same analytic count of the attention kernel that ours get.
"""

import argparse
import dataclasses
import datetime
import hashlib
import json
import os
import pathlib
import subprocess
import sys

from jaxlm import json_text

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Row:
  """config: 'path[:argument]'. mesh: as on the command line, '' is the config's own. budget: see
  preflight.budgets.

  bucket: of an H-Net's chunk capacities; None: the largest, with which an untrained router begins.
  peer: MaxText's step for the same sizes, slice and remat class, in seconds, by the same estimate.
  """

  name: str
  config: str
  topology: str
  overrides: dict = dataclasses.field(default_factory=dict)
  mesh: str = ""
  bucket: int | None = None
  budget: dict = dataclasses.field(default_factory=dict)
  peer: tuple[float, float] | None = None


ROWS = [
  Row(
    "gpt2_small",
    "configs/decoder/gpt2_small.py:512",
    "v5e:4x4",
    budget=dict(
      peak_bytes=3.90 * GIB, matmul_seconds=0.249, executed_over_model=1.45, wire_ratio=1.45
    ),
    peer=(0.291, 0.371),
  ),
  Row(
    "gpt2_small, remat minimal",
    "configs/decoder/gpt2_small.py:512",
    "v5e:4x4",
    {"model.remat": "minimal"},
    budget=dict(
      peak_bytes=10.09 * GIB, matmul_seconds=0.221, executed_over_model=1.30, wire_ratio=1.45
    ),
    peer=(0.267, 0.369),
  ),
  Row(
    "gpt2_small with RoPE",
    "configs/decoder/gpt2_small.py:512",
    "v5e:4x4",
    {"model.position": "rope"},
    budget=dict(peak_bytes=3.90 * GIB, executed_over_model=1.47, wire_ratio=1.45),
  ),
  Row(
    "gpt2_small with CARoPE",
    "configs/decoder/gpt2_small.py:512",
    "v5e:4x4",
    {"model.position": "carope"},
    budget=dict(peak_bytes=3.90 * GIB, executed_over_model=1.47, wire_ratio=1.45),
  ),
  Row("carope_small", "configs/carope/paper_small.py", "v5e:4x4", budget=dict(wire_ratio=1.45)),
  # More than half of its parameters are the tied table, whose gradient travels twice, from the head
  # and from the lookup.
  Row(
    "carope_tiny",
    "configs/carope/paper_tiny.py",
    "v5e:2x4",
    mesh="data=8,fsdp=1",
    budget=dict(wire_ratio=1.6),
  ),
  Row("mrt5, ByT5-small", "configs/mrt5/byt5_small.py", "v5e:4x4", budget=dict(wire_ratio=1.45)),
  Row("ilm, LM1B", "configs/ilm/text_paper.py:lm1b", "v5e:2x4", budget=dict(wire_ratio=1.45)),
  Row("ilm, Stories", "configs/ilm/text_paper.py:stories", "v5e:4x8", budget=dict(wire_ratio=1.45)),
  # Its head loops over the documents of a row, one table each, however many there are.
  Row(
    "lexinvariant, 150M",
    "configs/lexinvariant/paper_chars.py",
    "v5e:2x4",
    budget=dict(wire_ratio=1.45, unknown_loops=1),
  ),
  Row(
    "llama_1b",
    "configs/decoder/llama_1b.py",
    "v5p:4x4x4",
    budget=dict(
      peak_bytes=5.22 * GIB, matmul_seconds=0.207, executed_over_model=1.327, wire_ratio=1.0
    ),
    peer=(0.276, 0.345),
  ),
  # 5.22 GiB is the bar for this size, MaxText's on v5p; on this slice MaxText needs 3.76.
  Row(
    "llama_1b",
    "configs/decoder/llama_1b.py",
    "v5e:8x8",
    budget=dict(
      peak_bytes=5.22 * GIB, matmul_seconds=0.437, executed_over_model=1.327, wire_ratio=1.45
    ),
    peer=(0.588, 0.767),
  ),
  Row("llama_1b", "configs/decoder/llama_1b.py", "v6e:8x8", budget=dict(wire_ratio=1.45)),
  Row(
    "llama_1b, remat minimal",
    "configs/decoder/llama_1b.py",
    "v5p:4x4x4",
    {"model.remat": "minimal"},
    budget=dict(
      peak_bytes=11.22 * GIB, matmul_seconds=0.183, executed_over_model=1.17, wire_ratio=1.0
    ),
    peer=(0.252, 0.318),
  ),
  Row(
    "llama_1b with CARoPE",
    "configs/decoder/llama_1b.py",
    "v5p:4x4x4",
    {"model.position": "carope"},
    budget=dict(
      peak_bytes=5.22 * GIB, matmul_seconds=0.207, executed_over_model=1.327, wire_ratio=1.0
    ),
  ),
  Row(
    "llama_1b with CARoPE, phases by XLA",
    "configs/decoder/llama_1b.py",
    "v5p:4x4x4",
    {"model.position": "carope", "model.position.implementation": "xla"},
    budget=dict(peak_bytes=5.22 * GIB, wire_ratio=1.0),
  ),
  Row(
    "llama_1b, 256 sequences",
    "configs/decoder/llama_1b.py",
    "v5e:16x16",
    {"data.batch_size": 256},
    mesh="data=4,fsdp=64",
    budget=dict(wire_ratio=1.45),
  ),
  Row(
    "llama_8b",
    "configs/decoder/llama_8b.py",
    "v5p:4x4x4",
    budget=dict(
      peak_bytes=8.57 * GIB, matmul_seconds=1.233, executed_over_model=1.317, wire_ratio=1.0
    ),
    peer=(1.506, 1.725),
  ),
  Row(
    "llama_8b, remat minimal",
    "configs/decoder/llama_8b.py",
    "v5p:4x4x4",
    {"model.remat": "minimal"},
    budget=dict(
      peak_bytes=27.57 * GIB, matmul_seconds=1.082, executed_over_model=1.12, wire_ratio=1.0
    ),
    peer=(1.358, 1.570),
  ),
  # H-Net: one row of 8,192 bytes per v5e chip, two per v5p chip; chunk buffers as at the start, and
  # at 6 (3 x 3) bytes.
  # Parameters are cut over 16 chips only: a 256th of a weight of 1,024 rows is gathered as an
  # all-reduce, twice the bytes.
  *[
    Row(
      f"hnet_{name}, {what}",
      f"configs/hnet/paper.py:{name}",
      topology,
      mesh=mesh,
      bucket=bucket,
      budget=dict(wire_ratio=1.45),
    )
    for name, topology, mesh in (
      ("1stage_L", "v5e:16x16", "data=16,fsdp=16"),
      ("1stage_XL", "v5p:4x4x8", "data=8,fsdp=16"),
      ("2stage_XL", "v5p:4x4x8", "data=8,fsdp=16"),
    )
    for what, bucket in (("all positions chunks", None), ("trained", 1 if name[0] == "1" else 3))
  ],
  # LaCT: one row of 32,768 tokens per chip.
  *[
    Row(
      f"lact_760m, chunk {chunk}",
      "configs/lact/lm_760m.py",
      topology,
      {"model.mixer.fast.chunk": chunk},
      budget=dict(wire_ratio=1.45),
    )
    for topology, chunk in (
      ("v5p:2x4x4", 1024),
      ("v5p:2x4x4", 2048),
      ("v5p:2x4x4", 4096),
      ("v6e:4x8", 2048),
    )
  ],
  *[
    Row(
      f"lact_3b, chunk {chunk}",
      "configs/lact/lm_3b.py",
      topology,
      {"model.mixer.fast.chunk": chunk},
      budget=dict(wire_ratio=1.45),
    )
    for topology, chunk in (("v5p:4x4x4", 2048), ("v5p:4x4x4", 4096), ("v6e:8x8", 4096))
  ],
]


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    "--only",
    action="append",
    default=[],
    metavar="NAME",
    help="rows whose 'name on slice' contains NAME",
  )
  parser.add_argument("--write", action="store_true", help="write tpu/PREFLIGHT.md")
  parser.add_argument(
    "--again", action="store_true", help="compile also what tpu/preflight.json holds"
  )
  args = parser.parse_args(argv)
  store = ROOT / "tpu" / "preflight.json"
  known = json.loads(store.read_text()) if store.is_file() else {}
  results = []
  for row in ROWS:
    if args.only and not any(name in f"{row.name} on {row.topology}" for name in args.only):
      if key_of(row) in known:
        results.append((row, known[key_of(row)]))
      continue
    if args.again or key_of(row) not in known:
      print(f"{row.name} on {row.topology} …", flush=True)
      known[key_of(row)] = found = compiled(row)
      # Read again: rows may be compiled side by side.
      others = json.loads(store.read_text()) if store.is_file() else {}
      store.write_text(json_text.dumps(others | {key_of(row): found}, indent=1) + "\n")
    results.append((row, known[key_of(row)]))
    print_line(row, known[key_of(row)])
  if args.write:
    # Read again: another process may have compiled the rest meanwhile.
    known |= json.loads(store.read_text()) if store.is_file() else {}
    results = [(row, known[key_of(row)]) for row in ROWS if key_of(row) in known]
    keep = {key_of(row): found for row, found in results}
    store.write_text(json_text.dumps(keep, indent=1) + "\n")
    (ROOT / "tpu" / "PREFLIGHT.md").write_text(page(results))
  return 1 if any(found["broken"] for _, found in results) else 0


def compiled(row: Row) -> dict:
  """The report of one row as plain values, with the budgets it breaks."""
  from importlib import metadata

  from jaxlm.preflight.budgets import Budget, broken
  from jaxlm.preflight.chips import chip_of
  from jaxlm.preflight.command import parse_mesh
  from jaxlm.preflight.run import preflight
  from jaxlm.preflight.topology import devices
  from jaxlm.training.config import load_config, run_config

  path, _, argument = row.config.partition(":")
  overrides = dict(row.overrides)
  overrides |= {f"mesh.{axis}": size for axis, size in parse_mesh(row.mesh).items()}
  cfg = run_config(
    load_config(f"{ROOT / path}:{argument}" if argument else str(ROOT / path), overrides)
  )
  report, _ = preflight(
    cfg,
    devices(row.topology),
    "train",
    name=row.name,
    topology=row.topology,
    chip=chip_of(row.topology),
    bucket=row.bucket,
  )
  found = report.to_json()
  found.pop("most_expensive")
  versions = {p: metadata.version(p) for p in ("jax", "libtpu")}
  lines = [line.replace(f"{ROOT}/", "") for line in broken(report, Budget(**row.budget))]
  return found | {
    "broken": lines,
    "versions": versions,
    "date": datetime.date.today().isoformat(),
    "revision": revision(),
  }


def key_of(row: Row) -> str:
  """Of what a row asks for: its whole configuration as loaded, so that comments may change, and its
  budget.
  """
  from jaxlm.training.config import load_config

  path, _, argument = row.config.partition(":")
  config = load_config(
    f"{ROOT / path}:{argument}" if argument else str(ROOT / path), dict(row.overrides)
  )
  said = [config.to_json(sort_keys=True), row.mesh, row.bucket, row.budget]
  return f"{row.name} on {row.topology} {hashlib.sha256(json_text.dumps(said).encode()).hexdigest()[:12]}"


def revision() -> str:
  def git(*words):
    return subprocess.run(
      ["git", "-C", ROOT, *words], capture_output=True, text=True
    ).stdout.strip()

  changed = (
    "-dirty" if git("status", "--porcelain", "--untracked-files=no", "jaxlm", "configs") else ""
  )
  return git("rev-parse", "--short", "HEAD") + changed


def cells(row: Row, r: dict) -> list[str]:
  s, u = r["estimates"]["seconds"], r["estimates"]["utilisation"]
  mesh = ", ".join(f"{axis} {n}" for axis, n in r["mesh"].items() if n > 1)
  more = "at least " if r["unknown_loops"] else ""  # such loops count once
  if r["error"]:
    return [row.name, row.topology, mesh, "no", *["-"] * 6, "; ".join(r["broken"])]
  return [
    row.name,
    row.topology,
    mesh,
    "yes" if r["fits"] else "no",
    f"{r['memory_bytes']['peak'] / GIB:.2f} of {r['capacity_bytes'] / GIB:.0f}",
    f"{more}{r['executed_over_model']:.2f}" if r["executed_over_model"] else "-",
    f"{more}{s['matmul']:.3f}",
    f"{r['wire_bytes'] / 1e9:.2f} ({r['wire_ratio']:.2f})"
    if r["wire_ratio"]
    else f"{r['wire_bytes'] / 1e9:.2f}",
    f"{s['best']:.2f} to {s['worst']:.2f}",
    f"{u[0]:.2f} to {u[1]:.2f}" if u else "-",
    r["dominating_collective"] if not r["broken"] else "; ".join(r["broken"]),
  ]


HEAD = [
  "config",
  "slice",
  "mesh",
  "fits",
  "peak HBM, GiB",
  "executed / model FLOPs",
  "matmul s",
  "wire GB (x minimum)",
  "step s",
  "utilisation",
  "dominating collective, or the budget it breaks",
]


def print_line(row: Row, r: dict) -> None:
  print("  " + " | ".join(f"{h}: {c}" for h, c in zip(HEAD[3:], cells(row, r)[3:])), flush=True)


#: (a row with CARoPE, the same with RoPE, slice).
TWINS = (
  ("gpt2_small with CARoPE", "gpt2_small with RoPE", "v5e:4x4"),
  ("llama_1b with CARoPE", "llama_1b", "v5p:4x4x4"),
)


def _seconds(r: dict) -> tuple[float, float]:
  s = r["estimates"]["seconds"]
  return s["best"], s["worst"]


def _beside(name: str, topology: str, ours: tuple, theirs: tuple, *more: str) -> str:
  ends = " | ".join(f"{low:.3f} to {high:.3f}" for low, high in (ours, theirs))
  ratio = f"{ours[0] / theirs[0]:.2f} to {ours[1] / theirs[1]:.2f}"
  return f"| {' | '.join([name, topology, ends, ratio, *more])} |"


def beside_rope(results) -> list[str]:
  """A table of the rows whose only difference is the position, or nothing."""
  done = {(row.name, row.topology): r for row, r in results if r["estimates"]["seconds"]}
  rows = []
  for carope, rope, topology in TWINS:
    ours, theirs = done.get((carope, topology)), done.get((rope, topology))
    if ours and theirs:
      revisions = ", ".join(dict.fromkeys([ours["revision"], theirs["revision"]]))
      rows.append(_beside(carope, topology, _seconds(ours), _seconds(theirs), revisions))
  if not rows:
    return []
  return [
    "",
    "## CARoPE beside RoPE",
    "",
    "The same model and slice; only the position differs. CARoPE's kernels count by the cost estimate that they carry.",
    "",
    "| config | slice | step s | with RoPE, step s | ratio, both ends | revisions |",
    "|--|--|--|--|--|--|",
    *rows,
  ]


def beside_maxtext(results) -> list[str]:
  """A table of the rows that have a peer, or nothing."""
  rows = [
    _beside(row.name, row.topology, _seconds(r), row.peer)
    for row, r in results
    if row.peer and r["estimates"]["seconds"]
  ]
  if not rows:
    return []
  return [
    "",
    "## Beside MaxText",
    "",
    "The same sizes, slices and class of remat, compiled by the same TPU compiler and read by the same rules (MaxText 0.2.5, "
    "jax 0.12, its windowed einsum off where that helps it).",
    "",
    "| config | slice | step s | MaxText, step s | ratio, both ends |",
    "|--|--|--|--|--|",
    *rows,
  ]


def page(results) -> str:
  lines = [
    "# Every paper-scale config, compiled for its slice",
    "",
    "Written by `make preflight` (`tpu/matrix.py`): the real train step, compiled ahead of time by the TPU compiler; "
    "nothing was run or timed. Memory, FLOPs and wire bytes are read off the compiled program. **Seconds and "
    "utilisation are estimates** for comparing programs: compiler cycles for matmuls (2-20 % off on v5e and v5p, more on "
    "v6e), Pallas kernels at peak (attention by formula, others by the cost estimate they carry), every link busy; "
    "from all communication hidden, and other work at the bandwidth of HBM, to none hidden, and other work at the "
    "compiler's cycles.",
    "",
    "| " + " | ".join(HEAD) + " |",
    "|" + "--|" * len(HEAD),
  ]
  lines += ["| " + " | ".join(cells(row, r)) + " |" for row, r in results]
  lines += beside_maxtext(results)
  lines += beside_rope(results)
  older = [f"{row.name} on {row.topology}" for row, r in results if "kernel_flops" not in r]
  if older:
    lines += [
      "",
      "Compiled before revision 42485d4, when some moves between on-chip memory and HBM were charged twice and Pallas kernels "
      f"other than attention not at all: {'; '.join(older)}.",
    ]
  left = [
    f"{row.name} on {row.topology}" for row in ROWS if row not in [done for done, _ in results]
  ]
  if left:
    lines += ["", f"Not compiled yet: {'; '.join(left)}."]
  made = sorted(
    {
      f"jax {r['versions']['jax']}, libtpu {r['versions']['libtpu']}, {r['date']}, revision {r['revision']}"
      for _, r in results
    }
  )
  return "\n".join([*lines, "", f"Per device and step. Compiled with {'; '.join(made)}.", ""])


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
