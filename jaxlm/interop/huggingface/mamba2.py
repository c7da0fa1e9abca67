"""Mamba-2 (Mamba2ForCausalLM): mixers only, a gated norm whose statistics are those of a group of
heads.
"""

from jaxlm.config import ConfigError
from jaxlm.interop.entries import Entry, EntryTable, mamba_entries
from jaxlm.interop.huggingface.architecture import Architecture
from jaxlm.interop.huggingface.table import Rule
from jaxlm.layers.mamba2 import Mamba2Config
from jaxlm.layers.norms import RMSNormConfig
from jaxlm.models.decoder import DecoderConfig

#: Of initialisation, of rounding and of kernels, or not read by the library: they do not change
#: what a trained model computes. `norm_before_gate` is one of them: files say true or false, and
#: the library always norms after the gate.
UNUSED = (
  "time_step_rank",
  "time_step_min",
  "time_step_max",
  "time_step_floor",
  "time_step_scale",
  "time_step_init_scheme",
  "rescale_prenorm_residual",
  "chunk_size",
  "residual_in_fp32",
  "A_initializer_range",
  "norm_before_gate",
)


NO_LIMIT = (0.0, float("inf"))
#: The spellings of that in JSON: of Python, and as text.
UNLIMITED = {(low, high) for low in ("0", "0.0") for high in ("inf", "Infinity")}


class Mamba2LM(Architecture):
  name, model_type = "Mamba2ForCausalLM", "mamba2"
  kept = UNUSED

  def read(self, fields, seq_len):
    D, N, H = (
      fields.size("hidden_size", 4096),
      fields.size("num_heads", 128),
      fields.size("head_dim", 64),
    )
    expand = fields.size("expand", 2)
    if N * H != expand * D:
      raise ConfigError(
        f"{fields.what}: num_heads * head_dim = {N * H}, wanted expand * hidden_size = {expand * D}"
      )
    fields.only("intermediate_size", expand * D, "it is expand * hidden_size")
    for name in UNUSED:
      fields.get(name)
    fields.only("use_conv_bias", True, "our convolution has a bias")
    fields.only("rms_norm", True, "our gated norm is an RMSNorm")
    fields.choice("hidden_act", {"silu": "silu", "swish": "silu"}, "silu")
    limit = fields.get("time_step_limit", NO_LIMIT)
    if not isinstance(limit, (list, tuple)) or tuple(map(str, limit)) not in UNLIMITED:
      raise ConfigError(
        f"{fields.what}: time_step_limit = {limit!r} is not supported (only [0, inf]): our step sizes have "
        f"no limit"
      )
    eps = float(fields.number("layer_norm_epsilon", 1e-5))
    mixer = Mamba2Config(
      d_state=fields.size("state_size", 128),
      d_conv=fields.size("conv_kernel", 4),
      expand=expand,
      head_dim=H,
      num_groups=fields.size("n_groups", 8),
      norm_eps=eps,
      use_bias=fields.get("use_bias", False),
    )
    return DecoderConfig(
      vocab_size=fields.size("vocab_size", 32768),
      d_model=D,
      num_layers=fields.size("num_hidden_layers", 64),
      mixer=mixer,
      mlp=None,
      norm=RMSNormConfig(eps=eps),
      tie_embeddings=fields.get("tie_word_embeddings", False),
    )

  def write(self, cfg, max_len):
    m = cfg.mixer
    if not isinstance(m, Mamba2Config) or m.followed_by_mlp or cfg.softcap:
      raise ConfigError("its layers are not Mamba-2 mixers alone")
    if m.num_groups > 1 and not m.norm_per_group:
      raise ConfigError(
        f"norm_per_group = False with num_groups = {m.num_groups}, this architecture's gated norm works per "
        f"group"
      )
    return dict(
      vocab_size=cfg.vocab_size,
      hidden_size=cfg.d_model,
      num_hidden_layers=cfg.num_layers,
      expand=m.expand,
      num_heads=m.num_heads(cfg.d_model),
      head_dim=m.head_dim,
      state_size=m.d_state,
      conv_kernel=m.d_conv,
      n_groups=m.num_groups,
      use_bias=m.use_bias,
      layer_norm_epsilon=cfg.norm.eps,
      tie_word_embeddings=cfg.tie_embeddings,
    )

  def table(self, cfg):
    return mamba_table(cfg, "backbone.embeddings.weight")


def mamba_table(cfg: DecoderConfig, embedding: str) -> EntryTable:
  """The names of the library, which are those of the first release up to the embedding's."""
  sizes = {"v": cfg.vocab_size, "d": cfg.d_model}

  def one(theirs, ours, axes, layer=None):
    return Entry(theirs, (Rule("", ours, axes),), sizes, layer)

  entries = [one(embedding, "embed/embedding", "v d -> v d")]
  for i in range(cfg.num_layers):
    entries.append(one(f"backbone.layers.{i}.norm.weight", "blocks/norm/scale", "d -> d", i))
    entries += mamba_entries(
      cfg.mixer, cfg.d_model, f"backbone.layers.{i}.mixer.", "blocks/mixer/", i
    )
  entries.append(one("backbone.norm_f.weight", "final_norm/scale", "d -> d"))
  if not cfg.tie_embeddings:
    entries.append(one("lm_head.weight", "head/w_out", "v d -> v d"))
  return EntryTable(tuple(entries), {"lm_head.weight": embedding} if cfg.tie_embeddings else {})


MAMBA2_LM = Mamba2LM()
