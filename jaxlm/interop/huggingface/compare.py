"""Whether two model configurations compute the same, whatever was left to defaults."""

import dataclasses

from jaxlm.checkpoint.model_json import tagged
from jaxlm.models.decoder import DecoderConfig
from jaxlm.models.encoder_decoder import EncoderDecoderConfig

#: How it is computed, not what.
EXECUTION = ("remat", "unroll", "dtype", "loss_chunk", "implementation")
#: How it began and was regularised.
TRAINING = ("scratch", "dropout")


def spelled_out(cfg: DecoderConfig) -> dict:
  """{dotted field: value} with every default resolved and one mixer entry per layer."""
  if not isinstance(cfg, DecoderConfig):
    if isinstance(cfg, EncoderDecoderConfig) and cfg.scale_logits is None:
      cfg = dataclasses.replace(cfg, scale_logits=cfg.tie_embeddings)
    return _one_group(
      {
        key: value
        for key, value in _flatten(tagged(cfg)).items()
        if key.split(".")[-1] not in (*EXECUTION, *TRAINING)
      }
    )
  layers = []
  for mixer in cfg.mixers:
    if (heads := mixer.heads(cfg.d_model)) is not None:
      position = mixer.position
      if hasattr(position, "rotary_dim"):
        position = dataclasses.replace(position, rotary_dim=position.rotary_dim or heads.head_dim)
      found = dict(num_kv_heads=heads.num_kv_heads, head_dim=heads.head_dim, position=position)
      if getattr(mixer, "scale", 1) is None:
        found["scale"] = heads.head_dim**-0.5
      has = {
        field.name for field in dataclasses.fields(mixer)
      }  # LaCT's attention leaves none of these open
      mixer = dataclasses.replace(
        mixer, **{key: value for key, value in found.items() if key in has}
      )
    layers.append(mixer)
  mlp = cfg.mlp and dataclasses.replace(cfg.mlp, d_ff=cfg.mlp.d_ff or 4 * cfg.d_model)
  position = cfg.position if cfg.heads is None or not hasattr(cfg.position, "rotary_dim") else None
  plain = tagged(dataclasses.replace(cfg, mlp=mlp))
  plain["mixer"] = {str(i): {"kind": type(m).__name__} | tagged(m) for i, m in enumerate(layers)}
  if position is None:  # each layer holds it
    plain.pop("position")
  return _one_group(
    {key: value for key, value in _flatten(plain).items() if key.split(".")[-1] not in EXECUTION}
  )


def _one_group(spelled: dict) -> dict:
  """With one group, a norm per group is a norm over all channels."""
  single = {
    key.removesuffix("num_groups")
    for key, value in spelled.items()
    if key.endswith("num_groups") and value == 1
  }
  return spelled | {
    f"{stem}norm_per_group": True for stem in single if f"{stem}norm_per_group" in spelled
  }


def differences(ours: DecoderConfig, theirs: DecoderConfig) -> list[str]:
  """Sentences, one per field in which the two differ; numbers to rounding."""
  a, b = spelled_out(ours), spelled_out(theirs)

  def same(x, y):
    return x == y or (
      isinstance(x, float) and isinstance(y, (int, float)) and abs(x - y) <= 1e-9 * abs(x)
    )

  return [
    f"{key} = {a.get(key)!r}, it would become {b.get(key)!r}"
    for key in dict.fromkeys([*a, *b])
    if not same(a.get(key), b.get(key))
  ]


def _flatten(value, prefix: str = "") -> dict:
  if isinstance(value, dict):
    return {
      k: v
      for key, item in value.items()
      for k, v in _flatten(item, f"{prefix}.{key}".lstrip(".")).items()
    }
  if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
    return _flatten({str(i): item for i, item in enumerate(value)}, prefix)
  return {prefix: value}
