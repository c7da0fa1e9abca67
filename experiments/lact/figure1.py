"""LaCT, Figure 1 (a): utilisation of the accelerator against chunk size, on whatever is here.

  python experiments/lact/figure1.py [--widths 384,768] [--chunks 16,64,256,1024,4096] [--peak_tflops 312]

Forward of the causal operator, gradient descent and Muon, bfloat16 products on an accelerator and float32 on a CPU. FLOPs
are 18 H F per token and head, and 90 H^3 per chunk and head with Muon (spec lact, section 11). Without --peak_tflops the
peak is that of a large matrix product on the same device, so that the figure is a fraction of what can be had.
"""

import argparse
import time

import jax
import jax.numpy as jnp

from jaxlm.kernels.fast_weight_chunk import Causal, Rule, fast_weight_chunk
from jaxlm.kernels.newton_schulz import LANGUAGE


def seconds(fn, *args, repeats=3):
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
  return 2 * size**3 / seconds(jax.jit(lambda x: x @ x), x)


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  cpu = jax.default_backend() == "cpu"
  parser.add_argument("--widths", default="64" if cpu else "384,768")
  parser.add_argument("--chunks", default="16,64,256,1024" if cpu else "16,64,256,1024,2048,4096")
  parser.add_argument("--length", type=int, default=4096 if cpu else 32_768)
  parser.add_argument("--heads", type=int, default=4)
  parser.add_argument("--peak_tflops", type=float)
  args = parser.parse_args()
  dtype = "float32" if cpu else "bfloat16"
  peak = args.peak_tflops * 1e12 if args.peak_tflops else measured_peak(dtype, 1024 if cpu else 8192)
  print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {dtype}, {args.heads} heads, {args.length} tokens; "
        f"peak {peak / 1e12:.2f} TFLOP/s {'given' if args.peak_tflops else 'of a matrix product here'}\n")
  print("| head width | update | chunk | ms | utilisation |\n| --- | --- | --- | --- | --- |")
  for width in map(int, args.widths.split(",")):
    shape = (1, args.heads, args.length, width)
    x = (jax.random.normal(jax.random.key(0), shape) / width**0.5).astype(dtype)
    weights = tuple(jax.random.normal(jax.random.key(i), (1, args.heads, width, width)) / width**0.5 for i in range(3))
    eta = (jnp.full((*shape[:3], 1), 0.001),) * 3
    for muon in (False, True):
      low = None if cpu else dtype
      rule = Rule(muon=LANGUAGE if muon else None, muon_dtype=low, dtype=low)
      for chunk in map(int, args.chunks.split(",")):
        fn = jax.jit(lambda w, x, eta, chunk=chunk, rule=rule: fast_weight_chunk(
            w, x, x, x, eta, schedule=Causal(chunk), rule=rule)[0])
        taken = seconds(fn, weights, x, eta)
        chunks = -(-args.length // chunk)
        flops = args.heads * (18 * width**2 * args.length + (90 * width**3 * (chunks - 1) if muon else 0))
        print(f"| {width} | {'Muon' if muon else 'GD'} | {chunk} | {1e3 * taken:.1f} | {flops / taken / peak:.1%} |", flush=True)


if __name__ == "__main__":
  main()
