"""SSD forward + backward, chunked form against the token-by-token reference.

python bench/ssd.py [--length 2048] [--chunks 32,64,128,256]
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.kernels.ssd import ssd


def seconds(fn, *args, repeats):
  """Median wall seconds of a call, compiled and warmed."""
  jax.block_until_ready(fn(*args))
  times = []
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready(fn(*args))
    times.append(time.perf_counter() - start)
  return float(np.median(times))


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--length", type=int, default=2048)
  parser.add_argument("--batch", type=int, default=1)
  parser.add_argument("--heads", type=int, default=4)
  parser.add_argument("--chunks", default="32,64,128,256")
  parser.add_argument("--repeats", type=int, default=5)
  args = parser.parse_args()
  B, T, N, H, K, E = args.batch, args.length, args.heads, 64, 1, 128
  r = np.random.default_rng(0)

  def n(*s):
    return jnp.asarray(r.standard_normal(s), jnp.float32)

  x, dt, a, b, c, g = (
    n(B, T, N, H),
    jax.nn.softplus(n(B, T, N) - 3),
    -jnp.exp(n(N)),
    n(B, T, K, E),
    n(B, T, K, E),
    n(B, T, N, H),
  )

  def step(**options):
    def loss(x, dt, a, b, c):
      return jnp.sum(g * ssd(x, dt, a, b, c, **options)[0])

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3, 4)))

  print(
    f"device {jax.devices()[0].device_kind}, jax {jax.__version__}; B {B} T {T} N {N} H {H} K {K} E {E}, float32"
  )
  reference = seconds(
    step(implementation="reference"), x, dt, a, b, c, repeats=max(2, args.repeats // 2)
  )
  print(f"reference        {1e3 * reference:9.1f} ms")
  for chunk in map(int, args.chunks.split(",")):
    fast = seconds(step(chunk=chunk), x, dt, a, b, c, repeats=args.repeats)
    print(f"xla, chunk {chunk:4d}  {1e3 * fast:9.1f} ms   {reference / fast:6.1f}x")


if __name__ == "__main__":
  main()
