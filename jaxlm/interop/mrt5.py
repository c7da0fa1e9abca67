"""State dicts of T5 v1.1, ByT5, MrT5 and its baselines, by their official names, in and out.

A name table per stack; a dense kernel is stored (out, in), here (in, heads, width) or (in, out); a convolution (out, in,
width), here (width, in, out). `embed_tokens` of both stacks are aliases of `shared`; a tied head is `shared` as well.
"""

import jax.numpy as jnp
import numpy as np

from jaxlm.config import ConfigError
from jaxlm.layers.byte_pooling import BoundaryPoolingConfig, StridedPoolingConfig
from jaxlm.layers.delete_gate import DeleteGateConfig
from jaxlm.models.encoder_decoder import EncoderDecoderConfig

ALIASES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


def entries(cfg: EncoderDecoderConfig):
  """Yields (official name, path in params, row of the layers axis or None, kind of the layout)."""
  yield "shared.weight", ("embed", "embedding"), None, "same"
  if not cfg.tie_embeddings:
    yield "lm_head.weight", ("head", "w_out"), None, "same"
  for side in ("encoder", "decoder"):
    yield f"{side}.final_layer_norm.weight", (f"{side}_norm", "scale"), None, "same"
    if cfg.max_positions is None:
      yield (f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight", (f"{side}_position", "relative_bias"),
             None, "same")
    else:
      yield f"{side}.absolute_pos_embed.weight", (f"{side}_position", "positions"), None, "same"
  front = cfg.num_encoder_layers if cfg.reduction is None else cfg.reduction.layer
  for l in range(cfg.num_encoder_layers):
    stack, row = ("encoder_front", l) if l < front else ("encoder_back", l - front)
    yield from _block(cfg, f"encoder.block.{l}", stack, row, cross=False)
  for l in range(cfg.num_decoder_layers):
    yield from _block(cfg, f"decoder.block.{l}", "decoder", l, cross=True)
  yield from _reduction(cfg.reduction)


def _block(cfg, name, stack, row, cross):
  parts = [("layer.0.SelfAttention", "attention", "layer.0", "norm")]
  if cross:
    parts.append(("layer.1.EncDecAttention", "cross", "layer.1", "cross_norm"))
  for theirs, ours, layer, norm in parts:
    yield f"{name}.{layer}.layer_norm.weight", (stack, norm, "scale"), row, "same"
    for letter in "qkv":
      yield f"{name}.{theirs}.{letter}.weight", (stack, ours, f"w_{letter}"), row, "heads in"
    yield f"{name}.{theirs}.o.weight", (stack, ours, "w_o"), row, "heads out"
  last = f"{name}.layer.{len(parts)}"
  yield f"{last}.layer_norm.weight", (stack, "mlp_norm", "scale"), row, "same"
  names = {"wi_0": "w_gate", "wi_1": "w_in"} if cfg.gated else {"wi": "w_in"}
  for theirs, ours in (names | {"wo": "w_out"}).items():
    yield f"{last}.DenseReluDense.{theirs}.weight", (stack, "mlp", ours), row, "transposed"


def _reduction(reduction):
  if isinstance(reduction, DeleteGateConfig):
    name = f"encoder.block.{reduction.layer}.delete_gate"
    if reduction.norm:
      yield f"{name}.layer_norm.weight", ("reduction", "norm", "scale"), None, "same"
    yield f"{name}.feed_forward.weight", ("reduction", "w"), None, "transposed"
    yield f"{name}.feed_forward.bias", ("reduction", "b"), None, "same"
  elif isinstance(reduction, BoundaryPoolingConfig):
    name = f"encoder.block.{reduction.layer}"
    yield f"{name}.down_ln.weight", ("reduction", "norm", "scale"), None, "same"
    for index, suffix in ((0, "in"), (2, "out")):
      part = f"{name}.boundary_predictor.boundary_predictor.{index}"
      yield f"{part}.weight", ("reduction", f"w_{suffix}"), None, "transposed"
      yield f"{part}.bias", ("reduction", f"b_{suffix}"), None, "same"
  elif isinstance(reduction, StridedPoolingConfig):
    name = f"encoder.block.{reduction.layer}"
    yield f"{name}.down_ln.weight", ("reduction", "norm", "scale"), None, "same"
    yield f"{name}.downsampling_module.conv.weight", ("reduction", "w"), None, "transposed"
    yield f"{name}.downsampling_module.conv.bias", ("reduction", "b"), None, "same"


def _to_ours(cfg, kind, x):
  if kind == "heads in":
    return np.reshape(x.T, (cfg.d_model, cfg.num_heads, cfg.d_kv))
  if kind == "heads out":
    return np.reshape(x.T, (cfg.num_heads, cfg.d_kv, cfg.d_model))
  return x.T if kind == "transposed" else x


def _to_theirs(cfg, kind, x):
  if kind == "heads in":
    return np.reshape(x, (cfg.d_model, -1)).T
  if kind == "heads out":
    return np.reshape(x, (-1, cfg.d_model)).T
  return x.T if kind == "transposed" else x


def load_params(cfg: EncoderDecoderConfig, stored: dict) -> dict:
  """Official state dict -> params. Every tensor must be there and be used; names the first that is not."""
  stored, rows, params = dict(stored), {}, {}
  for alias in ALIASES:
    if alias in stored and not np.array_equal(stored.pop(alias), stored["shared.weight"]):
      raise ConfigError(f"{alias} differs from shared.weight: this model has one embedding for both stacks")
  if cfg.tie_embeddings:
    stored.pop("lm_head.weight", None)
  for name, path, row, kind in entries(cfg):
    if name not in stored:
      raise ConfigError(f"the checkpoint has no {name}; does its configuration (gated, tied, gate layer) fit?")
    rows.setdefault(path, []).append(_to_ours(cfg, kind, np.asarray(stored.pop(name))))
    if row is None:
      rows[path] = rows[path][0]
  if stored:
    raise ConfigError(f"{len(stored)} tensors of the checkpoint have no place in this model, among them {min(stored)}")
  for path, value in rows.items():
    at = params
    for part in path[:-1]:
      at = at.setdefault(part, {})
    at[path[-1]] = jnp.asarray(np.stack(value) if isinstance(value, list) else value)
  return params


def store_params(cfg: EncoderDecoderConfig, params) -> dict[str, np.ndarray]:
  """The inverse of load_params, without aliases."""
  out = {}
  for name, path, row, kind in entries(cfg):
    value = params
    for part in path:
      value = value[part]
    value = np.asarray(value)
    out[name] = _to_theirs(cfg, kind, value if row is None else value[row])
  return out
