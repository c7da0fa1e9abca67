"""H-Net in one run: the step against isotropic Transformers, the two forms of capacity, streaming.

  python bench/hnet.py [--seq_len 512] [--batch_size 4] [--width 128] [--bytes_per_chunk 5]

1. Seconds per training step of a one-stage H-Net, with the learned and with a pool router, at its
   steady capacity, and of
   byte Transformers of equal FLOPs: by the products that the steps execute, and by the paper's
   formula, which prints half of Mamba-2's output projection and takes causal attention as the whole
   square. Rounds alternate between them. The ratio loss, two means over a row, is not in it. CPU
   seconds are what a busy machine changes least.
2. The two forms of capacity on text: a buffer per row, or one for all rows of the batch with
   segment ids. The smallest bucket (a multiple of 8) that holds every batch of a novel cut at
   spaces, its slots, and the step at that size.
3. Bytes per second of streaming (one jitted step) and of recomputing everything for each byte.

FLOPs that follow the capacity: bench/hnet_capacity.py.
"""

import argparse
import dataclasses
import resource
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.evaluation.flops import dot_flops
from jaxlm.layers.attention import AttentionConfig
from jaxlm.layers.mamba2 import Mamba2Config
from jaxlm.layers.positions.rope import RoPE
from jaxlm.layers.routers import CosineRouter, FixedStride, SpaceBoundaries, space_like
from jaxlm.models.hnet import HNetConfig, JoinConfig, StageConfig
from jaxlm.models.hnet_rules import forward_flops
from jaxlm.parallel.cpu import keep_memory


def stage(width, d_ff=None, **options):
  return StageConfig(
    width,
    d_ff or 4 * width,
    AttentionConfig(4, position=RoPE(rotary_dim=width // 8)),
    Mamba2Config(d_state=64),
    **options,
  )


def loss_of(cfg, tokens, capacities):
  def loss(params):
    score = cfg.build().apply(
      {"params": params},
      tokens[:, :-1],
      tokens[:, 1:],
      capacities=capacities,
      method="score",
    )
    return -jnp.mean(score.log_prob_BT)

  return loss


def products(cfg, tokens, capacities):
  """FLOPs of the matrix products of a training step."""
  params = nn.unbox(jax.eval_shape(cfg.build().init, jax.random.key(0), tokens[:, :8]))["params"]
  return dot_flops(jax.grad(loss_of(cfg, tokens, capacities)), params)


def step_of(cfg, tokens, capacities):
  """(compiled training step, FLOPs of the products that it executes)."""
  params = nn.unbox(jax.jit(cfg.build().init)(jax.random.key(0), tokens[:, :8]))["params"]
  loss = loss_of(cfg, tokens, capacities)
  step = jax.jit(lambda p: jax.tree.map(lambda x, g: x - 1e-3 * g, p, jax.grad(loss)(p)))
  jax.block_until_ready(step(params))
  return lambda: jax.block_until_ready(step(params)), products(cfg, tokens, capacities)


def transformer_like(hnet, seq_len, flops):
  """The byte Transformer of the H-Net's outer width whose forward FLOPs by the formula are within 3
  %, or nearest; of these, the one whose d_ff is nearest 4 times its width. The width is fixed:
  products of narrower ones are slower."""
  D = hnet.d_model

  def make(k, f):
    return dataclasses.replace(hnet, layout=f"T{k}", stages=(stage(D, d_ff=f),))

  def order(k, f):
    return (max(0.03, abs(forward_flops(make(k, f), seq_len) / flops - 1)), abs(f - 4 * D))

  return make(
    *min(
      ((k, f) for k in range(1, 17) for f in range(128, 8 * D + 1, 128)),
      key=lambda shape: order(*shape),
    )
  )


def transformer_with(hnet, tokens, wanted):
  """The byte Transformer whose step executes nearest to `wanted` FLOPs of products."""
  flops, found = wanted / 3 / len(tokens), []
  for _ in range(6):
    cfg = transformer_like(hnet, tokens.shape[1] - 1, flops)
    ratio = products(cfg, tokens, ()) / wanted
    found.append((abs(ratio - 1), cfg))
    flops /= ratio
  return min(found, key=lambda pair: pair[0])[1]


def capacity_forms(cfg, tokens_NBT):
  """{form: (rows_per_buffer, capacity that holds every batch, mean chunks per buffer)} of text cut
  at spaces.
  """
  like = space_like(tokens_NBT)
  starts = np.array(like & ~np.pad(like[..., :-1], ((0, 0), (0, 0), (1, 0)), constant_values=True))
  starts[..., 0] = True  # a document's first byte
  counts_NB, forms = starts.sum(-1), {}
  for name, rows in (("per row", 1), ("packed", tokens_NBT.shape[1])):
    buffers = counts_NB.reshape(len(counts_NB), -1, rows).sum(-1)
    forms[name] = rows, -(-int(buffers.max()) // 8) * 8, float(buffers.mean())
  return forms


def text_batches(num, batch_size, length):
  """(num, B, T) bytes of the embedded novel."""
  from jaxlm.data.sources import open_corpus

  text = b"\n".join(open_corpus("mini:moby_dick").documents("train"))[: num * batch_size * length]
  return np.frombuffer(text, np.uint8).astype(np.int32).reshape(num, batch_size, length)


def timed(fn):
  """(wall seconds, CPU seconds, page faults)"""

  def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

  before, wall, cpu = faults(), time.perf_counter(), time.process_time()
  fn()
  return time.perf_counter() - wall, time.process_time() - cpu, faults() - before


def print_ratios(medians, sides, over):
  """Of every side: its times, and their ratios to those of the sides in `over`."""
  for name, (wall, cpu, faults) in medians.items():
    print(
      f"  {name:26s} {1e3 * wall:8.1f} ms wall  {1e3 * cpu:8.1f} ms CPU  {faults:7.0f} page faults  "
      f"{sides[name][1] / 1e9:6.2f} GFLOP of products"
    )
  for b in over:
    for a in (name for name in medians if name not in over):
      ratio = medians[a][:2] / medians[b][:2]
      more = sides[a][1] / sides[b][1]
      print(
        f"  {a} / {b}: {ratio[0]:.2f}x wall, {ratio[1]:.2f}x CPU; products {more:.2f}x; per product {ratio[1] / more:.2f}x CPU",
        flush=True,
      )


def rounds(sides, num):
  """{name: median (wall seconds, CPU seconds, page faults)}, the sides in turn."""
  times = {name: [] for name in sides}
  for _ in range(num):
    for name, (fn, _) in sides.items():
      times[name].append(timed(fn))
  return {name: np.median(t, axis=0) for name, t in times.items()}


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--seq_len", type=int, default=512)
  parser.add_argument("--batch_size", type=int, default=4)
  parser.add_argument("--width", type=int, default=128)
  parser.add_argument("--bytes_per_chunk", type=int, default=5)
  parser.add_argument("--unroll", type=int, default=8)
  parser.add_argument("--rounds", type=int, default=7)
  parser.add_argument("--part", choices=("all", "step"), default="all")
  parser.add_argument(
    "--give_memory_back", action="store_true", help="as glibc does by default; training does not"
  )
  args = parser.parse_args()
  if not args.give_memory_back:
    keep_memory()
  T, D, n = args.seq_len, args.width, args.bytes_per_chunk
  # A pool router makes as many chunks as a trained one would; the untrained learned one overflows,
  # at the same work.
  # Unrolled: a CPU's loop over layers copies everything that the backward pass keeps, of which
  # Mamba-2 has more.
  hnet = HNetConfig(
    "m2 [T4] m2", (stage(D, router=FixedStride(n)), stage(D * 3 // 2)), unroll=args.unroll
  )
  print(
    f"device {jax.devices()[0].device_kind}, jax {jax.__version__}, float32, T {T}, batch {args.batch_size}, width {D}, "
    f"unroll {args.unroll}, memory {'given back' if args.give_memory_back else 'kept'}"
  )
  tokens = jnp.asarray(
    np.random.default_rng(0).integers(0, 256, (args.batch_size, T + 1)), jnp.int32
  )
  capacity = -(-T // n // 8) * 8
  learned = dataclasses.replace(hnet, stages=(stage(D, router=CosineRouter()), hnet.stages[1]))
  flops = forward_flops(learned, T, (n,))
  flats = {
    "products": transformer_with(hnet, tokens, products(learned, tokens, (capacity,))),
    "formula": transformer_like(hnet, T, flops),
  }
  names = {how: f"Transformer, equal {how}" for how in flats}
  sides = {
    "H-Net, learned router": step_of(learned, tokens, (capacity,)),
    "H-Net, pool router": step_of(hnet, tokens, (capacity,)),
    **{names[how]: step_of(flat, tokens, ()) for how, flat in flats.items()},
  }
  medians = rounds(sides, args.rounds)
  print(
    f"\ntraining step, forward and backward; capacity {capacity} of {T}; forward MFLOP per byte by the formula: H-Net with "
    f"the learned router {flops / T / 1e6:.2f}"
  )
  for how, flat in flats.items():
    print(
      f"  {names[how]}: {flat.layout}, width {flat.d_model}, d_ff {flat.stages[0].d_ff}, {forward_flops(flat, T) / T / 1e6:.2f}"
    )
  print_ratios(medians, sides, list(names.values()))
  if args.part == "step":
    return

  text = text_batches(64, args.batch_size, T + 1)
  on_spaces = dataclasses.replace(
    hnet, unroll=1, stages=(stage(D, router=SpaceBoundaries()), hnet.stages[1])
  )
  forms = capacity_forms(on_spaces, text[..., :-1])
  sides = {
    name: step_of(
      dataclasses.replace(on_spaces, join=JoinConfig(rows_per_buffer=rows)),
      jnp.asarray(text[0]),
      (C,),
    )
    for name, (rows, C, _) in forms.items()
  }
  medians = rounds(sides, args.rounds)
  print(
    f"\ncapacity on text, {len(text)} batches of {args.batch_size} rows cut at spaces; none overflows"
  )
  for name, (rows, C, mean) in forms.items():
    wall, cpu, _ = medians[name]
    print(
      f"  {name:8s} capacity {C:5d} x {args.batch_size // rows} buffers = {C * args.batch_size // rows:5d} slots, "
      f"{mean / C:.2f} full; step {1e3 * wall:7.1f} ms wall {1e3 * cpu:7.1f} ms CPU"
    )

  module = dataclasses.replace(hnet, unroll=1).build()
  params = nn.unbox(jax.jit(module.init)(jax.random.key(0), tokens[:, :8]))["params"]
  extend = jax.jit(
    lambda t, s: module.apply({"params": params}, t, s, method="extend"), donate_argnums=1
  )
  whole = jax.jit(lambda t: module.apply({"params": params}, t)[:, -1])
  row = tokens[:1, :T]
  _, state = extend(row[:, : T // 2], hnet.init_state(1, T))
  _, state = extend(row[:, :1], state)  # compiles
  jax.block_until_ready(whole(row))
  steps = 64
  start = time.perf_counter()
  for t in range(steps):
    logits, state = extend(row[:, t : t + 1], state)
  jax.block_until_ready(logits)
  stream = steps / (time.perf_counter() - start)
  start = time.perf_counter()
  for _ in range(8):
    jax.block_until_ready(whole(row))
  naive = 8 / (time.perf_counter() - start)
  print(
    f"\nstreaming (pool router) {stream:.1f} bytes/s, recomputing {T} bytes for each {naive:.1f} bytes/s: {stream / naive:.1f}x"
  )


if __name__ == "__main__":
  main()
