"""State dicts of T5 v1.1, ByT5, MrT5 and its baselines, by their official names, in and out.

A name table per stack; a dense kernel is stored (out, in), here (in, heads, width) or (in, out); a
convolution (out, in, width), here (width, in, out). `embed_tokens` of both stacks are aliases of
`shared`; a tied head is `shared` as well.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.checkpoint.errors import WeightsError
from jaxlm.checkpoint.trees import flatten, unflatten
from jaxlm.config import ConfigError, check_seed
from jaxlm.interop.huggingface.architecture import Architecture
from jaxlm.interop.huggingface.dtypes import cast, check_floats
from jaxlm.interop.huggingface.ties import unequal
from jaxlm.layers.byte_pooling import BoundaryPoolingConfig, StridedPoolingConfig
from jaxlm.layers.delete_gate import DeleteGateConfig
from jaxlm.models.encoder_decoder import EncoderDecoderConfig

ALIASES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
#: Of old files; the library does not read it either.
UNUSED_BIAS = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"


def entries(cfg: EncoderDecoderConfig):
  """Yields (official name, path in params, row of the layers axis or None, kind of the layout)."""
  yield "shared.weight", ("embed", "embedding"), None, "same"
  if not cfg.tie_embeddings:
    yield "lm_head.weight", ("head", "w_out"), None, "same"
  for side in ("encoder", "decoder"):
    yield f"{side}.final_layer_norm.weight", (f"{side}_norm", "scale"), None, "same"
    if cfg.max_positions is None:
      yield (
        f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        (f"{side}_position", "relative_bias"),
        None,
        "same",
      )
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
  """Official state dict -> params. Every tensor must be there and be used; WeightsError lists what
  does not fit.
  """
  names, rows, params = set(stored), {}, {}
  wanted = list(entries(cfg))
  check_floats(stored, [name for name, *_ in wanted])
  if "shared.weight" in names:
    apart = unequal(stored, dict.fromkeys(ALIASES, "shared.weight"))
    if apart:
      raise WeightsError(
        f"{apart[0].split(' differs')[0]} differs from shared.weight: this model has one embedding for both "
        f"stacks"
      )
    apart = unequal(stored, StateDict(cfg).tied)
    if apart:
      raise WeightsError(apart[0])
  optional = {*ALIASES, UNUSED_BIAS, *(["lm_head.weight"] if cfg.tie_embeddings else [])}
  missing = [name for name, *_ in wanted if name not in names]
  left = sorted(names - {name for name, *_ in wanted} - optional)
  width = cfg.num_heads * cfg.d_kv
  heads = {"heads in": (width, cfg.d_model), "heads out": (cfg.d_model, width)}
  shapes = [
    f"  {name} has shape {np.shape(stored[name])}, wanted {heads[kind]}"
    for name, _, _, kind in wanted
    if name in names and kind in heads and tuple(np.shape(stored[name])) != heads[kind]
  ]
  if missing or left or shapes:
    raise WeightsError(
      "\n".join(
        [
          "the checkpoint does not fit this model (gated, tied, gate layer, sizes?):",
          *(f"  missing {n}" for n in missing),
          *(f"  left over {n}" for n in left),
          *shapes,
        ]
      )
    )
  for name, path, row, kind in wanted:
    rows.setdefault(path, []).append(_to_ours(cfg, kind, np.asarray(stored[name])))
    if row is None:
      rows[path] = rows[path][0]
  for path, value in rows.items():
    at = params
    for part in path[:-1]:
      at = at.setdefault(part, {})
    at[path[-1]] = np.stack(value) if isinstance(value, list) else np.ascontiguousarray(value)
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


def add_gate(cfg: EncoderDecoderConfig, params, reduction: DeleteGateConfig, seed: int = 0):
  """(config, params) of a model without a reduction with a fresh delete gate: its encoder's stack
  is cut at the gate.
  """
  if cfg.reduction is not None:
    raise ConfigError(f"the model has a reduction already: {cfg.reduction}")
  gated, g = dataclasses.replace(cfg, reduction=reduction), reduction.layer
  w = nn.initializers.xavier_uniform()(
    jax.random.key(check_seed(seed)), (cfg.d_model, 1)
  )  # as DeleteGate begins
  fresh = {"w": w, "b": jnp.ones(1)} | (
    {"norm": {"scale": jnp.ones(cfg.d_model)}} if reduction.norm else {}
  )
  stack = params["encoder_front"]
  out = {k: v for k, v in params.items() if k != "encoder_front"} | {
    "encoder_back": jax.tree.map(lambda x: x[g:], stack),
    "reduction": fresh,
  }
  return gated, out | ({"encoder_front": jax.tree.map(lambda x: x[:g], stack)} if g else {})


class StateDict:
  """What `jaxlm convert` asks of a name table, over `entries`."""

  def __init__(self, cfg: EncoderDecoderConfig):
    self.cfg = cfg

  @property
  def tied(self) -> dict[str, str]:
    return dict.fromkeys(
      ("lm_head.weight", *ALIASES) if self.cfg.tie_embeddings else ALIASES, "shared.weight"
    )

  def canonical(self, state) -> dict[str, str]:
    """{name the entries use: name in the file}."""
    return {name: name for name in state}

  def import_params(self, state, dtype=None) -> dict:
    params = load_params(self.cfg, state)
    if dtype is None:
      return params
    return unflatten({path: cast(path, value, dtype) for path, value in flatten(params).items()})

  def export_params(self, params, dtype=None) -> dict[str, np.ndarray]:
    return {
      name: np.ascontiguousarray(cast(name, value, dtype))
      for name, value in store_params(self.cfg, params).items()
    }

  def lines(self) -> list[tuple[str, str, str]]:
    """(their name, layout, ours) per array."""
    return [
      (name, kind, "/".join(path) + ("" if row is None else f"[{row}]"))
      for name, path, row, kind in entries(self.cfg)
    ]


class T5(Architecture):
  """T5 v1.0, v1.1 and ByT5. Dropout is a choice of training and is not read.

  Version 5 of transformers writes tie_word_embeddings = true for every T5: whether the head is tied
  is seen from the file, and `scale_decoder_outputs` says what `tie_word_embeddings` said before.
  """

  name, model_type, headless_ties = "T5ForConditionalGeneration", "t5", True
  kept = ("dropout_rate", "n_positions", "output_past", "classifier_dropout")

  def read(self, fields, seq_len):
    layers, tied = fields.size("num_layers", 6), fields.get("tie_word_embeddings", True)
    scaled = fields.get("scale_decoder_outputs", tied)
    fields.only("layer_norm_epsilon", 1e-6, "the norms' epsilon is fixed")
    fields.only("is_encoder_decoder", True, "an encoder alone is another model")
    fields.only("decoder_start_token_id", 0, "the decoder's input begins with token 0")
    fields.only("pad_token_id", 0, "token 0 is padding, which attention does not see")
    gated = fields.choice("feed_forward_proj", {"gated-gelu": True, "relu": False}, "relu")
    fields.only(
      "is_gated_act", gated, "it repeats feed_forward_proj, and the library takes this one"
    )
    fields.only(
      "dense_act_fn",
      "gelu_new" if gated else "relu",
      "it repeats feed_forward_proj, and the library takes this one",
    )
    for name in ("dropout_rate", "n_positions", "output_past", "gradient_checkpointing"):
      fields.get(name)  # of training, or unused
    return EncoderDecoderConfig(
      vocab_size=fields.size("vocab_size", 32128),
      d_model=fields.size("d_model", 512),
      d_ff=fields.size("d_ff", 2048),
      num_heads=fields.size("num_heads", 8),
      d_kv=fields.size("d_kv", 64),
      num_encoder_layers=layers,
      num_decoder_layers=fields.size("num_decoder_layers", layers),
      num_buckets=fields.size("relative_attention_num_buckets", 32),
      max_distance=fields.size("relative_attention_max_distance", 128),
      gated=gated,
      tie_embeddings=tied,
      scale_logits=scaled,
      scratch=False,
      **self.read_more(fields, layers),
    )

  def read_more(self, fields, layers) -> dict:
    return {}

  def write(self, cfg, max_len):
    if not isinstance(cfg, EncoderDecoderConfig):
      raise ConfigError(f"{self.name} is an encoder-decoder")
    scaled = (
      {}
      if cfg.scale_logits in (None, cfg.tie_embeddings)
      else {"scale_decoder_outputs": cfg.scale_logits}
    )
    return scaled | dict(
      vocab_size=cfg.vocab_size,
      d_model=cfg.d_model,
      d_ff=cfg.d_ff,
      num_heads=cfg.num_heads,
      d_kv=cfg.d_kv,
      num_layers=cfg.num_encoder_layers,
      num_decoder_layers=cfg.num_decoder_layers,
      relative_attention_num_buckets=cfg.num_buckets,
      relative_attention_max_distance=cfg.max_distance,
      feed_forward_proj="gated-gelu" if cfg.gated else "relu",
      tie_word_embeddings=cfg.tie_embeddings,
      layer_norm_epsilon=1e-6,
      is_encoder_decoder=True,
      decoder_start_token_id=0,
      pad_token_id=0,
      eos_token_id=1,
    )

  def table(self, cfg):
    return StateDict(cfg)


class MrT5(T5):
  """The release's model: T5 with softmax1, absolute positions and a delete gate.

  Its baselines come as state dicts only.
  """

  name, model_type = "MrT5ForConditionalGeneration", "mrt5"
  own_head, headless_ties = False, False

  def read_more(self, fields, layers):
    absolute = fields.get("has_absolute_position_embeddings", False)
    positions, gate = (
      fields.get("max_position_embeddings", 1024),
      fields.number("delete_gate_layer", 2),
    )
    activation = fields.choice(
      "deletion_type",
      {"scaled_sigmoid": "scaled_sigmoid", "log_sigmoid": "log_sigmoid"},
      "scaled_sigmoid",
    )
    scale = float(fields.get("sigmoid_mask_scale", -10.0))
    reduction = (
      DeleteGateConfig(
        gate,
        scale,
        float(fields.get("deletion_threshold", scale / 2)),
        activation,
        fields.get("gate_layer_norm", True),
        fields.get("use_gumbel_noise", False),
      )
      if gate < layers
      else None
    )
    return dict(
      softmax1=fields.get("use_softmax1", False),
      max_positions=positions if absolute else None,
      reduction=reduction,
    )

  def write(self, cfg, max_len):
    config, gate = super().write(cfg, max_len), cfg.reduction
    if gate is not None and not isinstance(gate, DeleteGateConfig):
      raise ConfigError(f"{self.name} has a delete gate, not {type(gate).__name__}")
    config |= dict(
      use_softmax1=cfg.softmax1,
      has_absolute_position_embeddings=cfg.max_positions is not None,
      max_position_embeddings=cfg.max_positions or max_len,
      delete_gate_layer=cfg.num_encoder_layers if gate is None else gate.layer,
    )
    if gate is not None:
      config |= dict(
        sigmoid_mask_scale=gate.scale,
        deletion_threshold=gate.tau,
        deletion_type=gate.activation,
        gate_layer_norm=gate.norm,
        use_gumbel_noise=gate.gumbel,
      )
    return config


T5_V1_1, MRT5 = T5(), MrT5()
