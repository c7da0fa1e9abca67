"""Mamba-2 (Mamba2ForCausalLM): mixers only, a gated norm over all channels."""

from jaxlm.config import ConfigError
from jaxlm.interop.entries import Entry, EntryTable, mamba_entries
from jaxlm.interop.huggingface.architecture import Architecture
from jaxlm.interop.huggingface.table import Rule
from jaxlm.layers.mamba2 import Mamba2Config
from jaxlm.layers.norms import RMSNormConfig
from jaxlm.models.decoder import DecoderConfig

#: Of initialisation and of kernels: they do not change what a trained model computes.
UNUSED = ("time_step_rank", "time_step_min", "time_step_max", "time_step_floor", "rescale_prenorm_residual",
          "chunk_size", "residual_in_fp32", "A_initializer_range", "use_cache")


class Mamba2LM(Architecture):
  name, model_type = "Mamba2ForCausalLM", "mamba2"

  def read(self, fields, seq_len):
    D, N, H = fields.size("hidden_size", 4096), fields.size("num_heads", 128), fields.size("head_dim", 64)
    expand = fields.size("expand", 2)
    if N * H != expand * D:
      raise ConfigError(f"{fields.what}: num_heads * head_dim = {N * H}, wanted expand * hidden_size = {expand * D}")
    for name in UNUSED:
      fields.get(name)
    fields.only("use_conv_bias", True, "our convolution has a bias")
    fields.only("rms_norm", True, "our gated norm is an RMSNorm")
    fields.only("norm_before_gate", False, "our norm follows the gate")
    fields.only("hidden_act", "silu", "the convolution is followed by silu")
    limit = [float(x) for x in fields.get("time_step_limit", (0.0, float("inf")))]
    if limit != [0.0, float("inf")]:
      raise ConfigError(f"{fields.what}: time_step_limit = {limit} is not supported (only [0, inf])")
    eps = float(fields.number("layer_norm_epsilon", 1e-5))
    mixer = Mamba2Config(d_state=fields.size("state_size", 128), d_conv=fields.size("conv_kernel", 4), expand=expand,
                         head_dim=H, num_groups=fields.size("n_groups", 8), norm_per_group=False, norm_eps=eps,
                         use_bias=fields.get("use_bias", False))
    return DecoderConfig(vocab_size=fields.size("vocab_size", 32768), d_model=D,
                         num_layers=fields.size("num_hidden_layers", 64), mixer=mixer, mlp=None,
                         norm=RMSNormConfig(eps=eps), tie_embeddings=fields.get("tie_word_embeddings", False))

  def write(self, cfg, max_len):
    m = cfg.mixer
    if not isinstance(m, Mamba2Config) or m.norm_per_group and m.num_groups > 1 or m.followed_by_mlp or cfg.softcap:
      raise ConfigError("its layers are not Mamba-2 mixers alone, with a gated norm over all channels")
    return dict(
        vocab_size=cfg.vocab_size, hidden_size=cfg.d_model, num_hidden_layers=cfg.num_layers, expand=m.expand,
        num_heads=m.num_heads(cfg.d_model), head_dim=m.head_dim, state_size=m.d_state, conv_kernel=m.d_conv,
        n_groups=m.num_groups, use_bias=m.use_bias, layer_norm_epsilon=cfg.norm.eps,
        tie_word_embeddings=cfg.tie_embeddings)

  def table(self, cfg):
    sizes = {"v": cfg.vocab_size, "d": cfg.d_model}
    one = lambda theirs, ours, axes, layer=None: Entry(theirs, (Rule("", ours, axes),), sizes, layer)
    entries = [one("backbone.embeddings.weight", "embed/embedding", "v d -> v d")]
    for i in range(cfg.num_layers):
      entries.append(one(f"backbone.layers.{i}.norm.weight", "blocks/norm/scale", "d -> d", i))
      entries += mamba_entries(cfg.mixer, cfg.d_model, f"backbone.layers.{i}.mixer.", "blocks/mixer/", i)
    entries.append(one("backbone.norm_f.weight", "final_norm/scale", "d -> d"))
    if not cfg.tie_embeddings:
      entries.append(one("lm_head.weight", "head/w_out", "v d -> v d"))
    return EntryTable(tuple(entries), ("lm_head.weight",) if cfg.tie_embeddings else ())


MAMBA2_LM = Mamba2LM()
