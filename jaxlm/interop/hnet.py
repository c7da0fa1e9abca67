"""Official H-Net configs and checkpoints (flat names; `docs/specs/hnet.md` sections 2 and 21), in
and out.

Axis letters: d width of the stage, n heads, h head_dim, f d_ff, k groups, e state size, j taps, v
vocabulary.
"""

import json
import pathlib
from collections.abc import Mapping

from jaxlm.config import ConfigError, nearest
from jaxlm.interop.entries import Entry, EntryTable, export_params, import_params, mamba_entries
from jaxlm.interop.huggingface.architecture import Architecture
from jaxlm.interop.huggingface.table import Rule
from jaxlm.layers.attention import AttentionConfig
from jaxlm.layers.embedding import EmbeddingConfig
from jaxlm.layers.isotropic import IsotropicConfig
from jaxlm.layers.mamba2 import Mamba2Config
from jaxlm.layers.mixer import MIXERS
from jaxlm.layers.positions import NoPosition
from jaxlm.layers.positions.rope import RoPE
from jaxlm.models.hnet import HNetConfig, StageConfig

SSM = {
  "d_conv": "d_conv",
  "expand": "expand",
  "d_state": "d_state",
  "headdim": "head_dim",
  "ngroups": "num_groups",
}
__all__ = [
  "HNET",
  "entries",
  "export_params",
  "import_params",
  "load",
  "mamba_entries",
  "read_config",
  "write_config",
]

FIELDS = {
  "arch_layout",
  "d_model",
  "d_intermediate",
  "vocab_size",
  "ssm_cfg",
  "attn_cfg",
  "tie_embeddings",
}


def read_config(mapping: Mapping, **options) -> HNetConfig:
  """HNetConfig of an official config. A list in ssm_cfg or attn_cfg is indexed by stage; a scalar
  serves all.

  options: fields of HNetConfig that an official config does not have (dtype, remat, ...).
  """
  for key in mapping:
    if key not in FIELDS:
      raise ConfigError(f"official H-Net config: unknown field {key!r}; {nearest(key, FIELDS)}")
  for key in ("arch_layout", "d_model", "d_intermediate"):
    if key not in mapping:
      raise ConfigError(f"official H-Net config: no {key!r}")
  widths, ssm, attention = (
    mapping["d_model"],
    mapping.get("ssm_cfg") or {},
    mapping.get("attn_cfg") or {},
  )

  def pick(cfg, key, s, default=None):
    value = cfg.get(key, default)
    if isinstance(value, (list, tuple)):
      if len(value) != len(widths):
        raise ConfigError(
          f"official H-Net config: {key} = {value} has {len(value)} values for {len(widths)} stages"
        )
      return value[s]
    return value

  unknown = [
    k for k in ssm if k not in SSM and k != "chunk_size"
  ]  # the chunk is a schedule, not the model's
  unknown += [k for k in attention if k not in ("num_heads", "rotary_emb_dim", "window_size")]
  if unknown:
    raise ConfigError(
      f"official H-Net config: {unknown[0]!r} is not supported; "
      f"{nearest(unknown[0], [*SSM, 'num_heads', 'rotary_emb_dim', 'window_size'])}"
    )

  def stage(s):
    rotary, window = pick(attention, "rotary_emb_dim", s, 0), pick(attention, "window_size", s, -1)
    heads = pick(attention, "num_heads", s)
    # Their window counts the keys before the query, ours counts the query too.
    mixer = (
      None
      if heads is None
      else AttentionConfig(
        num_heads=heads,
        position=RoPE(rotary_dim=rotary) if rotary else NoPosition(),
        window=None if window < 0 else window + 1,
      )
    )
    mamba = Mamba2Config(**{SSM[k]: pick(ssm, k, s) for k in ssm if k in SSM})
    return StageConfig(
      d_model=widths[s], d_ff=pick(mapping, "d_intermediate", s), attention=mixer, mamba=mamba
    )

  options.setdefault("embedding", EmbeddingConfig(init_std=1.0))
  return HNetConfig(
    layout=mapping["arch_layout"],
    stages=tuple(map(stage, range(len(widths)))),
    vocab_size=mapping.get("vocab_size", 256),
    tie_embeddings=mapping.get("tie_embeddings", False),
    **options,
  )


def write_config(cfg: HNetConfig) -> dict:
  """The official config of this model; what it cannot say is lost: read it back and compare, as
  `jaxlm convert` does.
  """
  for s, stage in enumerate(cfg.stages):
    if not isinstance(stage.mamba, Mamba2Config):
      raise ConfigError(
        f"stages[{s}].mamba = {MIXERS.kind_of(stage.mamba)!r}: a released H-Net has Mamba-2 there; keep this model in "
        f"jaxlm's own format (`jaxlm convert --from RUN --to DIR`)"
      )
  heads = [stage.attention and stage.attention.heads(stage.d_model) for stage in cfg.stages]

  def turned(position, h):
    return (position.rotary_dim or h.head_dim) if isinstance(position, RoPE) else 0

  def window(attention):
    return -1 if attention is None or attention.window is None else attention.window - 1

  ssm = {
    name: _shared([getattr(stage.mamba, ours) for stage in cfg.stages])
    for name, ours in SSM.items()
  }
  for name, default in (("headdim", 64), ("ngroups", 1)):  # the release takes them for granted
    if ssm[name] == default:
      del ssm[name]
  return dict(
    arch_layout=nested_layout(cfg),
    d_model=[stage.d_model for stage in cfg.stages],
    d_intermediate=[stage.d_ff for stage in cfg.stages],
    vocab_size=cfg.vocab_size,
    ssm_cfg=ssm | {"chunk_size": 256},
    attn_cfg=dict(
      num_heads=[h and h.num_heads for h in heads],
      rotary_emb_dim=[
        h and turned(stage.attention.position, h) for h, stage in zip(heads, cfg.stages)
      ],
      window_size=[window(stage.attention) for stage in cfg.stages],
    ),
    tie_embeddings=cfg.tie_embeddings,
  )


def nested_layout(cfg: HNetConfig) -> list:
  """'m4 [T1m4 [T26] m4T1] m4' -> ["m4", ["T1m4", ["T26"], "m4T1"], "m4"]."""

  def text(runs):
    return "".join(f"{run.letter}{run.count}" for run in runs)

  outer, main = cfg.parsed
  layout = [text(main)]
  for encoder, decoder in reversed(outer):
    layout = [text(encoder), layout, text(decoder)]
  return layout


def _shared(values: list):
  return values[0] if len(set(values)) == 1 else values


class HNetRelease(Architecture):
  """The released files: a JSON that names no architecture, and flat names."""

  name, model_type, bare, own_head = "HNet", "hnet", True, False

  def read(self, fields, seq_len):
    return read_config({key: fields.get(key) for key in FIELDS if key in fields.mapping})

  def write(self, cfg, max_len):
    if not isinstance(cfg, HNetConfig):
      raise ConfigError("it has no stages")
    return write_config(cfg)

  def table(self, cfg):
    return EntryTable(tuple(entries(cfg)), tied_names(cfg))


HNET = HNetRelease()


def tied_names(cfg: HNetConfig) -> dict[str, str]:
  return {"lm_head.weight": "embeddings.weight"} if cfg.tie_embeddings else {}


def entries(cfg: HNetConfig) -> list[Entry]:
  """Every array of an official checkpoint of this model."""
  sizes = {"v": cfg.vocab_size, "d": cfg.d_model}
  out = [Entry("embeddings.weight", (Rule("", "embed/embedding", "v d -> v d"),), sizes)]
  out += _stage(cfg, 0, "backbone.", "backbone/")
  if not cfg.tie_embeddings:
    out.append(Entry("lm_head.weight", (Rule("", "head/w_out", "v d -> v d"),), sizes))
  return out


def _stage(cfg: HNetConfig, s: int, theirs: str, ours: str) -> list[Entry]:
  D, out = cfg.stages[s].d_model, []

  def one(name, path, axes, **sizes):
    return Entry(theirs + name, (Rule("", ours + path, axes),), {"d": D, **sizes})

  if s > 0 and D > cfg.stages[s - 1].d_model:
    out.append(one("pad_dimension", "pad", "d -> d", d=D - cfg.stages[s - 1].d_model))
  if s == cfg.num_chunkings:
    return out + stack_entries(
      cfg.stack(s, cfg.runs(s)[0]), f"{theirs}main_network.", f"{ours}main/"
    )
  for name, runs in zip(("encoder", "decoder"), cfg.runs(s)):
    out += stack_entries(cfg.stack(s, runs), f"{theirs}{name}.", f"{ours}{name}/")
  out += router_entries(D, f"{theirs}routing_module.", f"{ours}router/")
  out += [
    one("residual_proj.weight", "w_residual", "c d -> d c", c=D),
    one("residual_proj.bias", "b_residual", "d -> d"),
  ]
  return out + _stage(cfg, s + 1, f"{theirs}main_network.", f"{ours}inner/")


def router_entries(d_model: int, theirs: str, ours: str) -> list[Entry]:
  sizes = {"d": d_model, "c": d_model}
  return [
    Entry(f"{theirs}{x}_proj_layer.weight", (Rule("", f"{ours}w_{x}", "c d -> d c"),), sizes)
    for x in "qk"
  ]


def stack_entries(stack: IsotropicConfig, theirs: str, ours: str) -> list[Entry]:
  """Of one isotropic stack: `layers.{i}.`, numbered through its runs, and `rmsnorm`."""
  out, i = [], 0
  for r, run in enumerate(stack.runs):
    for layer in range(run.count):
      out += layer_entries(stack, run, f"{theirs}layers.{i}.", f"{ours}run_{r}/", layer)
      i += 1
  return out + [
    Entry(
      f"{theirs}rmsnorm.weight",
      (Rule("", f"{ours}final_norm/scale", "d -> d"),),
      {"d": stack.d_model},
    )
  ]


def layer_entries(
  stack: IsotropicConfig, run, theirs: str, ours: str, layer: int | None
) -> list[Entry]:
  def one(name, path, axes):
    return Entry(theirs + name, (Rule("", ours + path, axes),), {"d": stack.d_model}, layer)

  out = [one("norm1.weight", "norm/scale", "d -> d")]
  mixer = f"{theirs}mixer.", f"{ours}mixer/", layer
  out += (
    attention_entries(stack, *mixer)
    if run.is_attention
    else mamba_entries(stack.mamba, stack.d_model, *mixer)
  )
  if run.has_mlp:
    out += [one("norm2.weight", "mlp_norm/scale", "d -> d")] + mlp_entries(
      stack, f"{theirs}mlp.", f"{ours}mlp/", layer
    )
  return out


def mlp_entries(
  stack: IsotropicConfig, theirs: str, ours: str, layer: int | None = None
) -> list[Entry]:
  sizes = {"d": stack.d_model, "f": stack.mlp.d_ff}
  # The second half of fc1 is the gate.
  return [
    Entry(
      f"{theirs}fc1.weight",
      (Rule("", (f"{ours}w_in", f"{ours}w_gate"), "(2 f) d -> 2 d f"),),
      sizes,
      layer,
    ),
    Entry(f"{theirs}fc2.weight", (Rule("", f"{ours}w_out", "d f -> f d"),), sizes, layer),
  ]


def attention_entries(
  stack: IsotropicConfig, theirs: str, ours: str, layer: int | None = None
) -> list[Entry]:
  heads = stack.attention.heads(stack.d_model)
  sizes = {"d": stack.d_model, "n": heads.num_heads, "h": heads.head_dim}
  qkv = tuple(f"{ours}w_{x}" for x in "qkv")
  return [
    Entry(f"{theirs}Wqkv.weight", (Rule("", qkv, "(3 n h) d -> 3 d n h"),), sizes, layer),
    Entry(f"{theirs}out_proj.weight", (Rule("", f"{ours}w_o", "d (n h) -> n h d"),), sizes, layer),
  ]


def load(config_file, weights_file, **options) -> tuple[HNetConfig, dict]:
  """(model config, params) of an official config JSON and checkpoint (torch or safetensors)."""
  from jaxlm.checkpoint.weight_files import read_weights

  cfg = read_config(json.loads(pathlib.Path(config_file).read_text()), **options)
  return cfg, import_params(entries(cfg), read_weights(weights_file), tied=tied_names(cfg))
