"""H-Net in one run: FLOPs that follow the capacity, the step against an isotropic Transformer, streaming.

  python bench/hnet.py [--seq_len 512] [--batch_size 4] [--width 128] [--bytes_per_chunk 5]

1. Compiled FLOPs of the main network (forward and backward, layers unrolled, the compiler's count) at each capacity
   against the capacity itself; attention's share grows with its square, so the ideal is the formula's.
2. Seconds per training step of a one-stage H-Net at its steady capacity and of a byte Transformer of equal FLOPs by
   the paper's formula; rounds alternate between the two. CPU seconds are what a busy machine changes least.
3. Bytes per second of streaming (one jitted step) and of recomputing everything for each byte.
"""

import argparse
import dataclasses
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.layers.attention import AttentionConfig
from jaxlm.layers.isotropic import Isotropic
from jaxlm.layers.mamba2 import Mamba2Config
from jaxlm.layers.mixer import Context
from jaxlm.layers.positions.rope import RoPE
from jaxlm.layers.routers import Pool
from jaxlm.models.hnet import HNetConfig, StageConfig
from jaxlm.models.hnet_rules import forward_flops, stack_flops


def stage(width, **options):
  return StageConfig(width, 4 * width, AttentionConfig(4, position=RoPE(rotary_dim=width // 8)),
                     Mamba2Config(d_state=64), **options)


def capacity_rows(cfg, seq_len):
  """(capacity, compiled FLOPs relative to the largest, the formula's) of the main network."""
  stack = dataclasses.replace(cfg.stack(1, cfg.runs(1)[0]), unroll=8)      # the compiler counts a loop body once
  module, counts = Isotropic(stack), []
  capacities = [seq_len // 8, seq_len // 4, seq_len // 2, seq_len]
  for C in capacities:
    context = Context(jnp.ones((1, C), jnp.int32), jnp.arange(C, dtype=jnp.int32)[None])
    x = jax.ShapeDtypeStruct((1, C, stack.d_model), jnp.float32)
    params = jax.eval_shape(lambda x: nn.unbox(module.init(jax.random.key(0), x, context))["params"], x)
    loss = lambda p, x: jnp.sum(module.apply({"params": p}, x, context)[0])
    counts.append(jax.jit(jax.grad(loss, argnums=(0, 1))).lower(params, x).compile().cost_analysis()["flops"])
  return [(C, n / counts[-1], stack_flops(stack, C) / stack_flops(stack, capacities[-1]))
          for C, n in zip(capacities, counts)]


def step_of(cfg, tokens, capacities):
  module = cfg.build()
  params = nn.unbox(jax.jit(module.init)(jax.random.key(0), tokens[:, :8]))["params"]

  def loss(params):
    score, _ = module.apply({"params": params}, tokens[:, :-1], tokens[:, 1:], capacities=capacities,
                            method="score_with_stages")
    return -jnp.mean(score.log_prob_BT)

  step = jax.jit(lambda p: jax.tree.map(lambda x, g: x - 1e-3 * g, p, jax.grad(loss)(p)))
  jax.block_until_ready(step(params))
  return lambda: jax.block_until_ready(step(params))


def timed(fn):
  wall, cpu = time.perf_counter(), time.process_time()
  fn()
  return time.perf_counter() - wall, time.process_time() - cpu


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--seq_len", type=int, default=512)
  parser.add_argument("--batch_size", type=int, default=4)
  parser.add_argument("--width", type=int, default=128)
  parser.add_argument("--bytes_per_chunk", type=int, default=5)
  parser.add_argument("--rounds", type=int, default=7)
  args = parser.parse_args()
  T, D, n = args.seq_len, args.width, args.bytes_per_chunk
  # A fixed width puts as many chunks as a trained router would; the work is the same wherever they are.
  hnet = HNetConfig("m2 [T4] m2", (stage(D, router=Pool(n)), stage(D * 3 // 2)))
  flops = forward_flops(hnet, T, (n,))
  layers = min(range(1, 40), key=lambda k: abs(forward_flops(HNetConfig(f"T{k}", (stage(D),)), T) - flops))
  flat = HNetConfig(f"T{layers}", (stage(D),))
  print(f"device {jax.devices()[0].device_kind}, jax {jax.__version__}, float32, T {T}, batch {args.batch_size}, width {D}")
  print("\nmain network: compiled FLOPs relative to full length, forward and backward")
  for capacity, compiled, ideal in capacity_rows(hnet, T):
    print(f"  capacity {capacity:5d}  compiled {compiled:6.3f}  ideal {ideal:6.3f}  ratio {compiled / ideal:5.3f}")

  tokens = jnp.asarray(np.random.default_rng(0).integers(0, 256, (args.batch_size, T + 1)), jnp.int32)
  capacity = -(-T // n // 8) * 8
  sides = {"H-Net": step_of(hnet, tokens, (capacity,)), f"T{layers}": step_of(flat, tokens, ())}
  times = {name: [] for name in sides}
  for _ in range(args.rounds):
    for name, fn in sides.items():
      times[name].append(timed(fn))
  print(f"\ntraining step, forward and backward; forward MFLOP per byte {flops / T / 1e6:.2f} and "
        f"{forward_flops(flat, T) / T / 1e6:.2f}; capacity {capacity} of {T}")
  medians = {name: np.median(t, axis=0) for name, t in times.items()}
  for name, (wall, cpu) in medians.items():
    print(f"  {name:6s} {1e3 * wall:8.1f} ms wall  {1e3 * cpu:8.1f} ms CPU")
  a, b = medians["H-Net"], medians[f"T{layers}"]
  print(f"  H-Net / Transformer: {a[0] / b[0]:.2f}x wall, {a[1] / b[1]:.2f}x CPU")

  module = hnet.build()
  params = nn.unbox(jax.jit(module.init)(jax.random.key(0), tokens[:, :8]))["params"]
  extend = jax.jit(lambda t, s: module.apply({"params": params}, t, s, method="extend"), donate_argnums=1)
  whole = jax.jit(lambda t: module.apply({"params": params}, t)[:, -1])
  row = tokens[:1, :T]
  _, state = extend(row[:, :T // 2], hnet.init_state(1, T))
  _, state = extend(row[:, :1], state)      # compiles
  jax.block_until_ready(whole(row))
  steps = 64
  start = time.perf_counter()
  for t in range(steps):
    logits, state = extend(row[:, t:t + 1], state)
  jax.block_until_ready(logits)
  stream = steps / (time.perf_counter() - start)
  start = time.perf_counter()
  for _ in range(8):
    jax.block_until_ready(whole(row))
  naive = 8 / (time.perf_counter() - start)
  print(f"\nstreaming {stream:.1f} bytes/s, recomputing {T} bytes for each {naive:.1f} bytes/s: {stream / naive:.1f}x")


if __name__ == "__main__":
  main()
