"""Decoding from left to right: tokens per second of a batch, by tokens per dispatch, in one run.

  python bench/decoding.py [--d_model 256] [--layers 4] [--batches 1,8] [--new 128] [--rounds 5]

One token per dispatch is what jaxlm did before: the host reads each token before it asks for the
next. The sides take turns, greedily, from the same weights and prompts; their tokens must be the
same.
"""

import argparse
import time

import flax.linen as nn
import jax
import numpy as np

from jaxlm.generation.left_to_right import LeftToRight
from jaxlm.generation.sampling import GREEDY
from jaxlm.layers.attention import AttentionConfig
from jaxlm.layers.positions.rope import RoPE
from jaxlm.models.base import init
from jaxlm.models.decoder import DecoderConfig


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--d_model", type=int, default=256)
  parser.add_argument("--layers", type=int, default=4)
  parser.add_argument("--batches", default="1,8")
  parser.add_argument("--new", type=int, default=128)
  parser.add_argument("--rounds", type=int, default=5)
  args = parser.parse_args()
  mixer = AttentionConfig(max(args.d_model // 64, 1))
  config = DecoderConfig(512, args.d_model, args.layers, mixer, position=RoPE())
  params = nn.unbox(jax.jit(lambda: init(config, jax.random.key(0)))())
  prompts = np.random.default_rng(0).integers(0, 512, (64, 32)).tolist()
  sides = {n: LeftToRight(config, GREEDY, tokens_per_dispatch=n) for n in (1, 32)}
  print("| batch | tokens per dispatch | tokens/s | CPU ms per step | times, clock | times, CPU |")
  print("| ---: | ---: | ---: | ---: | ---: | ---: |")
  for batch in map(int, args.batches.split(",")):
    wall, cpu, found = {n: [] for n in sides}, {n: [] for n in sides}, {}
    for turn in range(args.rounds + 1):
      for n, engine in sides.items():
        start = time.perf_counter(), time.process_time()
        found[n] = engine.generate(params, prompts[:batch], args.new).sequences
        if turn:  # the first turn compiles
          wall[n].append(time.perf_counter() - start[0])
          cpu[n].append(time.process_time() - start[1])
    assert np.array_equal(*map(np.stack, found.values())), "the tokens differ"
    for n in sides:
      rate, step = batch * args.new / np.median(wall[n]), 1e3 * np.median(cpu[n]) / args.new
      gain = [np.median(np.divide(times[1], times[n])) for times in (wall, cpu)]
      print(f"| {batch} | {n} | {rate:,.0f} | {step:.3f} | {gain[0]:.2f} | {gain[1]:.2f} |")


if __name__ == "__main__":
  main()
