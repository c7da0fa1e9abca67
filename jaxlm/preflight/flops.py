"""Model FLOPs of a step, and what its attention kernels execute, both analytic.

Model FLOPs = 6 x matmul parameters x tokens + 6 x layers x (heads x head size) x keys x tokens: causal attention as
half of the full square, so that the figure compares with published utilisations.
"""

from jaxlm.evaluation.flops import parts_per_token
from jaxlm.preflight.report import ATTENTION_BLOCK
from jaxlm.training.config import RunConfig

#: Blockwise matmul passes of an attention kernel: scores and values forward, four and three in its two backward kernels.
FORWARD, BACKWARD = 2, 7


def model_flops(cfg: RunConfig, program: str, num_devices: int, decode_rows: int = 1) -> float:
  """Per device. A decode step attends over a cache of data.seq_len."""
  parts = parts_per_token(cfg.model, cfg.data.seq_len)
  attention = parts.get("attention", 0.0)
  dense = sum(parts.values()) - attention
  if program == "decode":
    return (dense + attention) * decode_rows / num_devices
  tokens = cfg.data.batch_size * cfg.data.seq_len
  return (3 if program == "train" else 1) * (dense + attention / 2) * tokens / num_devices


def attention_flops(cfg: RunConfig, program: str, num_devices: int) -> float:
  """What fused attention executes per device: causal blocks of ATTENTION_BLOCK, forward again under remat."""
  seq_len = cfg.data.seq_len
  full = parts_per_token(cfg.model, seq_len).get("attention", 0.0) / 2      # one pass over the full square, per token
  share = min(1.0, 0.5 + ATTENTION_BLOCK / (2 * seq_len))
  remat = getattr(cfg.model, "remat", "none") != "none"
  passes = FORWARD if program != "train" else FORWARD * (2 if remat else 1) + BACKWARD
  return passes * full * share * cfg.data.batch_size * seq_len / num_devices
