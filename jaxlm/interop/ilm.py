"""Official insertion-LM checkpoints and their baselines in and out: names and shapes
(docs/specs/ilm.md, sections 3 and 6).

Axis letters: d d_model, n heads, h head_dim, f d_ff, v vocabulary, e stop head's inner width, c
conditioning width, x its other side, s sinusoids.
"""

from jaxlm.interop.huggingface.architecture import norm_rules
from jaxlm.interop.huggingface.table import Rule, Table
from jaxlm.layers.attention import AttentionConfig
from jaxlm.layers.embedding import EmbeddingConfig
from jaxlm.layers.mlp import MLPConfig
from jaxlm.layers.norms import LayerNormConfig
from jaxlm.layers.positions.rope import RoPE
from jaxlm.models.decoder import DecoderConfig
from jaxlm.models.insertion import InsertionConfig
from jaxlm.models.masked_diffusion import MaskedDiffusionConfig

ACTIVATIONS = {"relu": "relu", "gelu": "gelu_tanh"}
BUFFERS = (r"encoder\.\d+\.rotary_emb\..*", r"sigma_map\.freqs")


def read_transformer(
  c, *, causal: bool = False, stop_head: bool = False, slot_embedding: bool = False
):
  """DecoderConfig (causal) or InsertionConfig from the release's fields."""
  common = dict(
    vocab_size=c["full_vocab"],
    d_model=c["d_model"],
    num_layers=c["num_layers"],
    mixer=AttentionConfig(c["nhead"], causal=causal),
    norm=LayerNormConfig(eps=c.get("layer_norm_eps", 1e-5)),
    mlp=MLPConfig(c["dim_feedforward"], ACTIVATIONS[c["activation"]], use_bias=True),
    position=RoPE(rotary_dim=c["rotary_emb_dim"]),
    embedding=EmbeddingConfig(init_std=1.0),
    tie_embeddings=False,
    final_norm=not c["final_layer_without_normalization"],
  )
  return (
    DecoderConfig(**common)
    if causal
    else InsertionConfig(**common, stop_head=stop_head, slot_embedding=slot_embedding)
  )


def read_diffusion(c) -> MaskedDiffusionConfig:
  return MaskedDiffusionConfig(
    vocab_size=c["full_vocab"],
    d_model=c["d_model"],
    num_layers=c["num_layers"],
    num_heads=c["nhead"],
    d_cond=c["d_cond"],
    mlp=MLPConfig(c["dim_feedforward"], ACTIVATIONS[c["activation"]], use_bias=True),
    position=RoPE(rotary_dim=c["rotary_emb_dim"]),
    embedding=EmbeddingConfig(init_std=1.0),
  )


def _sizes(cfg, num_heads: int) -> dict[str, int]:
  return {
    "d": cfg.d_model,
    "n": num_heads,
    "h": cfg.d_model // num_heads,
    "f": cfg.mlp.d_ff or 4 * cfg.d_model,
    "v": cfg.vocab_size,
  }


def _block_rules(*, bias: bool) -> list[Rule]:
  layer = "encoder.{layer}"
  return [
    *norm_rules(f"{layer}.norm1", "blocks/norm", bias=bias),
    *norm_rules(f"{layer}.norm2", "blocks/mlp_norm", bias=bias),
    Rule(
      f"{layer}.attn_qkv.weight",
      tuple(f"blocks/mixer/w_{x}" for x in "qkv"),
      "(3 n h) d -> 3 d n h",
    ),
    Rule(f"{layer}.o_proj.weight", "blocks/mixer/w_o", "d (n h) -> n h d"),
    Rule(f"{layer}.mlp.0.weight", "blocks/mlp/w_in", "f d -> d f"),
    Rule(f"{layer}.mlp.0.bias", "blocks/mlp/b_in", "f -> f"),
    Rule(f"{layer}.mlp.2.weight", "blocks/mlp/w_out", "d f -> f d"),
    Rule(f"{layer}.mlp.2.bias", "blocks/mlp/b_out", "d -> d"),
    Rule("embed_tokens.weight", "embed/embedding", "v d -> v d"),
    Rule("output_layer.linear.weight", "head/w_out", "v d -> v d"),
  ]


def transformer_table(cfg) -> Table:
  """Of an InsertionConfig, or of the DecoderConfig of the autoregressive baseline."""
  sizes, rules, ignore = _sizes(cfg, cfg.mixer.num_heads), _block_rules(bias=True), BUFFERS
  if cfg.final_norm:
    rules += norm_rules("output_layer.norm_final", "final_norm", bias=True)
  if isinstance(cfg, InsertionConfig) and cfg.stop_head:
    head = "length_output_layer"
    rules += [
      *norm_rules(f"{head}.norm_final", "stop_head/norm", bias=True),
      Rule(f"{head}.mlp.0.weight", "stop_head/mlp/w_in", "e d -> d e"),
      Rule(f"{head}.mlp.0.bias", "stop_head/mlp/b_in", "e -> e"),
      Rule(f"{head}.mlp.2.weight", "stop_head/mlp/w_out", "d e -> e d"),
      Rule(f"{head}.mlp.2.bias", "stop_head/mlp/b_out", "d -> d"),
      Rule(f"{head}.linear.weight", "stop_head/w_out", "2 d -> 2 d"),
    ]
    sizes["e"] = 2 * cfg.d_model
  if isinstance(cfg, InsertionConfig) and cfg.slot_embedding:
    rules.append(Rule("type_embeddings.weight", "slot_embedding", "2 d -> 2 d"))
  else:
    ignore += (r"type_embeddings\.weight",)  # there by default, read by nobody
  return Table(tuple(rules), sizes, cfg.num_layers, ignore=ignore)


def diffusion_table(cfg: MaskedDiffusionConfig) -> Table:
  rules = [
    *_block_rules(bias=False),
    Rule("output_layer.norm_final.weight", "final_norm/norm/scale", "d -> d"),
    Rule("sigma_map.mlp.0.weight", "noise/w_in", "c s -> s c"),
    Rule("sigma_map.mlp.0.bias", "noise/b_in", "c -> c"),
    Rule("sigma_map.mlp.2.weight", "noise/w_out", "c x -> x c"),
    Rule("sigma_map.mlp.2.bias", "noise/b_out", "c -> c"),
  ]
  for theirs, ours, count in (
    ("encoder.{layer}.ada_ln_modulations", "blocks", 6),
    ("output_layer.adaLN_modulation", "final_norm", 2),
  ):
    rules += [
      Rule(f"{theirs}.modulation.weight", f"{ours}/w_mod", f"({count} d) c -> c {count} d"),
      Rule(f"{theirs}.modulation.bias", f"{ours}/b_mod", f"({count} d) -> {count} d"),
    ]
  sizes = _sizes(cfg, cfg.num_heads) | {"c": cfg.d_cond, "x": cfg.d_cond, "s": 256}
  return Table(tuple(rules), sizes, cfg.num_layers, ignore=BUFFERS)
