r"""The keyed random head against the dense table and against an ordinary learned softmax: forward
and backward.

  python bench/random_head.py [--vocab_size 32768 --batch_size 8 --seq_len 256 --d_model 512]
  [--rounds 3]

Sides, each giving the loss of every target and the gradient of h (and of w, where it is learned):
  keyed    the library's head: rows regenerated stretch by stretch, jaxlm.kernels.random_head
  table    every row of every sequence, (B, V, D), made first; all logits at once
  learned  one table for all sequences, jaxlm.kernels.linear_cross_entropy
and two parts of `keyed` alone: `rows`, generating every row once, stretch by stretch, and
`products`, its two matrix products per stretch with rows that are there already.

Memory: the largest resident size during the first call above the size before it, in a process of
its own whose allocator gives freed arrays back; beside it what the compiler reports for temporaries
and results. Time: median of a few calls, another process.
"""

import argparse
import json
import os
import subprocess
import sys
import time

from jaxlm import json_text

SIDES = ("keyed", "table", "learned", "rows", "products")
STRETCH = 512


def build(side: str, args):
  """(jitted function, arguments)"""
  import jax
  import jax.numpy as jnp

  from jaxlm.kernels.linear_cross_entropy import linear_cross_entropy
  from jaxlm.kernels.random_head import keyed_rows, random_head
  from jaxlm.kernels.random_head.rows import halves

  B, T, D, V = args.batch_size, args.seq_len, args.d_model, args.vocab_size
  h_BTD = jax.random.normal(jax.random.key(0), (B, T, D)) / D**0.5
  targets_BT = jax.random.randint(jax.random.key(1), (B, T), 0, V)
  seed_B2 = jnp.stack([jnp.full(B, 7, jnp.uint32), jnp.arange(B, dtype=jnp.uint32)], axis=1)

  def mean_loss(log_prob_BT):
    return -jnp.mean(log_prob_BT)

  if side == "keyed":

    def f(h):
      return mean_loss(random_head(h, seed_B2, targets_BT, vocab_size=V, chunk=args.chunk)[0])

    return jax.jit(jax.value_and_grad(f)), (h_BTD,)
  if side == "table":

    def f(h_BTD):
      table_BVD = keyed_rows(seed_B2[:, None], jnp.arange(V)[None], D)
      logits_BTV = jnp.einsum("btd,bvd->btv", h_BTD, table_BVD)
      picked_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
      return mean_loss(picked_BT - jax.nn.logsumexp(logits_BTV, axis=-1))

    return jax.jit(jax.value_and_grad(f)), (h_BTD,)
  if side == "learned":
    w_VD = jax.random.normal(jax.random.key(2), (V, D))

    def f(h, w):
      return mean_loss(linear_cross_entropy(h, w, targets_BT)[0])

    return jax.jit(jax.value_and_grad(f, argnums=(0, 1))), (h_BTD, w_VD)
  starts = jnp.arange(0, V, STRETCH)
  if side == "rows":

    def one(seed_2):
      def step(total, start):
        return (total + halves(seed_2[None], start + jnp.arange(STRETCH), D), None)

      return jax.lax.scan(step, jnp.zeros((STRETCH, D)), starts)[0]

    return jax.jit(lambda seed_B2: jax.lax.map(one, seed_B2)), (seed_B2,)

  rows_CD = jax.random.normal(jax.random.key(3), (STRETCH, D))

  def one(h_TD):
    # The rows' product changes with every stretch, so that nothing can be computed once for all of
    # them.
    def step(total_TD, start):
      return (total_TD + ((h_TD + total_TD * 1e-9) @ rows_CD.T) @ rows_CD, None)

    return jax.lax.scan(step, jnp.zeros_like(h_TD), starts)[0]

  return jax.jit(lambda h_BTD: jax.lax.map(one, h_BTD)), (h_BTD,)


def measure(side: str, args) -> dict:
  import jax

  f, arguments = build(side, args)
  compiled = f.lower(*arguments).compile()
  if args.what == "memory":

    def status(key):
      return (
        next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key))
        * 1024
      )

    with open("/proc/self/clear_refs", "w") as file:
      file.write("5")  # the high-water mark starts anew
    before = status("VmRSS")
    jax.block_until_ready(compiled(*arguments))
    analysis = compiled.memory_analysis()
    return {
      "peak_bytes": status("VmHWM") - before,
      "compiler_bytes": analysis.temp_size_in_bytes + analysis.output_size_in_bytes,
    }
  jax.block_until_ready(compiled(*arguments))
  times = []
  for _ in range(args.rounds):
    start = time.perf_counter()
    jax.block_until_ready(compiled(*arguments))
    times.append(time.perf_counter() - start)
  return {"seconds": sorted(times)[len(times) // 2], "low": min(times), "high": max(times)}


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  for name, default in (
    ("vocab_size", 32_768),
    ("batch_size", 8),
    ("seq_len", 256),
    ("d_model", 512),
    ("rounds", 3),
  ):
    parser.add_argument(f"--{name}", type=int, default=default)
  parser.add_argument(
    "--chunk", type=int, default=None, help="of the keyed head; default: its own choice"
  )
  parser.add_argument("--sides", default=",".join(SIDES))
  parser.add_argument("--side", help=argparse.SUPPRESS)
  parser.add_argument("--what", choices=("memory", "time"), help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.side:
    print(json_text.dumps(measure(args.side, args)))
    return
  import jax

  print(
    f"{jax.devices()[0].device_kind}, {len(os.sched_getaffinity(0))} core(s), jax {jax.__version__}; vocabulary "
    f"{args.vocab_size:,}, batch {args.batch_size}, length {args.seq_len}, d_model {args.d_model}, float32"
  )
  table_bytes = 4 * args.batch_size * args.vocab_size * args.d_model
  print(f"one (batch, vocabulary, d_model) table: {table_bytes / 2**20:,.0f} MiB\n")
  print(
    "| side | s | range | peak memory of a call, MiB | by the compiler, MiB |\n| --- | ---: | ---: | ---: | ---: |"
  )
  found = {}
  for side in args.sides.split(","):
    out = {}
    for what in ("memory", "time"):
      # A fixed threshold: arrays above it go back to the system when they are freed.
      env = os.environ | ({"MALLOC_MMAP_THRESHOLD_": "65536"} if what == "memory" else {})
      command = [sys.executable, __file__, *sys.argv[1:], "--side", side, "--what", what]
      out |= json.loads(
        subprocess.run(
          command, env=env, stdout=subprocess.PIPE, check=True, text=True
        ).stdout.splitlines()[-1]
      )
    found[side] = out
    print(
      f"| {side} | {out['seconds']:.2f} | {out['low']:.2f} to {out['high']:.2f} | {out['peak_bytes'] / 2**20:.1f} | "
      f"{out['compiler_bytes'] / 2**20:.1f} |",
      flush=True,
    )
  if "keyed" in found:
    print(f"\n- one table over keyed's peak: {table_bytes / found['keyed']['peak_bytes']:.1f}x")
    if "learned" in found:
      print(
        f"- keyed's time over learned's: {found['keyed']['seconds'] / found['learned']['seconds']:.2f}"
      )


if __name__ == "__main__":
  main()
