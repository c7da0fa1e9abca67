"""Mamba-2 as first released (`state-spaces/mamba2-*`): the config.json and names of the package
mamba_ssm.

Read only: the package loads nothing but torch files; what is read can be written as
Mamba2ForCausalLM.
"""

from jaxlm.config import ConfigError
from jaxlm.interop.huggingface.architecture import Architecture
from jaxlm.interop.huggingface.fields import Fields
from jaxlm.interop.huggingface.mamba2 import NO_LIMIT, UNLIMITED, mamba_table
from jaxlm.layers.mamba2 import Mamba2Config
from jaxlm.layers.norms import RMSNormConfig
from jaxlm.models.decoder import DecoderConfig

EPS = 1e-5  # of both norms; no field says otherwise
#: Of initialisation and of kernels.
UNUSED = (
  "conv_init",
  "A_init_range",
  "dt_min",
  "dt_max",
  "dt_init_floor",
  "chunk_size",
  "use_mem_eff_path",
)


class MambaSSM(Architecture):
  name, model_type, bare, own_head = "MambaLMHeadModel", "mamba_ssm", True, False

  def read(self, fields, seq_len):
    D = fields.size("d_model", 2560)
    fields.only("d_intermediate", 0, "its blocks are mixers without an MLP")
    fields.only("rms_norm", True, "its norms are RMSNorms")
    fields.only("attn_layer_idx", [], "all its layers are Mamba-2 mixers, none is attention")
    for name in ("attn_cfg", "residual_in_fp32", "fused_add_norm"):
      fields.get(name)  # of attention layers, of rounding, of kernels
    ssm = fields.get("ssm_cfg", {})
    if not isinstance(ssm, dict):
      raise ConfigError(f"{fields.what}: ssm_cfg = {ssm!r}, wanted a mapping")
    multiple, size = fields.size("pad_vocab_size_multiple", 8), fields.size("vocab_size", 50277)
    return DecoderConfig(
      vocab_size=-(-size // multiple) * multiple,
      d_model=D,
      num_layers=fields.size("n_layer", 64),
      mixer=read_mixer(Fields(ssm, f"{fields.what}: ssm_cfg"), D),
      mlp=None,
      norm=RMSNormConfig(eps=EPS),
      tie_embeddings=fields.get("tie_embeddings", True),
    )

  def write(self, cfg, max_len):
    raise ConfigError(
      "this format is read only, its package loads nothing but torch files; write Mamba2ForCausalLM"
    )

  def table(self, cfg):
    return mamba_table(cfg, "backbone.embedding.weight")


def read_mixer(fields: Fields, d_model: int) -> Mamba2Config:
  layer = fields.get("layer", "Mamba1")
  if layer != "Mamba2":
    raise ConfigError(
      f"{fields.what}: layer = {layer!r} is not supported (only 'Mamba2'): Mamba-1 is another mixer"
    )
  expand = fields.size("expand", 2)
  fields.only("d_ssm", expand * d_model, "all inner channels pass the state space")
  fields.only("D_has_hdim", False, "a head has one skip weight")
  fields.only("rmsnorm", True, "its gated norm is an RMSNorm")
  fields.only("norm_before_gate", False, "its norm follows the gate")
  fields.only("conv_bias", True, "its convolution has a bias")
  if tuple(map(str, fields.get("dt_limit", NO_LIMIT))) not in UNLIMITED:
    raise ConfigError(
      f"{fields.what}: dt_limit = {fields.get('dt_limit')!r} is not supported (only [0, inf])"
    )
  for name in UNUSED:
    fields.get(name)
  mixer = Mamba2Config(
    d_state=fields.size("d_state", 128),
    d_conv=fields.size("d_conv", 4),
    expand=expand,
    head_dim=fields.size("headdim", 64),
    num_groups=fields.size("ngroups", 1),
    norm_eps=EPS,
    use_bias=fields.get("bias", False),
  )
  fields.done()
  return mixer


MAMBA_SSM = MambaSSM()
