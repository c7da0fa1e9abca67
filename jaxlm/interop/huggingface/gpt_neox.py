"""GPT-NeoX (Pythia): LayerNorm, partial RoPE, parallel residual, qkv fused head by head."""

from jaxlm.config import ConfigError
from jaxlm.interop.huggingface.architecture import (
  ACTIVATION_NAMES,
  ACTIVATIONS,
  Architecture,
  attention_of,
  norm_rules,
  sizes_of,
)
from jaxlm.interop.huggingface.rope import read_rope, write_rope
from jaxlm.interop.huggingface.table import Rule, Table
from jaxlm.layers.attention import AttentionConfig
from jaxlm.layers.mlp import MLPConfig
from jaxlm.layers.norms import LayerNormConfig
from jaxlm.models.decoder import DecoderConfig


class GPTNeoX(Architecture):
  name, model_type = "GPTNeoXForCausalLM", "gpt_neox"

  def read(self, fields, seq_len):
    D, N = fields.size("hidden_size", 6144), fields.size("num_attention_heads", 64)
    if D % N:
      raise ConfigError(
        f"{fields.what}: hidden_size = {D} is not divisible by num_attention_heads = {N}"
      )
    rope = read_rope(
      fields,
      D // N,
      partial=0.25,
      partial_allowed=True,
      max_len=fields.size("max_position_embeddings", 2048),
      seq_len=seq_len,
    )
    return DecoderConfig(
      vocab_size=fields.size("vocab_size", 50432),
      d_model=D,
      num_layers=fields.size("num_hidden_layers", 44),
      mixer=AttentionConfig(num_heads=N, use_bias=fields.get("attention_bias", True)),
      mlp=MLPConfig(
        d_ff=fields.size("intermediate_size", 24576),
        use_bias=True,
        activation=fields.choice("hidden_act", ACTIVATIONS, "gelu"),
      ),
      norm=LayerNormConfig(eps=float(fields.number("layer_norm_eps", 1e-5))),
      position=rope,
      residual="parallel" if fields.get("use_parallel_residual", True) else "sequential",
      tie_embeddings=fields.get("tie_word_embeddings", False),
    )

  def write(self, cfg, max_len):
    attention = attention_of(cfg, self.name)
    head_dim = attention.heads(cfg.d_model).head_dim
    rope = write_rope(attention.position, head_dim)
    return dict(
      vocab_size=cfg.vocab_size,
      hidden_size=cfg.d_model,
      num_hidden_layers=cfg.num_layers,
      num_attention_heads=attention.num_heads,
      intermediate_size=cfg.mlp.d_ff or 4 * cfg.d_model,
      hidden_act=ACTIVATION_NAMES[cfg.mlp.activation],
      layer_norm_eps=cfg.norm.eps,
      max_position_embeddings=max_len,
      use_parallel_residual=cfg.residual == "parallel",
      attention_bias=attention.use_bias,
      rope_parameters={"partial_rotary_factor": 1.0} | rope,
      tie_word_embeddings=cfg.tie_embeddings,
    )

  def table(self, cfg):
    attention = attention_of(cfg, self.name)
    layer = "gpt_neox.layers.{layer}"

    def parts(kind):
      return tuple(f"blocks/mixer/{kind}_{letter}" for letter in "qkv")

    rules = [Rule("gpt_neox.embed_in.weight", "embed/embedding", "v d -> v d")]
    rules += norm_rules(f"{layer}.input_layernorm", "blocks/norm", bias=True)
    rules += norm_rules(f"{layer}.post_attention_layernorm", "blocks/mlp_norm", bias=True)
    rules += [
      Rule(f"{layer}.attention.query_key_value.weight", parts("w"), "(n 3 h) d -> 3 d n h"),
      Rule(f"{layer}.attention.dense.weight", "blocks/mixer/w_o", "d (n h) -> n h d"),
      Rule(f"{layer}.mlp.dense_h_to_4h.weight", "blocks/mlp/w_in", "f d -> d f"),
      Rule(f"{layer}.mlp.dense_h_to_4h.bias", "blocks/mlp/b_in", "f -> f"),
      Rule(f"{layer}.mlp.dense_4h_to_h.weight", "blocks/mlp/w_out", "d f -> f d"),
      Rule(f"{layer}.mlp.dense_4h_to_h.bias", "blocks/mlp/b_out", "d -> d"),
    ]
    if attention.use_bias:
      rules += [
        Rule(f"{layer}.attention.query_key_value.bias", parts("b"), "(n 3 h) -> 3 n h"),
        Rule(f"{layer}.attention.dense.bias", "blocks/mixer/b_o", "d -> d"),
      ]
    rules += norm_rules("gpt_neox.final_layer_norm", "final_norm", bias=True)
    if not cfg.tie_embeddings:
      rules.append(Rule("lm_head.weight", "head/w_out", "v d -> v d"))
    return Table(
      tuple(rules),
      sizes_of(cfg, attention),
      cfg.num_layers,
      ignore=(r".*\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",),  # buffers of old files
      aliases=((r"^embed_out\.", "lm_head."),),
      tied={"lm_head.weight": "gpt_neox.embed_in.weight"} if cfg.tie_embeddings else {},
    )


GPT_NEOX = GPTNeoX()
