"""Official LaCT models in and out: config.json fields and state-dict names (docs/specs/lact.md,
sections 3, 4 and 8).

Axis letters: d d_model, n attention heads, h their width, m fast-weight heads, e their width, i
fast inner width, r rank, l rates per token, f d_ff, v vocabulary.
"""

from jaxlm.config import ConfigError
from jaxlm.interop.huggingface.architecture import Architecture, norm_rules
from jaxlm.interop.huggingface.fields import Fields
from jaxlm.interop.huggingface.table import Rule, Table
from jaxlm.layers.fast_weights import FastWeightConfig, UpdateConfig
from jaxlm.layers.lact import LaCTConfig
from jaxlm.layers.mlp import MLPConfig
from jaxlm.layers.norms import RMSNormConfig
from jaxlm.layers.positions.rope import RoPE
from jaxlm.models.decoder import DecoderConfig
from jaxlm.models.lact_nvs import PLUCKER, NVSConfig

#: What only changes rounding or speed of the official code.
IMPLEMENTATION = (
  "fuse_norm",
  "last_layer_fuse_norm",
  "fuse_swiglu",
  "fuse_cross_entropy",
  "max_position_embeddings",
  "fp32_states",
)


class LaCTLM(Architecture):
  """The names are those of the official class; a config.json without them is recognised by
  model_type.
  """

  name, model_type, own_head = "LaCTForCausalLM", "lact_swiglu", False
  kept = IMPLEMENTATION

  def read(self, fields, seq_len):
    d_model = fields.size("hidden_size", 2048)
    ratio = fields.number("hidden_ratio", 4)
    default_ff = 256 * -(-int(d_model * ratio * 2 / 3) // 256)
    fields.only("hidden_act", "swish", "the official MLP has no other activation")
    fields.only("elementwise_affine", True, "the official model has weighted norms")
    return DecoderConfig(
      vocab_size=fields.size("vocab_size", 32000),
      d_model=d_model,
      num_layers=fields.size("num_hidden_layers", 24),
      mixer=read_mixer(fields, d_model),
      norm=RMSNormConfig(eps=float(fields.number("norm_eps", 1e-6))),
      mlp=MLPConfig(
        d_ff=fields.size("intermediate_size", default_ff), activation="silu", gated=True
      ),
      position=RoPE(theta=float(fields.number("rope_theta", 10000.0))),
      tie_embeddings=fields.get("tie_word_embeddings", False),
    )

  def write(self, cfg, max_len):
    mixer = cfg.mixers[0] if isinstance(cfg, DecoderConfig) else None
    if not isinstance(mixer, LaCTConfig) or any(m != mixer for m in cfg.mixers):
      raise ConfigError(f"{self.name} has the same LaCT mixer in every layer")
    if (
      not isinstance(mixer.position, RoPE)
      or not cfg.mlp
      or not cfg.mlp.gated
      or cfg.mlp.activation != "silu"
    ):
      raise ConfigError(f"{self.name} has rope and a SwiGLU MLP")
    fast, update = mixer.fast, mixer.fast.update
    if fast.network != "swiglu" or update.muon not in (None, "language") or update.muon_steps != 5:
      raise ConfigError(f"{self.name} has SwiGLU fast weights and the five language steps of Muon")
    return dict(
      vocab_size=cfg.vocab_size,
      hidden_size=cfg.d_model,
      num_hidden_layers=cfg.num_layers,
      num_attn_heads=mixer.num_heads,
      num_lact_heads=fast.num_heads,
      inter_multi=fast.expansion,
      qkv_bias=mixer.use_bias,
      attn_qk_norm=mixer.qk_norm,
      lact_chunk_size=fast.chunk,
      window_size=mixer.window,
      use_muon=update.muon is not None,
      lr_dim=fast.rates_per_token,
      qkv_silu=mixer.silu != "none",
      no_v_silu=mixer.silu == "qk",
      learnable_ttt_scale=mixer.gate,
      use_momentum=update.momentum,
      ttt_prenorm=update.prenorm,
      ttt_nope=not mixer.rotate_fast,
      w0_w2_low_rank=-1 if fast.rank is None else fast.rank,
      fw_init_gain=fast.init_gain,
      use_fused_kernel=update.fused,
      rope_theta=mixer.position.theta,
      intermediate_size=cfg.mlp.d_ff or 4 * cfg.d_model,
      hidden_act="swish",
      norm_eps=cfg.norm.eps,
      max_position_embeddings=max_len,
      tie_word_embeddings=cfg.tie_embeddings,
    )

  def table(self, cfg):
    layer = "model.layers.{layer}"
    rules = [Rule("model.embeddings.weight", "embed/embedding", "v d -> v d")]
    rules += norm_rules(f"{layer}.attn_norm", "blocks/norm") + norm_rules(
      f"{layer}.mlp_norm", "blocks/mlp_norm"
    )
    rules += mixer_rules(cfg.mixers[0], f"{layer}.attn.", "blocks/mixer/")
    rules += [
      Rule(f"{layer}.mlp.gate_proj.weight", "blocks/mlp/w_gate", "f d -> d f"),
      Rule(f"{layer}.mlp.up_proj.weight", "blocks/mlp/w_in", "f d -> d f"),
      Rule(f"{layer}.mlp.down_proj.weight", "blocks/mlp/w_out", "d f -> f d"),
    ]
    rules += norm_rules("model.norm", "final_norm")
    if not cfg.tie_embeddings:
      rules.append(Rule("lm_head.weight", "head/w_out", "v d -> v d"))
    sizes = mixer_sizes(cfg.mixers[0], cfg.d_model) | {
      "f": cfg.mlp.d_ff or 4 * cfg.d_model,
      "v": cfg.vocab_size,
    }
    return Table(
      tuple(rules),
      sizes,
      cfg.num_layers,
      tied={"lm_head.weight": "model.embeddings.weight"} if cfg.tie_embeddings else {},
    )


LACT_LM = LaCTLM()


def read_mixer(fields: Fields, d_model: int) -> LaCTConfig:
  """The token mixer of an official config.

  Defaults are those of the language model, not of the bare layer.
  """
  num_heads = fields.size("num_attn_heads", 32)
  if d_model % num_heads:
    raise ConfigError(
      f"{fields.what}: hidden_size = {d_model} is not divisible by num_attn_heads = {num_heads}; the "
      "released 3B momentum file has 24 heads and 25 layers exchanged"
    )
  fields.only("lr_parameterization", "mamba", "there is no other")
  fields.only("ttt_loss_type", "dot_product", "there is no other")
  fields.only(
    "lr_dim",
    1,
    "no released model has several rates per head, and the release's kernels have no path for them",
  )
  for name in IMPLEMENTATION:
    fields.get(name)
  silu, keep_v = fields.get("qkv_silu", True), fields.get("no_v_silu", False)
  rank = fields.get("w0_w2_low_rank", -1)
  expansion = fields.number("inter_multi", 1)
  return LaCTConfig(
    num_heads=num_heads,
    window=fields.nullable("window_size", 2048),
    rotate_fast=not fields.get("ttt_nope", False),
    use_bias=fields.get("qkv_bias", False),
    qk_norm=fields.get("attn_qk_norm", False),
    silu=("qk" if keep_v else "qkv") if silu else "none",
    gate=fields.get("learnable_ttt_scale", True),
    fast=FastWeightConfig(
      num_heads=fields.size("num_lact_heads", 4),
      chunk=fields.size("lact_chunk_size", 2048),
      expansion=float(expansion),
      rank=rank if rank > 0 else None,
      init_gain=float(fields.number("fw_init_gain", 0.5)),
      documents="shared",  # the official code lets state run across documents and learns from padding
      update=UpdateConfig(
        momentum=fields.get("use_momentum", True),
        muon="language" if fields.get("use_muon", False) else None,
        prenorm=fields.get("ttt_prenorm", False),
        fused=fields.get("use_fused_kernel", False),
      ),
    ),
  )


def mixer_sizes(mixer: LaCTConfig, d_model: int) -> dict[str, int]:
  fast, (width, inner) = mixer.fast, mixer.fast.widths(d_model)
  return {
    "d": d_model,
    "n": mixer.num_heads,
    "h": d_model // mixer.num_heads,
    "m": fast.num_heads,
    "e": width,
    "i": inner,
    "r": fast.rank or 1,
    "l": fast.rates_per_token,
  }


def mixer_rules(mixer: LaCTConfig, theirs: str, ours: str) -> list[Rule]:
  """Names of one LaCT layer; lr_proj is head-major, within a head the rates of w0, w1, w2."""

  def letters(stem):
    return tuple(f"{ours}{stem.format(x)}" for x in "qkv")

  def pair(stem):
    return letters(stem)[:2]

  rules = [
    Rule(f"{theirs}qkv.weight", letters("w_{}"), "(3 n h) d -> 3 d n h"),
    Rule(f"{theirs}o_proj.weight", f"{ours}w_o", "d (n h) -> n h d"),
    Rule(f"{theirs}qk_scale", pair("scale_{}"), "(n h) 2 -> 2 n h"),
    Rule(f"{theirs}qk_offset", pair("offset_{}"), "(n h) 2 -> 2 n h"),
    Rule(f"{theirs}ttt_norm.weight", f"{ours}scale_fast", "e -> e"),
    Rule(f"{theirs}w1", f"{ours}fast/w1", "m e i -> m e i"),
    Rule(f"{theirs}lr_proj.weight", f"{ours}fast/w_rate", "(m 3 l) d -> d m 3 l"),
    Rule(f"{theirs}lr_proj.bias", f"{ours}fast/b_rate", "(m 3 l) -> m 3 l"),
  ]
  for name in ("w0", "w2"):
    if mixer.fast.rank is None:
      rules.append(Rule(f"{theirs}{name}", f"{ours}fast/{name}", "m i e -> m i e"))
    else:
      rules += [
        Rule(f"{theirs}{name}.w_left", f"{ours}fast/{name}_left", "m i r -> m i r"),
        Rule(f"{theirs}{name}.w_right", f"{ours}fast/{name}_right", "m r e -> m r e"),
      ]
  if mixer.use_bias:
    rules.append(Rule(f"{theirs}qkv.bias", letters("b_{}"), "(3 n h) -> 3 n h"))
  if mixer.qk_norm:
    rules += [
      Rule(f"{theirs}{x}_norm.weight", f"{ours}scale_{x}_norm", "(n h) -> n h") for x in "qk"
    ]
  if mixer.gate:
    rules += [
      Rule(f"{theirs}ttt_scale_proj.weight", f"{ours}w_gate", "m d -> d m"),
      Rule(f"{theirs}ttt_scale_proj.bias", f"{ours}b_gate", "m -> m"),
    ]
  if mixer.fast.update.momentum:
    rules += [
      Rule(f"{theirs}momentum_proj.0.weight", f"{ours}fast/w_momentum", "m d -> d m"),
      Rule(f"{theirs}momentum_proj.0.bias", f"{ours}fast/b_momentum", "m -> m"),
    ]
  return rules


def nvs_table(cfg: NVSConfig) -> Table:
  """Names of the official view-synthesis model. Letters as above; p features of a patch, q colours
  of a patch, k attention head width. Its fast weights are stored transposed, and its rates (matrix,
  head) instead of (head, matrix).
  """
  block = "blocks.{layer}.module_list."
  rules = [
    Rule("input_linear.weight", "embed/w_in", "d p -> p d"),
    Rule("input_layernorm.weight", "embed/norm/scale", "d -> d"),
    Rule(f"{block}0.ln.weight", "blocks/norm/scale", "d -> d"),
    Rule(
      f"{block}0.f.to_qkv.weight",
      tuple(f"blocks/attention/w_{x}" for x in "qkv"),
      "(3 n h) d -> 3 d n h",
    ),
    Rule(f"{block}0.f.c_proj.weight", "blocks/attention/w_o", "d (n h) -> n h d"),
    Rule(f"{block}0.f.q_norm.weight", "blocks/attention/scale_q", "h -> h"),
    Rule(f"{block}0.f.k_norm.weight", "blocks/attention/scale_k", "h -> h"),
    Rule(f"{block}1.ln.weight", "blocks/memory_norm/scale", "d -> d"),
    Rule(
      f"{block}1.f.to_qkv.weight",
      tuple(f"blocks/memory/w_{x}" for x in "qkv"),
      "(3 m e) d -> 3 d m e",
    ),
    Rule(f"{block}1.f.c_proj.weight", "blocks/memory/w_o", "d (m e) -> m e d"),
    Rule(f"{block}1.f.lr_fc.weight", "blocks/memory/w_rate", "(3 m) d -> d m 3"),
    Rule(f"{block}1.f.lr_fc.bias", "blocks/memory/b_rate", "(3 m) -> m 3"),
    Rule(f"{block}1.f.w0", "blocks/memory/w0", "m e i -> m i e"),
    Rule(f"{block}1.f.w1", "blocks/memory/w1", "m i e -> m e i"),
    Rule(f"{block}1.f.w2", "blocks/memory/w2", "m e i -> m i e"),
    Rule(f"{block}1.f.o_norm.weight", "blocks/memory/scale", "e -> e"),
    Rule(f"{block}2.ln.weight", "blocks/mlp_norm/scale", "d -> d"),
    Rule(f"{block}2.f.c_fc.weight", "blocks/mlp/w_in", "f d -> d f"),
    Rule(f"{block}2.f.c_proj.weight", "blocks/mlp/w_out", "d f -> f d"),
    Rule("image_token_decoder.0.weight", "head/norm/scale", "d -> d"),
    Rule("image_token_decoder.1.weight", "head/w_out", "q d -> d q"),
  ]
  patch = cfg.patch**2
  sizes = {
    "d": cfg.d_model,
    "n": cfg.d_model // cfg.head_dim,
    "h": cfg.head_dim,
    "m": cfg.d_model // cfg.fast_width,
    "e": cfg.fast_width,
    "i": cfg.inner_width,
    "f": cfg.mlp.d_ff,
    "p": (PLUCKER + 3) * patch,
    "q": 3 * patch,
  }
  return Table(tuple(rules), sizes, cfg.num_layers)
