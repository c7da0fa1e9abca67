"""GPT-2: LayerNorm, learned positions, fused qkv; weights are stored (in, out)."""

from jaxlm.config import ConfigError
from jaxlm.interop.huggingface.architecture import (
  ACTIVATION_NAMES,
  ACTIVATIONS,
  Architecture,
  attention_of,
  norm_rules,
  pattern,
  sizes_of,
)
from jaxlm.interop.huggingface.table import Rule, Table
from jaxlm.layers.attention import AttentionConfig
from jaxlm.layers.mlp import MLPConfig
from jaxlm.layers.norms import LayerNormConfig
from jaxlm.layers.positions.additive import Learned
from jaxlm.models.decoder import DecoderConfig


class GPT2(Architecture):
  name, model_type = "GPT2LMHeadModel", "gpt2"

  def read(self, fields, seq_len):
    D, L, N = fields.size("n_embd", 768), fields.size("n_layer", 12), fields.size("n_head", 12)
    if D % N:
      raise ConfigError(f"{fields.what}: n_embd = {D} is not divisible by n_head = {N}")
    fields.only("add_cross_attention", False, "there is no encoder to attend to")
    fields.get("n_ctx")  # written by old versions, equal to n_positions
    scale = (D // N) ** -0.5 if fields.get("scale_attn_weights", True) else 1.0
    by_layer = fields.get("scale_attn_by_inverse_layer_idx", False)

    def make(scale):
      return AttentionConfig(num_heads=N, use_bias=True, scale=scale)

    return DecoderConfig(
      vocab_size=fields.size("vocab_size", 50257),
      d_model=D,
      num_layers=L,
      mixer=pattern([make(scale / (layer + 1 if by_layer else 1)) for layer in range(L)]),
      mlp=MLPConfig(
        d_ff=fields.size("n_inner", 4 * D),
        use_bias=True,
        activation=fields.choice("activation_function", ACTIVATIONS, "gelu_new"),
      ),
      norm=LayerNormConfig(eps=float(fields.number("layer_norm_epsilon", 1e-5))),
      position=Learned(fields.size("n_positions", 1024)),
      tie_embeddings=fields.get("tie_word_embeddings", True),
    )

  def write(self, cfg, max_len):
    attention = attention_of(cfg, self.name)
    if not isinstance(cfg.position, Learned):
      raise ConfigError(
        f"positions are {type(cfg.position).__name__}, {self.name} has a learned table only"
      )
    head_dim = attention.heads(cfg.d_model).head_dim
    scales = [head_dim**-0.5 if m.scale is None else m.scale for m in cfg.mixers]
    activation = {"gelu_tanh": "gelu_new"}.get(
      cfg.mlp.activation, ACTIVATION_NAMES[cfg.mlp.activation]
    )
    return dict(
      vocab_size=cfg.vocab_size,
      n_embd=cfg.d_model,
      n_layer=cfg.num_layers,
      n_head=attention.num_heads,
      n_inner=cfg.mlp.d_ff or 4 * cfg.d_model,
      n_positions=cfg.position.max_len,
      activation_function=activation,
      layer_norm_epsilon=cfg.norm.eps,
      tie_word_embeddings=cfg.tie_embeddings,
      scale_attn_weights=scales[0] == head_dim**-0.5,
      scale_attn_by_inverse_layer_idx=len(scales) > 1 and scales[1] != scales[0],
    )

  def table(self, cfg):
    attention = attention_of(cfg, self.name)
    layer = "transformer.h.{layer}"
    rules = [
      Rule("transformer.wte.weight", "embed/embedding", "v d -> v d"),
      Rule("transformer.wpe.weight", "position/embedding", "t d -> t d"),
    ]
    rules += norm_rules(f"{layer}.ln_1", "blocks/norm", bias=True)

    def parts(kind):
      return tuple(f"blocks/mixer/{kind}_{letter}" for letter in "qkv")

    rules += [
      Rule(f"{layer}.attn.c_attn.weight", parts("w"), "d (3 n h) -> 3 d n h"),
      Rule(f"{layer}.attn.c_attn.bias", parts("b"), "(3 n h) -> 3 n h"),
      Rule(f"{layer}.attn.c_proj.weight", "blocks/mixer/w_o", "(n h) d -> n h d"),
      Rule(f"{layer}.attn.c_proj.bias", "blocks/mixer/b_o", "d -> d"),
    ]
    rules += norm_rules(f"{layer}.ln_2", "blocks/mlp_norm", bias=True)
    rules += [
      Rule(f"{layer}.mlp.c_fc.weight", "blocks/mlp/w_in", "d f -> d f"),
      Rule(f"{layer}.mlp.c_fc.bias", "blocks/mlp/b_in", "f -> f"),
      Rule(f"{layer}.mlp.c_proj.weight", "blocks/mlp/w_out", "f d -> f d"),
      Rule(f"{layer}.mlp.c_proj.bias", "blocks/mlp/b_out", "d -> d"),
    ]
    rules += norm_rules("transformer.ln_f", "final_norm", bias=True)
    if not cfg.tie_embeddings:
      rules.append(Rule("lm_head.weight", "head/w_out", "v d -> v d"))
    return Table(
      tuple(rules),
      sizes_of(cfg, attention) | {"t": cfg.position.max_len},
      cfg.num_layers,
      ignore=(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",),  # mask buffers of old files
      aliases=((r"^(wte|wpe|h|ln_f)\.", r"transformer.\1."),),  # files of the bare GPT2Model
      tied={"lm_head.weight": "transformer.wte.weight"} if cfg.tie_embeddings else {},
    )


GPT2_LM = GPT2()
