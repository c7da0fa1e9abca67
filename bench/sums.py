"""A product and its sum on a CPU, with and without axes of size 1: why `jaxlm.kernels.sums` takes
them out.

taskset -c 0 python bench/sums.py
"""

import time

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.kernels.sums import sum_of_products
from jaxlm.parallel.cpu import keep_memory

CASES = [
  ((1, 1024, 256), (1,)),
  ((1, 1024, 256), (0, 1)),
  ((1, 1024, 256), (2,)),
  ((2, 512, 256), (2,)),
  ((2, 512, 1, 256), (3,)),
  ((1, 64, 256), (1,)),
  ((1, 4, 32, 32), (1,)),
]


def milliseconds(fn, *args, calls=40):
  """Median of a compiled call."""
  fn = jax.jit(fn)
  jax.block_until_ready(fn(*args))
  times = []
  for _ in range(calls):
    start = time.perf_counter()
    jax.block_until_ready(fn(*args))
    times.append(time.perf_counter() - start)
  return 1e3 * float(np.median(times))


def main():
  keep_memory()
  print(f"device {jax.devices()[0].device_kind}, jax {jax.__version__}, float32\n")
  print(
    "| operands | summed axes | jnp.sum(a * b), ms | sum_of_products, ms | times as fast |\n| --- | --- | ---: | ---: | ---: |"
  )
  for shape, axes in CASES:
    a, b = (
      jnp.asarray(np.random.default_rng(i).standard_normal(shape), jnp.float32) for i in (0, 1)
    )
    plain = milliseconds(lambda a, b, axes=axes: jnp.sum(a * b, axes), a, b)
    ours = milliseconds(lambda a, b, axes=axes: sum_of_products(a, b, axes), a, b)
    print(f"| {shape} | {axes} | {plain:.3f} | {ours:.3f} | {plain / ours:.1f} |")


if __name__ == "__main__":
  main()
