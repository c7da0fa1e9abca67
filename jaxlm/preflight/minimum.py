"""What a plain implementation of a layout sends: what the report holds the compiler's collectives
against.

Some programs stay below it: a table that is only looked up need not be gathered, a weight that is
kept is gathered once.

For parameters of P elements split f ways by fsdp and t ways by tensor, wire dtype of w bytes,
micro-batches m:
  fsdp      two gathers (forward, backward) per micro-batch and one scatter of the gradients:
            (2 m + m) w (P / t) (f - 1) / f
  data      one all-reduce of each device's own gradients per step: 2 w (P / (t f)) (d - 1) / d
  tensor    two all-reduces of the residual stream per layer, forward and backward: 4 x 2 w tokens D L (t - 1) / t
  sequence  keys and values gathered forward and backward, their gradients scattered: 3 w tokens s 2 K H L (s - 1) / s
"""

from jaxlm.training.config import RunConfig

WIRE_BYTES = {None: 4, "float32": 4, "bfloat16": 2}


def wire_minimum(cfg: RunConfig, num_params: int, mesh_shape: dict[str, int]) -> dict[str, int]:
  """Bytes that one device must receive per train step, by mesh axis."""
  d, f, s, t = (mesh_shape[a] for a in ("data", "fsdp", "sequence", "tensor"))
  width = WIRE_BYTES[cfg.train.gather_dtype]
  micro = cfg.train.accumulation
  found = {
    "fsdp": 3 * micro * width * num_params / t * (f - 1) / f,
    "data": 2 * width * num_params / (t * f) * (d - 1) / d,
  }
  act = 2 if cfg.model.dtype == "bfloat16" else 4
  tokens = cfg.data.batch_size * cfg.data.seq_len / (d * f * s)
  layers = cfg.model.mixers  # of decoders and what is made of them; no others are counted
  width = cfg.model.d_model if layers else 0
  found["tensor"] = 8 * act * tokens * width * len(layers) * (t - 1) / t
  heads = [h for h in (mixer.heads(width) for mixer in layers) if h is not None]
  if s > 1 and heads:
    widths = sum(h.num_kv_heads * h.head_dim for h in heads)
    found["sequence"] = 3 * act * tokens * s * 2 * widths / t * (s - 1) / s
  return {axis: int(value) for axis, value in found.items() if value}
