"""H-Net: compiled FLOPs of the main network against the capacity, within the whole model.

  python bench/hnet_capacity.py [--seq_len 512] [--batch_size 1] [--width 128]

Compiles the gradient of the loss of a one-stage H-Net, learned router and ratio loss included, once
per capacity of its chunk buffer, and reads the FLOPs of the compiled program's products, loops as
often as they run (jaxlm.preflight.cost). A product is the main network's when its name in the
program lies below `inner/main`; what is left to the others must not depend on the capacity, but for
the moving average over chunks, and is printed. Beside it the compiler's own count of the whole
program, element by element work included (layers unrolled: it counts a loop's body once). The ideal
is what the stack's mathematics needs at that length, three times for forward and backward: its
matrices, and scores and weighted sum of the keys that a query may see. The paper's formula, which
counts every pair of positions, is printed beside it. Attention's share grows with the square of the
length, so neither is the capacity's fraction.
"""

import argparse

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.layers.attention import AttentionConfig
from jaxlm.layers.chunking import ratio_loss, ratio_sums
from jaxlm.layers.mamba2 import Mamba2Config
from jaxlm.layers.positions.rope import RoPE
from jaxlm.layers.routers import CosineRouter
from jaxlm.models.hnet import HNetConfig, StageConfig
from jaxlm.models.hnet_rules import stack_flops
from jaxlm.preflight.cost import instruction_flops
from jaxlm.preflight.hlo import parse
from jaxlm.preflight.loops import Loops


def stage(width: int) -> StageConfig:
  return StageConfig(
    width,
    4 * width,
    AttentionConfig(4, position=RoPE(rotary_dim=width // 8)),
    Mamba2Config(d_state=64),
    CosineRouter(),
  )


def compiled_gradient(cfg: HNetConfig, batch_size: int, seq_len: int, capacity: int):
  module = cfg.build()
  tokens = jax.ShapeDtypeStruct((batch_size, seq_len), jnp.int32)
  params = jax.eval_shape(
    lambda t: nn.unbox(module.init(jax.random.key(0), t[:, :8]))["params"], tokens
  )

  def loss(params, tokens, targets):
    score = module.apply(
      {"params": params}, tokens, targets, capacities=(capacity,), method="score"
    )
    return -jnp.mean(score.log_prob_BT) + 0.03 * ratio_loss(*ratio_sums(score.aux[0]), 6.0)

  return jax.jit(jax.grad(loss)).lower(params, tokens, tokens).compile()


def products(compiled) -> tuple[int, int]:
  """FLOPs of a compiled program's products: (of the main network, of everything else)."""
  loops, main, others = Loops(parse(compiled.as_text())), 0, 0
  if loops.unknown:
    raise RuntimeError(f"loops of unknown length: {', '.join(loops.unknown)}")
  for site in loops.sites():
    flops = site.count * instruction_flops(loops.module, site.computation, site.instruction)
    if flops and "inner/main" in name_of(loops.module, site.computation, site.instruction):
      main += flops
    else:
      others += flops
  return main, others


def needed(stack, length: int) -> float:
  """Forward FLOPs of the products of a stack of causal attention layers with MLPs."""
  width = stack.heads.num_heads * stack.heads.head_dim
  matrices = stack.d_model * (4 * width + 3 * stack.mlp.d_ff)
  return sum(run.count for run in stack.runs) * (
    2 * length * matrices + 4 * width * length * (length + 1) / 2
  )


def name_of(module, computation, instruction) -> str:
  """The nearest name of an instruction or of what it reads: the compiler leaves products that it
  rewrote without.
  """
  seen, reading = set(), [instruction]
  while reading:
    names = [
      i.op_name
      or (module.computations[i.calls("calls")].root.op_name if i.opcode == "fusion" else "")
      for i in reading
      if i.opcode != "parameter"
    ]
    if any(names):
      return next(filter(None, names))
    seen |= {i.name for i in reading}
    reading = [computation.instructions[o] for i in reading for o in i.operands if o not in seen]
  return ""


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--seq_len", type=int, default=512)
  parser.add_argument("--batch_size", type=int, default=1)
  parser.add_argument("--width", type=int, default=128)
  args = parser.parse_args()
  T, D = args.seq_len, args.width
  cfg = HNetConfig("m2 [T4] m2", (stage(D), stage(D * 3 // 2)), unroll=8)
  stack, rows = cfg.stack(1, cfg.runs(1)[0]), []
  for capacity in (T, T // 2, T // 4, T // 8):
    compiled = compiled_gradient(cfg, args.batch_size, T, capacity)
    formulas = (3 * args.batch_size * flops(stack, capacity) for flops in (needed, stack_flops))
    rows.append((capacity, *products(compiled), compiled.cost_analysis()["flops"], *formulas))
  print(
    f"jax {jax.__version__} on {jax.devices()[0].device_kind}; {cfg.layout}, widths {D} and {stack.d_model}, T {T}, "
    f"batch {args.batch_size}; MFLOP of the gradient"
  )
  print(
    "| capacity | main network | of full | ideal, of full | ratio | formula, of full | ratio | all others | whole program |"
  )
  for capacity, main_, others, whole, *wanted in rows:
    share, shares = main_ / rows[0][1], [w / full for w, full in zip(wanted, rows[0][4:])]
    print(
      f"| {capacity} | {main_ / 1e6:.1f} | {share:.4f} | "
      + " | ".join(f"{x:.4f} | {share / x:.3f}" for x in shares)
      + f" | {others / 1e6:.1f} | {whole / 1e6:.1f} |"
    )


if __name__ == "__main__":
  main()
