"""Model FLOPs of a step, and what its attention kernels execute, both analytic.

Model FLOPs = 6 x matmul parameters x tokens + 3 x attention: 4 x heads x head size for every pair
of a query and a key that it may see (causal: about half of the square, less behind a window), so
that the figure compares with published utilisations. Fast weights add what one token teaches and
reads; an H-Net counts every stage at its target length.
"""

import dataclasses

from jaxlm.evaluation.flops import parts_per_token
from jaxlm.models.hnet import HNetConfig
from jaxlm.objectives.next_byte import NextByte
from jaxlm.training.config import RunConfig

#: Blockwise matmul passes of an attention kernel: scores and values forward, four and three in its
#: two backward kernels.
FORWARD, BACKWARD = 2, 7
#: Queries and keys of a block: the largest that divides the length, as kernels.attention.blocks
#: chooses for the kernel.
BLOCKS = (512, 256, 128)


@dataclasses.dataclass(frozen=True)
class Attended:
  """`count` attention layers of a row: length positions, keys behind a window or None, causal or
  both sides.
  """

  num_heads: int
  head_dim: int
  length: int
  window: int | None
  causal: bool = True
  count: int = 1

  @property
  def width(self) -> int:
    return self.num_heads * self.head_dim

  @property
  def kernel_width(self) -> int:
    """As the kernel computes: heads filled up to a multiple of 64 channels."""
    return self.num_heads * -(-self.head_dim // 64) * 64

  @property
  def keys(self) -> int:
    return min(self.window or self.length, self.length)

  @property
  def pairs(self) -> float:
    """Queries and keys that see each other."""
    behind = self.length * self.keys - self.keys**2 / 2
    return behind if self.causal else min(self.length**2, 2 * behind)

  @property
  def computed(self) -> float:
    """The same in whole blocks: half a block too many along the diagonal, and along each edge of a
    window.
    """
    windowed = self.keys < self.length
    edges = 1 + windowed if self.causal else 2 * windowed
    block = next((block for block in BLOCKS if self.length % block == 0), BLOCKS[-1])
    return min(self.length**2, self.pairs + edges * self.length * block / 2)


def model_flops(cfg: RunConfig, program: str, num_devices: int, decode_rows: int = 1) -> float:
  """Per device; 0 for a family without a formula.

  A decode step attends over a cache of data.seq_len.
  """
  seq_len, layers = cfg.data.seq_len, attention_layers(cfg)
  if cfg.model.mixers:
    parts = parts_per_token(cfg.model, seq_len)
    dense = (sum(parts.values()) - parts.get("attention", 0.0) + memory_flops(cfg.model)) * seq_len
  elif isinstance(cfg.model, HNetConfig):
    from jaxlm.models.hnet_rules import forward_flops

    dense = forward_flops(cfg.model, seq_len, targets(cfg)) - sum(
      layer.count * 4 * layer.width * layer.length * layer.keys for layer in layers
    )
  else:
    return 0.0
  if program == "decode":
    cached = sum(layer.count * 4 * layer.width * layer.keys for layer in layers)
    return (dense / seq_len + cached) * decode_rows / num_devices
  row = dense + sum(layer.count * 4 * layer.width * layer.pairs for layer in layers)
  return (3 if program == "train" else 1) * row * cfg.data.batch_size / num_devices


def attention_flops(cfg: RunConfig, program: str, num_devices: int, bucket=None) -> float:
  """What fused attention executes per device: whole blocks, heads of whole lanes, forward again
  under remat.

  bucket: capacities of an H-Net's chunk buffers, whose padding is computed too.
  """
  if program == "decode":
    return 0.0
  remat = cfg.model.remat not in (False, "none")
  passes = FORWARD if program != "train" else FORWARD * (2 if remat else 1) + BACKWARD
  one = sum(
    layer.count * 2 * layer.kernel_width * layer.computed for layer in attention_layers(cfg, bucket)
  )
  return passes * one * cfg.data.batch_size / num_devices


def attention_layers(cfg: RunConfig, bucket=None) -> list[Attended]:
  model, length = cfg.model, cfg.data.seq_len
  if isinstance(model, HNetConfig):
    lengths, found = [length], []
    for s, target in enumerate(targets(cfg)):
      lengths.append(bucket[s] if bucket else int(lengths[-1] / target))
    for s, stage in enumerate(model.stages):
      heads = stage.attention.heads(stage.d_model) if stage.attention else None
      count = sum(run.count for runs in model.runs(s) for run in runs if run.is_attention)
      if count:
        found.append(
          Attended(heads.num_heads, heads.head_dim, lengths[s], stage.attention.window, count=count)
        )
    return found
  heads = ((mixer, mixer.heads(model.d_model)) for mixer in model.mixers)
  return [
    Attended(h.num_heads, h.head_dim, length, mixer.window, mixer.causal)
    for mixer, h in heads
    if h is not None
  ]


def targets(cfg: RunConfig) -> tuple[float, ...]:
  """Positions per chunk of every chunking stage."""
  return tuple(cfg.objective.targets) if isinstance(cfg.objective, NextByte) else ()


def memory_flops(model) -> float:
  """Fast weights, forward, per token, and each chunk's Newton-Schulz steps (three products of a
  square matrix each) shared among its tokens.

  Products of (H, F): SwiGLU 3 to read and 6 to learn (three forward, three for the step), 18 H F;
  linear 1 to read and 1 for the step v k', 4 H H. The last chunk of a row, which does not learn, is
  counted as the others are.
  """
  total = 0.0
  for mixer in model.mixers:
    fast = getattr(mixer, "fast", None)
    if fast is None:
      continue
    (H, F), (matrices, products) = (
      fast.widths(model.d_model),
      (1, 2) if fast.network == "linear" else (3, 9),
    )
    total += 2.0 * products * fast.num_heads * H * F
    if fast.update.muon:
      low, high = sorted((H, F))
      step = 2 * low * low * high * 2 + 2 * low**3
      total += fast.update.muon_steps * matrices * fast.num_heads * step / fast.chunk
  return total
