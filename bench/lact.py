"""The fast-weight operator against plain autodiff and against plain torch; streaming against
recomputation.

  python bench/lact.py                     CPU, about five minutes on two cores; prints a Markdown table
  python bench/lact.py --only operator --chunks 16 --chunk 256 --width 64 --heads 4

Every number is the median of `--rounds` runs after one to warm up; the sides of a comparison take
turns, so that a busy machine disturbs both. Memory: temporary bytes of the compiled program, from
the compiler; torch's peak is not comparable.
"""

import argparse
import platform
import time

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.kernels.fast_weight_chunk import Causal, Rule, fast_weight_chunk
from jaxlm.kernels.newton_schulz import LANGUAGE


def inputs(batch, heads, length, width, seed=0):
  keys = iter(jax.random.split(jax.random.key(seed), 16))

  def normal(*shape):
    return jax.random.normal(next(keys), shape)

  weights = tuple(normal(batch, heads, width, width) / width**0.5 for _ in range(3))
  q, k, v = (normal(batch, heads, length, width) for _ in range(3))
  q, k = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
  eta = tuple(0.01 * jax.nn.softplus(normal(batch, heads, length, 1)) for _ in range(3))
  return weights, q, k, v, eta, jnp.full((batch, heads, length), 0.5)


def times(sides, rounds):
  """{name: median seconds}, the sides taking turns."""
  taken = {name: [] for name in sides}
  for i in range(rounds + 1):
    for name, run in sides.items():
      start = time.perf_counter()
      run()
      if i:
        taken[name].append(time.perf_counter() - start)
  return {name: float(np.median(x)) for name, x in taken.items()}


def operator(args):
  """Forward and backward of the causal operator."""
  data = inputs(args.batch, args.heads, args.chunks * args.chunk, args.width)
  for muon in (False, True):
    rule = Rule(muon=LANGUAGE if muon else None)
    sides, memory = {}, {}
    for name, implementation in (
      ("jaxlm", "xla"),
      ("autodiff through the unrolled reference", "reference"),
    ):

      def loss(*a, implementation=implementation, rule=rule):
        return jnp.sum(
          jnp.square(
            fast_weight_chunk(
              *a, schedule=Causal(args.chunk), rule=rule, implementation=implementation
            )[0]
          )
        )

      fn = jax.jit(jax.grad(loss, argnums=tuple(range(6)))).lower(*data).compile()
      memory[name] = fn.memory_analysis().temp_size_in_bytes / 2**20
      sides[name] = lambda fn=fn: jax.block_until_ready(fn(*data))
    torch_side = torch_operator(data, args.chunk, muon)
    if torch_side is not None:
      sides["torch, the formulas written plainly"] = torch_side
    found = times(sides, args.rounds)
    for name, seconds in found.items():
      size = f"{memory[name]:.1f}" if name in memory else "-"
      print(
        f"| operator, {'Muon' if muon else 'momentum'} | {name} | {1e3 * seconds:.1f} | {size} | "
        f"{seconds / found['jaxlm']:.2f} |",
        flush=True,
      )


def torch_operator(data, chunk, muon):
  """The same forward and backward in torch, as the formulas of docs/specs/lact.md, section 2, read."""
  try:
    import torch
  except ImportError:
    print("torch is not installed (extra `bench`): that side is left out")
    return None
  weights, q, k, v, eta, beta = jax.tree.map(
    lambda x: torch.tensor(np.asarray(x), requires_grad=True), data
  )

  def newton_schulz(x):
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for a, b, c in LANGUAGE:
      gram = x @ x.mT
      x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x

  def run():
    leaves = [*weights, q, k, v, *eta, beta]
    w, norms = list(weights), [x.norm(dim=-1, keepdim=True) for x in weights]
    momentum = [torch.zeros_like(x) for x in weights]
    out, length = [], q.shape[2]
    for start in range(0, length, chunk):
      part = slice(start, start + chunk)
      y0, y2 = q[:, :, part] @ w[0].mT, q[:, :, part] @ w[2].mT
      out.append((torch.nn.functional.silu(y0) * y2) @ w[1].mT)
      if start + chunk >= length:
        break
      ki, vi, e, m = (
        k[:, :, part],
        v[:, :, part],
        [x[:, :, part] for x in eta],
        beta[:, :, part].mean(-1)[..., None, None],
      )
      y0, y2, g = ki @ w[0].mT, ki @ w[2].mT, vi @ w[1]
      s = torch.sigmoid(y0)
      dy0, dy2, hid = g * y2 * s * (1 + y0 * (1 - s)), g * y0 * s, y0 * s * y2
      steps = [dy0.mT @ (ki * e[0]), vi.mT @ (hid * e[1]), dy2.mT @ (ki * e[2])]
      momentum = [d + m * x for d, x in zip(steps, momentum)]
      steps = [newton_schulz(x) for x in momentum] if muon else momentum
      w = [x + d for x, d in zip(w, steps)]
      w = [x / (x.norm(dim=-1, keepdim=True) + 1e-5) * n for x, n in zip(w, norms)]
    torch.autograd.grad(torch.cat(out, 2).square().sum(), leaves)

  return run


def streaming(args):
  """Tokens per second of decoding at given lengths, against running the whole prefix for every
  token.
  """
  from jaxlm.config import build
  from jaxlm.models.decoder import DecoderConfig

  chunk = 64
  cfg = build(
    DecoderConfig,
    dict(
      vocab_size=256,
      d_model=128,
      num_layers=4,
      position="rope",
      mlp=dict(d_ff=256),
      unroll=4,
      mixer=dict(
        kind="lact",
        num_heads=4,
        window=chunk,
        fast=dict(num_heads=2, chunk=chunk, update=dict(muon="language")),
      ),
    ),
  )
  model = cfg.build()
  longest = max(args.lengths)
  tokens = jax.random.randint(jax.random.key(0), (1, longest), 0, 256)
  params = jax.jit(model.init)(jax.random.key(1), tokens[:, :8])["params"]
  extend = jax.jit(
    lambda tokens, state: model.apply({"params": params}, tokens, state, method="extend")
  )
  whole = jax.jit(lambda tokens: model.apply({"params": params}, tokens))

  def decode(state):
    """One chunk token by token: the update at its end is paid for."""
    for _ in range(chunk):
      logits, state = extend(tokens[:, :1], state)
      jax.block_until_ready(logits)

  for length in args.lengths:
    prefix = tokens[:, :length]
    _, state = extend(prefix, cfg.init_state(1, longest + chunk))
    found = times(
      {
        "jaxlm": lambda state=state: decode(state),
        "recomputing the prefix": lambda prefix=prefix: jax.block_until_ready(whole(prefix)),
      },
      args.rounds,
    )
    found["jaxlm"] /= chunk
    size = sum(x.nbytes for x in jax.tree.leaves(state)) / 2**20
    for name, seconds in found.items():
      kept = f"{size:.2f} (state)" if name == "jaxlm" else "-"
      print(
        f"| a token after {length}, {1 / seconds:.3g} tokens/s | {name} | {1e3 * seconds:.2f} | {kept} | "
        f"{seconds / found['jaxlm']:.1f} |",
        flush=True,
      )


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--only", choices=("operator", "streaming"))
  for name, default in dict(batch=1, heads=4, chunks=16, chunk=256, width=64, rounds=5).items():
    parser.add_argument(f"--{name}", type=int, default=default)
  parser.add_argument(
    "--lengths", type=int, nargs="+", default=[256, 1024, 4096], help="of the prefix, for streaming"
  )
  args = parser.parse_args()
  device = jax.devices()[0]
  print(
    f"{device.device_kind} ({platform.processor() or platform.machine()}), jax {jax.__version__}; "
    f"{args.chunks} chunks of {args.chunk}, {args.heads} heads of {args.width}, batch {args.batch}, float32\n"
  )
  print("| what | side | ms | temporary MiB | times jaxlm |\n| --- | --- | --- | --- | --- |")
  for name, fn in (("operator", operator), ("streaming", streaming)):
    if args.only in (None, name):
      fn(args)


if __name__ == "__main__":
  main()
