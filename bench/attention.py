"""Attention by blocks against all scores at once: time and temporary memory of forward and
backward, float32.

python bench/attention.py [--lengths 1024 2048 4096 8192] [--repeats 5]
"""

import argparse
import time

import jax
import jax.numpy as jnp

from jaxlm.kernels.attention import attention, shapes


def gradient(implementation, shape):
  """(compiled gradient of causal attention, its arguments)."""
  B, T, N, K, H = shape
  keys = jax.random.split(jax.random.key(0), 3)
  args = [jax.random.normal(key, (B, T, heads, H)) for key, heads in zip(keys, (N, K, K))]

  def loss(q, k, v):
    return jnp.sum(attention(q, k, v, implementation=implementation))

  return jax.jit(jax.grad(loss, (0, 1, 2))).lower(*args).compile(), args


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--lengths", type=int, nargs="*", default=[s[1] for s in shapes.LONG])
  parser.add_argument("--repeats", type=int, default=5)
  args = parser.parse_args()
  print(
    f"jax {jax.__version__}, {jax.devices()[0].device_kind}, causal, float32; least of {args.repeats}"
  )
  print(f"{'B x T x N x H':>20} {'form':>10} {'wall ms':>9} {'CPU ms':>9} {'temporary MiB':>14}")
  for shape in (s for s in shapes.LONG if s[1] in args.lengths):
    B, T, N, _, H = shape
    for implementation in ("reference", "xla"):
      run, operands = gradient(implementation, shape)
      times = []
      for _ in range(args.repeats + 1):  # the first warms up
        wall, cpu = time.perf_counter(), time.process_time()
        jax.block_until_ready(run(*operands))
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
      wall, cpu = (1e3 * min(t[i] for t in times[1:]) for i in (0, 1))
      memory = run.memory_analysis().temp_size_in_bytes / 2**20
      print(
        f"{f'{B} x {T} x {N} x {H}':>20} {implementation:>10} {wall:9.1f} {cpu:9.1f} {memory:14.1f}",
        flush=True,
      )


if __name__ == "__main__":
  main()
