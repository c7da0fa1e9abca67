"""CARoPE's rotation against RoPE's with tables made beforehand: forward and backward, float32.

The last columns set the difference beside the decoder block it sits in (d_model = heads * head_dim,
MLP of four times the width, no attention products: the least that a block costs), both measured
here.

  python bench/phase.py [--repeats 20]
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.kernels.phase import carope_rotate, rotate, shapes


def rope(q, k, cos, sin):
  cos, sin = jax.lax.stop_gradient((cos, sin))  # tables are not learned
  return rotate(q, cos, sin), rotate(k, cos, sin)


def carope(q, k, log_f):
  return carope_rotate(q, k, log_f, rotary_dim=q.shape[-1])[:2]


def products(x_RD, w_DD, w_DF, w_FD):
  """The matrix products of a block: q, k, v, o and the MLP."""
  for _ in range(4):
    x_RD = x_RD @ w_DD
  return jax.nn.gelu(x_RD @ w_DF) @ w_FD


def with_pullback(fn):
  @jax.jit
  def run(gradients, *args):
    out, vjp = jax.vjp(fn, *args)
    return out, vjp(gradients)

  return run


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--repeats", type=int, default=20)
  args = parser.parse_args()
  print(
    f"jax {jax.__version__}, {jax.devices()[0].device_kind}, float32; CPU ms, least of {args.repeats}, interleaved"
  )
  print(
    f"{'B x T x N x H':>18} {'RoPE':>8} {'CARoPE':>8} {'block':>9} {'(block + CARoPE) / (block + RoPE)':>36}"
  )
  for B, T, N, K, H in shapes.CPU:
    keys = jax.random.split(jax.random.key(0), 6)
    q, k, dq, dk = (
      jax.random.normal(key, (B, T, heads, H)) for key, heads in zip(keys, (N, K, N, K))
    )
    log_f, D = -jax.random.uniform(keys[4], (B, T, K)) - 0.01, N * H
    w = [0.02 * jax.random.normal(keys[5], shape) for shape in ((D, D), (D, 4 * D), (4 * D, D))]
    x = q.reshape(B * T, D)
    angles = np.arange(T)[:, None] * 10000.0 ** (-np.arange(0, H, 2) / H)
    tables = [jnp.asarray(f(angles), jnp.float32) for f in (np.cos, np.sin)]
    runs = {
      "rope": (with_pullback(rope), ((dq, dk), q, k, *tables)),
      "carope": (with_pullback(carope), ((dq, dk), q, k, log_f)),
      "block": (with_pullback(products), (x, x, *w)),
    }
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(args.repeats):
      for name, (run, operands) in runs.items():
        jax.block_until_ready(run(*operands))  # the one before has filled the caches with its own
        start = time.process_time()  # not the wall: the comparison should survive a shared machine
        jax.block_until_ready(run(*operands))
        best[name] = min(best[name], 1e3 * (time.process_time() - start))
    ratio = (best["block"] + best["carope"]) / (best["block"] + best["rope"])
    print(
      f"{f'{B} x {T} x {N} x {H}':>18} {best['rope']:8.2f} {best['carope']:8.2f} {best['block']:9.1f} {ratio:36.3f}",
      flush=True,
    )


if __name__ == "__main__":
  main()
