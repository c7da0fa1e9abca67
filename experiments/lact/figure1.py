"""LaCT, Figure 1 (a): utilisation of the accelerator against chunk size, on whatever is here.

  python experiments/lact/figure1.py [--widths 384,768] [--chunks 16,64,256,1024,4096]
  [--peak_tflops 312] [--out STEM]

Forward of the causal operator, gradient descent and Muon, bfloat16 products on an accelerator and
float32 on a CPU. FLOPs are 6 H F per token and head to read, 12 H F per token and head to learn in
all chunks but the last, which is only read, and 90 H^3 per learned chunk and head with Muon
(docs/specs/lact.md, sections 2 and 11). Without --peak_tflops the peak is that of a large matrix
product on the same device, so that the figure is a fraction of what can be had. The bound is the
spec's for one product with its operands in memory, min(1, (C / (1 + 2 C / H)) / ridge), where
--ridge (FLOP/byte) is given.
"""

import argparse
import pathlib
import time

import jax
import jax.numpy as jnp

from jaxlm.experiments.runner import provenance
from jaxlm.kernels.fast_weight_chunk import Causal, Rule, fast_weight_chunk
from jaxlm.kernels.newton_schulz import LANGUAGE


def seconds(fn, *args, repeats=10):
  """Best of a few runs after one to compile."""
  jax.block_until_ready(fn(*args))
  best = float("inf")
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready(fn(*args))
    best = min(best, time.perf_counter() - start)
  return best


def measured_peak(dtype, size):
  x = jnp.ones((size, size), dtype)
  return 2 * size**3 / seconds(jax.jit(lambda x: x @ x), x, repeats=50)


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  cpu = jax.default_backend() == "cpu"
  parser.add_argument("--widths", default="64" if cpu else "384,768")
  parser.add_argument("--chunks", default="16,64,256,1024" if cpu else "16,64,256,1024,2048,4096")
  parser.add_argument("--length", type=int, default=4096 if cpu else 32_768)
  parser.add_argument("--heads", type=int, default=4)
  parser.add_argument("--peak_tflops", type=float)
  parser.add_argument(
    "--ridge",
    type=float,
    help="peak / bandwidth of the device: 295 for an H100, 153 for an A100-80GB",
  )
  parser.add_argument("--out", help="stem of a .md and a .png")
  args = parser.parse_args()
  dtype = "float32" if cpu else "bfloat16"
  peak = (
    args.peak_tflops * 1e12 if args.peak_tflops else measured_peak(dtype, 1024 if cpu else 8192)
  )
  lines = [
    f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {dtype}, {args.heads} heads, {args.length} tokens; "
    f"peak {peak / 1e12:.2f} TFLOP/s {'given' if args.peak_tflops else 'of a matrix product here'}",
    "",
    "| head width | update | chunk | ms | utilisation | bound |",
    "| --- | --- | ---: | ---: | ---: | ---: |",
  ]
  print("\n".join(lines))
  curves = {}
  for width in map(int, args.widths.split(",")):
    shape = (1, args.heads, args.length, width)
    x = (jax.random.normal(jax.random.key(0), shape) / width**0.5).astype(dtype)
    weights = tuple(
      jax.random.normal(jax.random.key(i), (1, args.heads, width, width)) / width**0.5
      for i in range(3)
    )
    eta = (jnp.full((*shape[:3], 1), 0.001),) * 3
    for muon in (False, True):
      low = None if cpu else dtype
      rule = Rule(muon=LANGUAGE if muon else None, muon_dtype=low, dtype=low)
      for chunk in map(int, args.chunks.split(",")):
        fn = jax.jit(
          lambda w, x, eta, chunk=chunk, rule=rule: fast_weight_chunk(
            w, x, x, x, eta, schedule=Causal(chunk), rule=rule
          )[0]
        )
        taken = seconds(fn, weights, x, eta)
        chunks = -(-args.length // chunk)
        flops = args.heads * (
          width**2 * (6 * args.length + 12 * (chunks - 1) * chunk)
          + (90 * width**3 * (chunks - 1) if muon else 0)
        )
        share, name = flops / taken / peak, "Muon" if muon else "gradient descent"
        bound = f"{min(1, chunk / (1 + 2 * chunk / width) / args.ridge):.1%}" if args.ridge else "-"
        curves.setdefault(f"{name}, width {width}", []).append((chunk, share))
        lines.append(f"| {width} | {name} | {chunk} | {1e3 * taken:.1f} | {share:.1%} | {bound} |")
        print(lines[-1], flush=True)
  if args.out:
    write(pathlib.Path(args.out), lines, curves)


def write(stem, lines, curves):
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  stem.parent.mkdir(parents=True, exist_ok=True)
  made = provenance()
  page = [
    "# LaCT, Figure 1 (a): utilisation against chunk size",
    "",
    *lines,
    "",
    f"![Utilisation]({stem.name}.png)",
    "",
    "## Made by",
    "",
    f"    {made['command']}",
    "",
    f"{made['date']}, revision {made['revision']}; {made['device']}.",
    "",
  ]
  stem.with_suffix(".md").write_text("\n".join(page))
  fig, axes = plt.subplots(figsize=(7, 4.2), dpi=110)
  for label, points in curves.items():
    axes.plot(*zip(*points), marker="o", label=label)
  axes.set(
    xscale="log",
    ylim=(0, None),
    xlabel="chunk (tokens)",
    ylabel="fraction of the device's matrix product",
    title="Forward of the chunk operator",
  )
  axes.set_xticks([c for c, _ in points], [str(c) for c, _ in points])
  axes.minorticks_off()
  axes.legend(frameon=False)
  axes.grid(True, color="0.9")
  fig.tight_layout()
  fig.savefig(stem.with_suffix(".png"))


if __name__ == "__main__":
  main()
