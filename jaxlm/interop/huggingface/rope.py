"""`rope_parameters` (and the older `rope_scaling`) <-> RoPE."""

import math
from collections.abc import Mapping

from jaxlm.config import ConfigError
from jaxlm.interop.huggingface.fields import Fields
from jaxlm.layers.positions.rope import NTK, Interpolation, Llama3, RoPE, YaRN


def read_rope(
  fields: Fields,
  head_dim: int,
  *,
  partial: float = 1.0,
  partial_allowed: bool = False,
  max_len: int,
  seq_len: int | None = None,
) -> RoPE:
  """RoPE from a config. partial: default fraction of the head that turns.

  max_len: max_position_embeddings. seq_len: longest sequence; only `dynamic` asks for it, whose
  frequencies depend on the length of the input and are fixed here for that one (default max_len).
  """
  theta = fields.get("rope_theta", fields.get("rotary_emb_base", 10000.0))
  partial = fields.get("rotary_pct", fields.get("partial_rotary_factor", partial))
  given = fields.get("rope_scaling") or fields.get("rope_parameters") or {}
  if not isinstance(given, Mapping):
    raise ConfigError(f"{fields.what}: rope_parameters = {given!r}, wanted a mapping")
  rope = Fields(given, f"{fields.what}: rope_parameters")
  kind = rope.get("rope_type", rope.get("type", "default"))
  theta, partial = rope.number("rope_theta", theta), rope.number("partial_rotary_factor", partial)
  if partial != 1 and not partial_allowed:
    raise ConfigError(
      f"{rope.what}: partial_rotary_factor = {partial} is not supported: this architecture turns whole "
      f"heads"
    )
  if not isinstance(kind, str) or kind not in _SCALINGS:
    raise ConfigError(
      f"{rope.what}: rope_type = {kind!r} is not supported; known: {', '.join(_SCALINGS)}"
    )
  scaling = _SCALINGS[kind](rope, int(head_dim * partial), max_len, seq_len or max_len)
  rope.done()
  return RoPE(
    theta=float(theta), rotary_dim=_rotary_dim(rope, head_dim, partial, scaling), scaling=scaling
  )


def _rotary_dim(rope: Fields, head_dim: int, partial: float, scaling) -> int | None:
  """Channels that turn: the library's int(head_dim * partial), where that is even."""
  dim = int(head_dim * partial)
  if dim == head_dim and dim % 2 == 0:
    return None
  if dim == 1 and scaling is None:
    return 2  # the library makes one pair of the frequency theta^0
  if dim % 2 or dim < 2:
    raise ConfigError(
      f"{rope.what}: {dim} of {head_dim} channels turn, which is not supported: they must form pairs"
    )
  return dim


def fixed_length(config: Mapping, seq_len: int | None = None) -> int | None:
  """The length of input for which a `dynamic` RoPE is fixed, None for any other: beyond it the
  library would go on stretching.
  """
  given = config.get("rope_scaling") or config.get("rope_parameters") or {}
  kind = given.get("rope_type", given.get("type")) if isinstance(given, Mapping) else None
  return (
    max(seq_len or 0, config.get("max_position_embeddings") or 0) if kind == "dynamic" else None
  )


def _default(rope, dim, max_len, seq_len):
  return None


def _linear(rope, dim, max_len, seq_len):
  return Interpolation(float(rope.number("factor")))


def _dynamic(rope, dim, max_len, seq_len):
  factor, length = rope.number("factor"), max(seq_len, max_len)
  rope.get("original_max_position_embeddings")  # the library reads max_position_embeddings instead
  stretch = factor * length / max_len - (factor - 1)
  return NTK(float(stretch)) if stretch != 1 else None


def _yarn(rope, dim, max_len, seq_len):
  original = rope.size("original_max_position_embeddings", max_len)
  factor = float(rope.number("factor", max_len / original))
  attention_factor = rope.get("attention_factor")
  mscale, all_dim = rope.get("mscale"), rope.get("mscale_all_dim")
  if attention_factor is None and mscale and all_dim:

    def size(m):
      return 0.1 * m * math.log(factor) + 1 if factor > 1 else 1.0

    attention_factor = size(mscale) / size(all_dim)
  return YaRN(
    factor=factor,
    original_len=original,
    beta_fast=float(rope.get("beta_fast") or 32),
    beta_slow=float(rope.get("beta_slow") or 1),
    truncate=rope.get("truncate", True),
    attention_factor=None if attention_factor is None else float(attention_factor),
  )


def _llama3(rope, dim, max_len, seq_len):
  return Llama3(
    factor=float(rope.number("factor")),
    original_len=rope.size("original_max_position_embeddings", max_len),
    low_freq_factor=float(rope.number("low_freq_factor")),
    high_freq_factor=float(rope.number("high_freq_factor")),
  )


_SCALINGS = {
  "default": _default,
  "linear": _linear,
  "dynamic": _dynamic,
  "yarn": _yarn,
  "llama3": _llama3,
}


def write_rope(position, head_dim: int) -> dict:
  """rope_parameters of a RoPE.

  Raises ConfigError for a position encoding that the library cannot express.
  """
  if not isinstance(position, RoPE):
    raise ConfigError(f"positions are {type(position).__name__}, this architecture has RoPE only")
  if position.layout != "half":
    raise ConfigError("RoPE's layout is 'interleaved', this architecture turns halves")
  scaling, out = position.scaling, {"rope_theta": position.theta}
  if position.rotary_dim not in (None, head_dim):
    out["partial_rotary_factor"] = position.rotary_dim / head_dim
  match scaling:
    case None:
      return out | {"rope_type": "default"}
    case Interpolation():
      return out | {"rope_type": "linear", "factor": scaling.factor}
    case YaRN():
      out |= {
        "rope_type": "yarn",
        "factor": scaling.factor,
        "original_max_position_embeddings": scaling.original_len,
        "beta_fast": scaling.beta_fast,
        "beta_slow": scaling.beta_slow,
        "truncate": scaling.truncate,
      }
      return (
        out
        if scaling.attention_factor is None
        else out | {"attention_factor": scaling.attention_factor}
      )
    case Llama3():
      return out | {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_len,
      }
    case NTK():  # a fixed stretch of the base is just another base
      dim = position.rotary_dim or head_dim
      return out | {
        "rope_type": "default",
        "rope_theta": position.theta * scaling.factor ** (dim / max(dim - 2, 1)),
      }
  raise ConfigError(f"RoPE scaling {type(scaling).__name__} has no counterpart in rope_parameters")
