"""Numbers around an H-Net: learning-rate multipliers, weight-decay presets, FLOPs
(`docs/specs/hnet.md` 11, 17).
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.layers.mamba2 import Mamba2Config
from jaxlm.layers.mixer import Context
from jaxlm.models.products import dot_flops

N_GPT = 4.6  # bytes per GPT-2 token on FineWeb-Edu
MAX_TRACED = 2048  # positions; chunked forms cost the same per position beyond

#: (regular expression in the parameter's path, weight decay), the last match wins; what matches
#: none decays as usual.
#: official: the release's literal rule, names ending in `.bias` or containing `.norm.`, with
#: `optimizer.decay = "all"`:
#:   norms, dt_bias, A_log, D and embeddings decay, most likely by accident.
#: clean: no vectors and no embedding, with `optimizer.decay = "matrices"`.
DECAY_OVERRIDES = {
  "official": ((r"/(b_\w+|norm_scale)$", 0.0),),
  "clean": ((r"^embed/", 0.0),),
}
DECAY = {"official": "all", "clean": "matrices"}


def stage_multipliers(
  d_model: Sequence[int], targets: Sequence[float], n_gpt: float = N_GPT
) -> tuple[float, ...]:
  """lambda^s = sqrt(n_gpt prod_{i>=s} N^i / prod_i N^i * D^S / D^s), N^S = 1 (paper, eq. 11).

  One per stage.
  """
  if len(targets) != len(d_model) - 1:
    raise ValueError(
      f"{len(targets)} targets for {len(d_model)} widths: an H-Net of S chunkings has S + 1 widths"
    )
  out, before = [], 1.0
  for s, width in enumerate(d_model):
    out.append((n_gpt / before * d_model[-1] / width) ** 0.5)
    before *= targets[s] if s < len(targets) else 1.0
  return tuple(out)


def lr_multipliers(multipliers: Sequence[float]) -> tuple[tuple[str, float], ...]:
  """`optimizer.lr_multipliers` of one multiplier per stage, outside in. Embedding and head follow
  stage 0; a stage's padding vector, its own."""
  return tuple(
    (r"^backbone/" + "inner/" * s if s else "", float(m)) for s, m in enumerate(multipliers)
  )


def attention_flops(length, d_model, num_heads, head_dim, keys=None) -> float:
  """qkv, logits, softmax, weighted sum, output. keys: that a query sees at most, the window;
  default all.
  """
  width, keys = num_heads * head_dim, min(keys or length, length)
  return (
    2 * 3 * length * d_model * width
    + 2 * length * keys * width
    + 3 * num_heads * length * keys
    + 2 * length * keys * width
    + 2 * length * width * d_model
  )


def mamba2_flops(length, d_model, expand, d_state, num_heads, d_conv) -> float:
  """Projections in, SSD, convolution, gating, projection out; the last three as the paper prints
  them.
  """
  return (
    2 * length * d_model * 2 * expand * d_model
    + 2 * length * d_model * (2 * d_state + num_heads)
    + 2 * 3 * length * expand * d_model * d_state
    + 2 * length * d_model * d_conv
    + 5 * length * d_model
    + 2 * length * d_model**2
  )


def traced_flops(mixer, d_model: int, length: float) -> float:
  """Products of one mixer's forward pass on `length` positions, traced on at most MAX_TRACED of
  them.
  """
  traced = max(1, min(int(length), MAX_TRACED))
  x_BTD = jax.ShapeDtypeStruct((1, traced, d_model), jnp.float32)
  ids_BT = jax.ShapeDtypeStruct((1, traced), jnp.int32)

  def run(module, x, ids):
    return module(x, Context(ids, ids, packed=False))[0]

  def build():
    return mixer.build(d_model, "float32")

  params = jax.eval_shape(
    lambda x, ids: nn.unbox(nn.init(run, build())(jax.random.key(0), x, ids)), x_BTD, ids_BT
  )
  return (
    dot_flops(lambda p, x, ids: nn.apply(run, build())(p, x, ids), params, x_BTD, ids_BT)
    / traced
    * length
  )


def mlp_flops(length, d_model, d_ff) -> float:
  return 2 * length * 3 * d_model * d_ff + 5 * length * d_model


def stack_flops(stack, length) -> float:
  """Of an isotropic stack (IsotropicConfig) on `length` positions. The paper has no formula for
  other mixers than attention and Mamba-2: the products of their traced layers are counted."""
  total = 0.0
  for run in stack.runs:
    if run.is_attention:
      heads = stack.attention.heads(stack.d_model)
      layer = attention_flops(
        length, stack.d_model, heads.num_heads, heads.head_dim, stack.attention.window
      )
    elif not isinstance(stack.mamba, Mamba2Config):
      layer = traced_flops(stack.mamba, stack.d_model, length)
    else:
      m = stack.mamba
      layer = mamba2_flops(
        length, stack.d_model, m.expand, m.d_state, m.num_heads(stack.d_model), m.d_conv
      )
    total += run.count * (
      layer + (mlp_flops(length, stack.d_model, stack.mlp.d_ff) if run.has_mlp else 0.0)
    )
  return total


def forward_flops(cfg, seq_len: int, bytes_per_chunk: Sequence[float] = ()) -> float:
  """Forward FLOPs of one sequence by the paper's appendix B (backward: twice as many). cfg:
  HNetConfig.

  bytes_per_chunk: of every chunking stage, in positions of that stage (its N when the target is
  met). Routing and the residual projection are not in the paper's count.
  """
  if len(bytes_per_chunk) != cfg.num_chunkings:
    raise ValueError(f"{len(bytes_per_chunk)} compression ratios for {cfg.num_chunkings} chunkings")
  total, length = 2 * 2.0 * seq_len * cfg.vocab_size * cfg.d_model, float(seq_len)
  for s in range(cfg.num_chunkings + 1):
    total += sum(stack_flops(cfg.stack(s, runs), length) for runs in cfg.runs(s))
    if s < cfg.num_chunkings:
      length /= bytes_per_chunk[s]
  return total
