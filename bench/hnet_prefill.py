"""H-Net: a prompt read on as many slots as its chunks need, against a slot for every byte.

  python bench/hnet_prefill.py [--width 128] [--bytes 512] [--bytes_per_chunk 5]

Both read the same prompt in the generator's pieces of 64 bytes, with a pool router, one after the
other. The first is the same model told that no piece is long enough to look (`models.hnet.MIN_PREFILL`).
"""

import argparse
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.generation.engine.step import _prefill_piece, prefill
from jaxlm.layers.attention import AttentionConfig
from jaxlm.layers.mamba2 import Mamba2Config
from jaxlm.layers.positions.rope import RoPE
from jaxlm.layers.routers import FixedStride
from jaxlm.models import hnet


def stage(width: int, n: int) -> hnet.StageConfig:
  return hnet.StageConfig(
    width,
    4 * width,
    AttentionConfig(4, position=RoPE(rotary_dim=width // 8)),
    Mamba2Config(d_state=64),
    FixedStride(n),
  )


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--width", type=int, default=128)
  parser.add_argument("--bytes", type=int, default=512)
  parser.add_argument("--bytes_per_chunk", type=int, default=5)
  parser.add_argument("--rounds", type=int, default=7)
  args = parser.parse_args()
  D, n = args.width, args.bytes_per_chunk
  cfg = hnet.HNetConfig("m2 [T4] m2", (stage(D, n), stage(D * 3 // 2, n)))
  params = nn.unbox(jax.jit(cfg.build().init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))[
    "params"
  ]
  prompt = np.random.default_rng(0).integers(0, 256, (1, args.bytes)).astype(np.int32)
  length, seconds, logits = np.asarray([args.bytes], np.int32), {}, {}
  for name, long in (("a slot per byte", args.bytes + 1), ("few slots", hnet.MIN_PREFILL)):
    hnet.MIN_PREFILL = long  # read when the program is traced
    _prefill_piece.clear_cache()
    seconds[name] = []
    for _ in range(args.rounds + 1):
      state, start = cfg.init_state(1, args.bytes), time.process_time()
      logits[name], _ = jax.block_until_ready(prefill(cfg, params, prompt, length, state))
      seconds[name].append(time.process_time() - start)
  assert np.allclose(*logits.values(), atol=1e-4)
  medians = {
    name: np.median(values[1:]) for name, values in seconds.items()
  }  # the first round compiles
  print(
    f"jax {jax.__version__} on {jax.devices()[0].device_kind}; {cfg.layout}, widths {D} and {D * 3 // 2}, {args.bytes} bytes"
  )
  for name, median in medians.items():
    print(
      f"  {name:16s} {1e3 * median:8.1f} ms CPU  {args.bytes / median:8.0f} bytes per CPU second"
    )
  slow, fast = medians.values()
  print(f"  {slow / fast:.2f} times as fast")


if __name__ == "__main__":
  main()
