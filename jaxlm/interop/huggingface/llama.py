"""Llama, Mistral, Qwen2, Qwen3, Gemma, Gemma-2 and OLMo-2: one family of names, with differences
that are settings.
"""

from jaxlm.config import ConfigError
from jaxlm.interop.huggingface.architecture import (
  ACTIVATION_NAMES,
  ACTIVATIONS,
  Architecture,
  attention_of,
  norm_rules,
  pattern,
  read_layer_types,
  sizes_of,
  write_layer_types,
)
from jaxlm.interop.huggingface.rope import read_rope, write_rope
from jaxlm.interop.huggingface.table import Rule, Table
from jaxlm.layers.attention import AttentionConfig
from jaxlm.layers.embedding import EmbeddingConfig
from jaxlm.layers.mlp import MLPConfig
from jaxlm.layers.norms import RMSNormConfig
from jaxlm.models.decoder import DecoderConfig


class Llama(Architecture):
  name, model_type = "LlamaForCausalLM", "llama"
  act, residual, eps = "hidden_act", "sequential", 1e-6
  gemma = False  # embeddings times sqrt(d_model), norms of 1 + w, a tied head

  def attention(self, fields, heads: dict, norm: RMSNormConfig, num_layers: int):
    """The mixer, given its sizes and position."""
    return AttentionConfig(**heads, use_bias=fields.get("attention_bias", False))

  def defaults(self) -> dict:
    """The library's, where they differ within the family."""
    return dict(
      hidden_size=4096,
      intermediate_size=11008,
      num_hidden_layers=32,
      num_attention_heads=32,
      num_key_value_heads=None,
      head_dim=None,
      vocab_size=32000,
      max_position_embeddings=2048,
    )

  def read(self, fields, seq_len):
    default = self.defaults()

    def size(name):
      return fields.size(name, default[name])

    D, L, N = size("hidden_size"), size("num_hidden_layers"), size("num_attention_heads")
    head_dim = fields.get("head_dim", default["head_dim"])
    if head_dim is None:
      if D % N:
        raise ConfigError(
          f"{fields.what}: hidden_size = {D} is not divisible by num_attention_heads = {N}"
        )
      head_dim = D // N
    max_len = size("max_position_embeddings")
    rope = read_rope(fields, head_dim, max_len=max_len, seq_len=seq_len)
    norm = RMSNormConfig(eps=float(fields.number("rms_norm_eps", self.eps)), unit_offset=self.gemma)
    kv = fields.nullable("num_key_value_heads", default["num_key_value_heads"])
    heads = dict(
      num_heads=N,
      num_kv_heads=N if kv is None else fields.size("num_key_value_heads", kv),
      head_dim=head_dim,
    )
    fields.only("rope_interleaved", False, "the released weights of this architecture turn halves")
    fields.only(
      "pretraining_tp", 1, "it splits the sums of one matmul, which only changes rounding"
    )
    if "mlp_bias" in fields.mapping and self.model_type != "llama":
      fields.only("mlp_bias", False, "the MLP of this architecture has no biases")
    return DecoderConfig(
      vocab_size=size("vocab_size"),
      d_model=D,
      num_layers=L,
      mixer=self.attention(fields, heads, norm, L),
      mlp=MLPConfig(
        d_ff=size("intermediate_size"),
        gated=True,
        use_bias=fields.get("mlp_bias", False),
        activation=fields.choice(self.act, ACTIVATIONS, self.default_act),
      ),
      norm=norm,
      position=rope,
      embedding=EmbeddingConfig(scale_by_width=self.gemma),
      residual=self.residual,
      softcap=self.final_softcap(fields),
      tie_embeddings=fields.get("tie_word_embeddings", self.gemma),
    )

  default_act = "silu"

  def final_softcap(self, fields):
    return None

  def write(self, cfg, max_len):
    attention = attention_of(cfg, self.name)
    heads = attention.heads(cfg.d_model)
    return dict(
      vocab_size=cfg.vocab_size,
      hidden_size=cfg.d_model,
      num_hidden_layers=cfg.num_layers,
      num_attention_heads=heads.num_heads,
      num_key_value_heads=heads.num_kv_heads,
      head_dim=heads.head_dim,
      intermediate_size=cfg.mlp.d_ff or 4 * cfg.d_model,
      rms_norm_eps=cfg.norm.eps,
      max_position_embeddings=max_len,
      rope_parameters=write_rope(attention.position, heads.head_dim),
      tie_word_embeddings=cfg.tie_embeddings,
      **{self.act: ACTIVATION_NAMES[cfg.mlp.activation]},
    ) | self.write_more(cfg, attention)

  def write_more(self, cfg, attention) -> dict:
    return dict(attention_bias=attention.use_bias, mlp_bias=cfg.mlp.use_bias)

  def table(self, cfg):
    attention = attention_of(cfg, self.name)
    layer, block = "model.layers.{layer}", "blocks"
    rules = [Rule("model.embed_tokens.weight", "embed/embedding", "v d -> v d")]
    for letter, count in (("q", "n"), ("k", "k"), ("v", "k")):
      name, ours = f"{layer}.self_attn.{letter}_proj", f"{block}/mixer"
      rules.append(Rule(f"{name}.weight", f"{ours}/w_{letter}", f"({count} h) d -> d {count} h"))
      if attention.use_bias:
        rules.append(Rule(f"{name}.bias", f"{ours}/b_{letter}", f"({count} h) -> {count} h"))
      if attention.qk_norm is not None and letter in "qk":
        axis = "h" if attention.qk_norm_over == "head" else "a" if letter == "q" else "c"
        rules.append(
          Rule(
            f"{layer}.self_attn.{letter}_norm.weight",
            f"{ours}/{letter}_norm/scale",
            f"{axis} -> {axis}",
          )
        )
    rules.append(Rule(f"{layer}.self_attn.o_proj.weight", f"{block}/mixer/w_o", "d (n h) -> n h d"))
    if attention.use_bias if attention.output_bias is None else attention.output_bias:
      rules.append(Rule(f"{layer}.self_attn.o_proj.bias", f"{block}/mixer/b_o", "d -> d"))
    for theirs, ours, axes, bias in (
      ("gate_proj", "gate", "f d -> d f", "f"),
      ("up_proj", "in", "f d -> d f", "f"),
      ("down_proj", "out", "d f -> f d", "d"),
    ):
      rules.append(Rule(f"{layer}.mlp.{theirs}.weight", f"{block}/mlp/w_{ours}", axes))
      if cfg.mlp.use_bias:
        rules.append(
          Rule(f"{layer}.mlp.{theirs}.bias", f"{block}/mlp/b_{ours}", f"{bias} -> {bias}")
        )
    for theirs, ours in self.norms.items():
      rules += norm_rules(f"{layer}.{theirs}", f"{block}/{ours}")
    rules += norm_rules("model.norm", "final_norm")
    if not cfg.tie_embeddings:
      rules.append(Rule("lm_head.weight", "head/w_out", "v d -> v d"))
    sizes = sizes_of(cfg, attention)
    sizes |= {"a": sizes["n"] * sizes["h"], "c": sizes["k"] * sizes["h"]}
    return Table(
      tuple(rules),
      sizes,
      cfg.num_layers,
      ignore=(r".*rotary_emb\.inv_freq",),
      tied={"lm_head.weight": "model.embed_tokens.weight"} if cfg.tie_embeddings else {},
    )

  norms = {"input_layernorm": "norm", "post_attention_layernorm": "mlp_norm"}


class Mistral(Llama):
  name, model_type = "MistralForCausalLM", "mistral"

  def defaults(self):
    return super().defaults() | dict(
      intermediate_size=14336, num_key_value_heads=8, max_position_embeddings=131072
    )

  def attention(self, fields, heads, norm, num_layers):
    fields.only("attention_bias", False, "the attention of this architecture has no biases")
    return AttentionConfig(**heads, window=_window(fields))

  def write_more(self, cfg, attention):
    types, window = write_layer_types(cfg)
    if len(set(types)) > 1:
      raise ConfigError(f"its windows differ between layers, {self.name} has one window for all")
    return dict(sliding_window=window)


class Qwen3(Llama):
  name, model_type = "Qwen3ForCausalLM", "qwen3"

  def defaults(self):
    return super().defaults() | dict(
      intermediate_size=22016,
      num_key_value_heads=32,
      head_dim=128,
      vocab_size=151936,
      max_position_embeddings=32768,
    )

  def attention(self, fields, heads, norm, num_layers):
    window = _window(fields) if fields.get("use_sliding_window", False) else None
    fields.get("sliding_window")
    first = fields.get("max_window_layers", 28)
    default = [
      "sliding_attention" if window is not None and i >= first else "full_attention"
      for i in range(num_layers)
    ]
    sliding = read_layer_types(fields, num_layers, default)
    if any(sliding) and window is None:
      raise ConfigError(
        f"{fields.what}: layer_types asks for sliding_attention, but there is no window: "
        f"use_sliding_window is false or sliding_window null"
      )
    return pattern(
      [
        AttentionConfig(**heads, window=window if s else None, **self.more(fields, norm))
        for s in sliding
      ]
    )

  def more(self, fields, norm) -> dict:
    return dict(qk_norm=norm, use_bias=fields.get("attention_bias", False))

  def write_more(self, cfg, attention):
    types, window = write_layer_types(cfg)
    return dict(
      attention_bias=attention.use_bias,
      layer_types=types,
      use_sliding_window=window is not None,
      sliding_window=window,
    )


class Qwen2(Qwen3):
  """Biases on q, k and v, none on the output, and no norms of q and k."""

  name, model_type = "Qwen2ForCausalLM", "qwen2"

  def defaults(self):
    return super().defaults() | dict(head_dim=None)

  def more(self, fields, norm):
    return dict(use_bias=True, output_bias=False)

  def write_more(self, cfg, attention):
    out = super().write_more(cfg, attention)
    del out["attention_bias"]  # always there
    return out


class Olmo2(Llama):
  """Norms behind attention and MLP, and of q and k over all heads."""

  name, model_type, residual, eps = "Olmo2ForCausalLM", "olmo2", "post", 1e-5
  norms = {"post_attention_layernorm": "norm_out", "post_feedforward_layernorm": "mlp_norm_out"}

  def defaults(self):
    return super().defaults() | dict(vocab_size=50304)

  def attention(self, fields, heads, norm, num_layers):
    return AttentionConfig(
      **heads, qk_norm=norm, qk_norm_over="heads", use_bias=fields.get("attention_bias", False)
    )

  def write_more(self, cfg, attention):
    return dict(attention_bias=attention.use_bias)


class Gemma(Llama):
  name, model_type, gemma, default_act = "GemmaForCausalLM", "gemma", True, "gelu_pytorch_tanh"

  def defaults(self):
    return dict(
      hidden_size=3072,
      intermediate_size=24576,
      num_hidden_layers=28,
      num_attention_heads=16,
      num_key_value_heads=16,
      head_dim=256,
      vocab_size=256000,
      max_position_embeddings=8192,
    )

  def read(self, fields, seq_len):
    # The released files say "gelu" and mean the tanh form, as the library does; later ones have a
    # second field.
    act = fields.get("hidden_activation") or fields.get("hidden_act", self.default_act)
    mapping = fields.mapping
    fields.mapping = mapping | {"hidden_act": self.default_act if act == "gelu" else act}
    try:
      return super().read(fields, seq_len)
    finally:
      fields.mapping = mapping

  def attention(self, fields, heads, norm, num_layers):
    fields.only("use_bidirectional_attention", False, "the decoder is causal")
    return AttentionConfig(**heads, use_bias=fields.get("attention_bias", False))

  def write_more(self, cfg, attention):
    return dict(attention_bias=attention.use_bias)


class Gemma2(Llama):
  name, model_type = "Gemma2ForCausalLM", "gemma2"
  act, residual, gemma, default_act = "hidden_activation", "sandwich", True, "gelu_pytorch_tanh"
  norms = {
    "input_layernorm": "norm",
    "post_attention_layernorm": "norm_out",
    "pre_feedforward_layernorm": "mlp_norm",
    "post_feedforward_layernorm": "mlp_norm_out",
  }

  def defaults(self):
    return dict(
      hidden_size=2304,
      intermediate_size=9216,
      num_hidden_layers=26,
      num_attention_heads=8,
      num_key_value_heads=4,
      head_dim=256,
      vocab_size=256000,
      max_position_embeddings=8192,
    )

  def attention(self, fields, heads, norm, num_layers):
    fields.get("hidden_act")  # files carry it beside hidden_activation, and the library ignores it
    fields.get("cache_implementation")
    fields.only("use_bidirectional_attention", False, "the decoder is causal")
    window = _window(fields)
    sliding = read_layer_types(
      fields,
      num_layers,
      ["full_attention" if i % 2 else "sliding_attention" for i in range(num_layers)],
    )
    if any(sliding) and window is None:
      raise ConfigError(
        f"{fields.what}: layer_types asks for sliding_attention, but sliding_window is null"
      )

    def make(window):
      return AttentionConfig(
        **heads,
        window=window,
        softcap=_cap(fields, "attn_logit_softcapping", 50.0),
        scale=float(fields.number("query_pre_attn_scalar", 256)) ** -0.5,
        use_bias=fields.get("attention_bias", False),
      )

    return pattern([make(window if s else None) for s in sliding])

  def final_softcap(self, fields):
    return _cap(fields, "final_logit_softcapping", 30.0)

  def write_more(self, cfg, attention):
    types, window = write_layer_types(cfg)
    head_dim = attention.heads(cfg.d_model).head_dim
    scalar = head_dim if attention.scale is None else attention.scale**-2
    return dict(
      attention_bias=attention.use_bias,
      layer_types=types,
      sliding_window=window,
      attn_logit_softcapping=attention.softcap,
      final_logit_softcapping=cfg.softcap,
      query_pre_attn_scalar=round(scalar) if abs(scalar - round(scalar)) < 1e-6 else scalar,
    )


def _window(fields) -> int | None:
  """sliding_window, where null means none and an absent field the library's default."""
  window = fields.nullable("sliding_window", 4096)
  if window is not None and (not isinstance(window, int) or window < 1):
    raise ConfigError(
      f"{fields.what}: sliding_window = {window!r}, wanted a positive whole number or null"
    )
  return window


def _cap(fields, name: str, default: float) -> float | None:
  cap = fields.nullable(name, default)
  return None if cap is None else float(cap)


LLAMA, MISTRAL, QWEN2, QWEN3 = Llama(), Mistral(), Qwen2(), Qwen3()
GEMMA, GEMMA2, OLMO2 = Gemma(), Gemma2(), Olmo2()
