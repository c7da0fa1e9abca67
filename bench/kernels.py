r"""Every op of jaxlm/kernels on a GPU: against its definition, in every form and beside its peers.

  python bench/kernels.py [--ops attention,ssd] [--repeats 20] [--out bench/gpu_kernels.json]
  python bench/kernels.py --dry-run        no GPU: lowers every program for CUDA and says what is refused

The cases are those of jaxlm/kernels/gpu_cases.py. Per form, forward and backward: milliseconds, TFLOP/s,
GB/s, share of the roofline, and the largest difference from the definition over its largest value.
Roofline: max(FLOPs / peak, bytes / measured copy bandwidth). Peers: cuDNN through jax, torch's
scaled_dot_product_attention, flash-linear-attention; those that are not installed are left out with
the reason. The calls of flash-linear-attention were written without it at hand and have not run.

The JSON has, for each program, the pair (simulated_s, measured_s); simulated is the roofline's time,
since no simulator of a GPU is known.
"""

import argparse
import sys
import time
from pathlib import Path

from jaxlm import json_text

OUT = Path(__file__).with_name("gpu_kernels.json")
#: (part of the device kind, dense bfloat16 FLOP/s, bytes/s) of the makers' data sheets.
PEAKS = (("H200", 989e12, 4.8e12), ("H100", 989e12, 3.35e12), ("A100", 312e12, 2.04e12))
H100 = "NVIDIA H100 80GB HBM3"


def draw(case, seed=0):
  """Arguments whose values are what the op expects."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  random = np.random.default_rng(seed)

  def one(s):
    if s.dtype == bool:
      return jnp.asarray(random.random(s.shape) < 0.3)
    if jnp.issubdtype(s.dtype, jnp.integer):
      return jnp.asarray(np.sort(random.integers(1, 8, s.shape), -1), s.dtype)
    return jnp.asarray(random.standard_normal(s.shape, np.float32), s.dtype)

  x = list(jax.tree.map(one, case.arguments))
  positive = jax.nn.softplus
  if case.op == "ssd":
    x[1], x[2], x[3], x[4] = positive(x[1] - 3), -jnp.exp(x[2]), x[3] * 0.1, x[4] * 0.1
  elif case.op == "fast_weight_chunk":
    x[:3], x[6] = [w * 0.05 for w in x[:3]], positive(x[6]) * 0.01
  elif case.op == "gla":
    x[3] = -positive(x[3])
  elif case.op == "delta_rule":
    k = x[1].astype(jnp.float32)
    x[1] = (k / jnp.linalg.norm(k, axis=-1, keepdims=True)).astype(x[1].dtype)
    x[3], x[4] = jax.nn.sigmoid(x[3]), -positive(x[4])
  elif case.op == "phase":
    x[2] = -positive(x[2])
  elif case.op == "compact and ema_upsample":
    x[2] = jax.nn.sigmoid(x[2])
  return tuple(x)


def seconds(fn, arguments, repeats: int) -> float:
  """Median of a call, of several that are queued without waiting."""
  import jax
  import numpy as np

  jax.block_until_ready(fn(*arguments))
  times = []
  for _ in range(5):
    start = time.perf_counter()
    out = [fn(*arguments) for _ in range(repeats)]
    jax.block_until_ready(out)
    times.append((time.perf_counter() - start) / repeats)
    del out
  return float(np.median(times))


def copy_bandwidth(repeats: int) -> float:
  """Bytes read and written per second by an elementwise program over 512 MiB."""
  import jax
  import jax.numpy as jnp

  x = jnp.zeros(2**28, jnp.bfloat16)
  return 2 * x.size * 2 / seconds(jax.jit(lambda x: x + 1), (x,), repeats)


def difference(got, want) -> float:
  import jax
  import numpy as np

  worst = 0.0
  for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
    g, w = np.asarray(g, np.float64), np.asarray(w, np.float64)
    worst = max(worst, float(np.abs(g - w).max() / max(np.abs(w).max(), 1e-30)))
  return worst


def torch_of(arguments):
  """Torch's arrays on the GPU, which gradients are asked of. None without torch and its GPU."""
  try:
    import torch
  except ImportError:
    return None, "torch is not installed"
  if not torch.cuda.is_available():
    return None, "torch sees no GPU"
  import numpy as np

  found = []
  for x in arguments:
    y = torch.tensor(np.asarray(x.astype("float32")), device="cuda")
    found.append(y.to(torch.bfloat16 if x.dtype == "bfloat16" else torch.float32).requires_grad_())
  return found, None


def peer(name: str, case, arguments, repeats: int) -> dict | str:
  """Seconds of forward and of both, or why there are none."""
  x, missing = torch_of([a for a in arguments if hasattr(a, "dtype") and a.dtype.kind in "fV"])
  if missing:
    return missing
  import torch

  if name == "sdpa":
    q, k, v = (y.transpose(1, 2) for y in x[:3])

    def run():
      return torch.nn.functional.scaled_dot_product_attention(
        q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1]
      )
  else:
    try:
      from fla.ops.gla import chunk_gla
      from fla.ops.simple_gla import chunk_simple_gla
    except ImportError:
      return "flash-linear-attention is not installed"
    if case.op == "gla":
      run = lambda: chunk_gla(*x[:4])[0]  # noqa: E731
    else:
      u, dt, a, b, c, _ = x
      b, c = (y.expand(-1, -1, u.shape[2], -1) for y in (b, c))

      def run():
        return chunk_simple_gla(c, b, u * dt[..., None].to(u.dtype), dt * a, scale=1.0)[0]

  def timed(fn):
    fn()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
      fn()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats

  try:
    with torch.no_grad():
      forward = timed(run)
    return {"forward": forward, "both": timed(lambda: run().float().square().sum().backward())}
  except Exception as error:  # another library's: reported, and the benchmark goes on
    return f"failed: {error}"


def measure(case, peaks, bandwidth: float, repeats: int) -> list[dict]:
  """A row per form and direction."""
  import jax

  arguments = draw(case)
  try:
    want = jax.jit(case.forward("reference"))(*arguments)
  except Exception as error:  # the definition needs memory for everything at once
    print(f"{case.op} | {case.name}: the definition does not run here: {str(error)[:200]}")
    want = None
  work = {
    "forward": (case.flops, case.bytes()),
    "both": (3 * case.flops, 3 * case.bytes()),
  }
  rows = []

  def row(form, direction, measured, error=None):
    flops, moved = work[direction]
    floor = max(flops / peaks[0], moved / bandwidth)
    rows.append(
      {
        "op": case.op,
        "shape": case.name,
        "form": form,
        "direction": direction,
        "simulated_s": floor,
        "measured_s": measured,
        "tflops": flops / measured / 1e12,
        "gb_s": moved / measured / 1e9,
        "share_of_roofline": floor / measured,
        "difference": error,
      }
    )
    print(" | ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in rows[-1].values()))

  for form in case.implementations:
    for direction, program in (("forward", case.forward(form)), ("both", case.backward(form))):
      try:
        fn = jax.jit(program)
        error = None
        if direction == "forward" and want is not None:
          error = difference(fn(*arguments), want)
        row(form, direction, seconds(fn, arguments, repeats), error)
      except Exception as refused:  # a form that is refused or fails is a line, not the end
        print(f"{case.op} | {case.name} | {form} | {direction}: {str(refused).splitlines()[0]}")
  for name in case.peers:
    found = peer(name, case, arguments, repeats)
    if isinstance(found, str):
      print(f"{case.op} | {case.name} | {name}: {found}")
    else:
      for direction, measured in found.items():
        row(name, direction, measured)
  return rows


def dry_run(cases) -> int:
  """Lowers everything for CUDA, as if for an H100. Returns the number of failures."""
  import jax
  from jax.sharding import AbstractDevice, AbstractMesh

  mesh, failures = AbstractMesh((1,), ("d",), abstract_device=AbstractDevice(H100, 132, "gpu")), 0
  with jax.sharding.use_abstract_mesh(mesh):
    for case in cases:
      for form in ("reference", *case.implementations):
        for direction, program in (("forward", case.forward(form)), ("both", case.backward(form))):
          said = "lowered"
          try:
            jax.jit(program).trace(*case.arguments).lower(lowering_platforms=("cuda",))
          except NotImplementedError as refused:
            said = f"refused: {refused}"
          except RuntimeError as absent:  # cuDNN asks its library for a version
            said = f"needs a GPU to lower: {str(absent).splitlines()[0]}"
            failures += form != "cudnn"
          print(f"{case.op} | {case.name} | {form} | {direction}: {said}", flush=True)
  return failures


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--ops", help="separated by commas; default: all")
  parser.add_argument("--repeats", type=int, default=20, help="calls per measurement")
  parser.add_argument("--out", type=Path, default=OUT)
  parser.add_argument("--dry-run", action="store_true", help="lower for CUDA, run nothing")
  args = parser.parse_args()

  import jax

  from jaxlm.kernels.gpu_cases import cases

  chosen = [c for c in cases() if args.ops is None or c.op in args.ops.split(",")]
  if not chosen:
    known = ", ".join(sorted({case.op for case in cases()}))
    print(f"bench/kernels.py: --ops={args.ops} names no op; known: {known}", file=sys.stderr)
    return 2
  if args.dry_run:
    return 1 if dry_run(chosen) else 0
  device = jax.devices()[0]
  if device.platform != "gpu":
    print(
      f"bench/kernels.py: it times kernels on a GPU and jax sees a {device.platform}; run it on a GPU, or "
      "with --dry-run, which lowers everything for CUDA",
      file=sys.stderr,
    )
    return 2
  found = [peaks for part, *peaks in PEAKS if part in device.device_kind]
  if not found:
    print(
      f"bench/kernels.py: the peak of {device.device_kind} is not known; add it to PEAKS",
      file=sys.stderr,
    )
    return 2
  from jaxlm.training.provenance import provenance

  bandwidth = copy_bandwidth(args.repeats)
  print(f"{device.device_kind}: copy at {bandwidth / 1e9:.0f} GB/s of {found[0][1] / 1e9:.0f}")
  results = provenance() | {"copy_bytes_per_s": bandwidth, "rows": []}
  for case in chosen:
    results["rows"] += measure(case, found[0], bandwidth, args.repeats)
    args.out.write_text(json_text.dumps(results, indent=1) + "\n")
  print(json_text.dumps({"rows": len(results["rows"]), "out": str(args.out)}))
  return 0


if __name__ == "__main__":
  sys.exit(main())
