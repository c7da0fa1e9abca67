"""Isotropic stacks and the layout grammar of H-Net (`docs/specs/hnet.md` sections 2 and 3).

Axes: B batch, T time, D d_model, L layers of a run.

A layout is `<letter><count>` repeated: m Mamba-2, M Mamba-2 with MLP, t attention, T attention with
MLP. In the place of Mamba-2 a stack may have any other mixer (`IsotropicConfig.mamba`). Each such
run is one scanned stack, `run_0`, `run_1`, ..., so compile time does not grow with its count.
"""

import dataclasses
import re
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.config import ConfigError, checked
from jaxlm.layers.attention import AttentionConfig
from jaxlm.layers.mamba2 import Mamba2Config
from jaxlm.layers.mixer import PatternConfig, check_width
from jaxlm.layers.mlp import MLPConfig
from jaxlm.layers.norms import rms_norm
from jaxlm.layers.positions import NoPosition
from jaxlm.layers.stack import REMAT_POLICIES
from jaxlm.layers.taps import STACKED, tap
from jaxlm.layers.weights import ones, weights
from jaxlm.ranges import Count, Natural, NonNegative

LETTERS = {"m": "Mamba-2", "M": "Mamba-2 with MLP", "t": "attention", "T": "attention with MLP"}


class Run(NamedTuple):
  """`count` equal layers of one letter."""

  letter: str
  count: int

  @property
  def is_attention(self) -> bool:
    return self.letter in "tT"

  @property
  def has_mlp(self) -> bool:
    return self.letter in "MT"


class LayoutError(ConfigError):
  """A layout that cannot be read.

  `position` is the index of the first character that does not fit.
  """

  def __init__(self, layout: str, position: int, wanted: str):
    found = repr(layout[position]) if position < len(layout) else "the end"
    super().__init__(
      f"layout {layout!r}: character {position + 1} is {found}, wanted {wanted} "
      f'("{layout[:position]}" was understood)'
    )
    self.layout, self.position = layout, position


def parse_runs(layout: str, at: int = 0, whole: str | None = None) -> tuple[Run, ...]:
  """'T1m4' -> (Run('T', 1), Run('m', 4)). at, whole: where this piece sits in a longer layout, for
  messages.
  """
  whole, runs, i = layout if whole is None else whole, [], 0
  while i < len(layout):
    if layout[i] not in LETTERS:
      raise LayoutError(
        whole,
        at + i,
        "a letter "
        + ", ".join(f"{k} ({v})" for k, v in LETTERS.items())
        + (", or the bracket of an inner stage" if runs else ""),
      )
    digits = re.match("[0-9]*", layout[i + 1 :]).group()
    if not digits:
      raise LayoutError(whole, at + i + 1, f"the number of {layout[i]} layers")
    if int(digits) < 1:
      raise LayoutError(whole, at + i + 1, f"at least one {layout[i]} layer")
    runs.append(Run(layout[i], int(digits)))
    i += 1 + len(digits)
  if not runs:
    raise LayoutError(whole, at, "a run of layers, such as m4 or T22")
  return tuple(runs)


def parse_layout(layout):
  """'m4 [T1m4 [T26] m4T1] m4' -> (((encoder, decoder) runs of every outer stage), main network's
  runs).

  Also reads the nested lists of an official config, ["m4", ["T22"], "m4"].
  """
  if not isinstance(layout, str):
    layout = write_layout(layout)
  outer, main, end = _parse_stage(layout, 0)
  if end != len(layout):
    raise LayoutError(layout, end, "the end")
  return outer, main


def _parse_stage(layout: str, at: int):
  """(outer stages, main runs, index after the stage) of `runs` or `runs [stage] runs`."""
  first, at = _parse_text(layout, at)
  if at == len(layout) or layout[at] == "]":
    return (), first, at
  outer, main, at = _parse_stage(layout, at + 1)
  if at == len(layout):
    raise LayoutError(layout, at, "']', the end of an inner stage")
  last, at = _parse_text(layout, at + 1)
  return ((first, last), *outer), main, at


def _parse_text(layout: str, at: int):
  """(runs up to the next bracket, its index)."""
  end = re.compile(r"[^\[\]]*").match(layout, at).end()
  text = layout[at:end]
  return parse_runs(text.strip(), at + len(text) - len(text.lstrip()), layout), end


def write_layout(layout) -> str:
  """["m4", ["T22"], "m4"] -> 'm4 [T22] m4'."""
  items = list(layout) if isinstance(layout, (list, tuple)) else []
  if len(items) == 1 and isinstance(items[0], str):
    return items[0]
  if len(items) == 3 and isinstance(items[0], str) and isinstance(items[2], str):
    return f"{items[0]} [{write_layout(items[1])}] {items[2]}"
  raise ConfigError(
    f"layout {layout!r}: wanted [encoder, [inner ...], decoder] or [main], strings such as 'T1m4'"
  )


def height(runs: tuple[Run, ...]) -> int:
  """Number of additions to the residual stream, which scales the initial output projections."""
  return sum(run.count * (2 if run.has_mlp else 1) for run in runs)


@dataclasses.dataclass(frozen=True)
@checked
class IsotropicConfig:
  """A stack of one width.

  attention: of the letters t and T; mamba: any mixer, of m and M; d_ff: of M and T, rounded up to a
  multiple of 128.
  final_norm: every stack of an H-Net ends with its own norm. remat: see layers.stack.
  """

  runs: tuple[Run, ...]
  d_model: Count
  d_ff: Natural | None = None
  attention: AttentionConfig | None = None
  mamba: object = Mamba2Config()
  final_norm: bool = True
  norm_eps: NonNegative = 1e-5
  remat: str = "none"
  unroll: Count = 1
  dtype: str = "float32"

  def __post_init__(self):
    letters = {run.letter for run in self.runs}
    if letters & set("mM"):
      if isinstance(self.mamba, PatternConfig):
        raise ConfigError(
          "mamba = 'pattern': a run of layers has one mixer; write several runs, or a hybrid"
        )
      check_width(self.mamba, self.d_model)
    if letters & set("tT"):
      if self.attention is None:
        raise ConfigError(
          f"the layout has attention layers ({'/'.join(sorted(letters & set('tT')))}) at width "
          f"{self.d_model}, but its stage has no `attention`; give it one with `num_heads`"
        )
      self.attention.heads(self.d_model)
    if letters & set("MT") and self.d_ff is not None and self.d_ff < 1:
      raise ConfigError(
        f"d_ff = {self.d_ff}: the layout has layers with an MLP ({'/'.join(sorted(letters & set('MT')))}) "
        f"at width {self.d_model}; give its inner width"
      )

  def mixer(self, run: Run):
    return self.attention if run.is_attention else self.mamba

  @property
  def mlp(self) -> MLPConfig:
    wanted = int(8 * self.d_model / 3) if self.d_ff is None else self.d_ff
    return MLPConfig(d_ff=-(-wanted // 128) * 128, activation="silu", gated=True)

  @property
  def position(self):
    return (self.attention and self.attention.position) or NoPosition()

  @property
  def heads(self):
    """Of the attention layers, None without any."""
    return (
      self.attention.heads(self.d_model) if any(run.is_attention for run in self.runs) else None
    )

  def init_state(self, batch_size: int, max_len: int) -> "IsotropicState":
    """max_len: most tokens of this stack's own sequence (chunks, at inner stages)."""

    def stacked(run):
      return jax.tree.map(
        lambda x: jnp.broadcast_to(x[None], (run.count, *x.shape)),
        self.mixer(run).init_state(self.d_model, batch_size, max_len, self.dtype),
      )

    position = self.position.init_model_state(self.heads, batch_size) if self.heads else ()
    return IsotropicState(tuple(stacked(run) for run in self.runs), position)


class IsotropicState(NamedTuple):
  """runs: per run, the mixers' states stacked on a layer axis; position: of the position encoding."""

  runs: tuple
  position: Any


class Norm(nn.Module):
  """RMSNorm with float32 statistics of a float32 stream, then the compute dtype."""

  eps: float
  dtype: str

  @nn.compact
  def __call__(self, x_BTD):
    scale_D = weights(self)("scale", (x_BTD.shape[-1],), ("embed",), init=ones)
    return rms_norm(x_BTD.astype(jnp.float32), scale_D, self.eps).astype(self.dtype)


class Layer(nn.Module):
  """r += mixer(norm(r)); with an MLP r += mlp(norm(r)).

  The stream r is float32 whatever the compute dtype.
  """

  cfg: IsotropicConfig
  run: Run

  @nn.compact
  def __call__(self, r_BTD, context, state):
    cfg = self.cfg
    mixer = cfg.mixer(self.run).build(cfg.d_model, cfg.dtype, "mixer")
    y_BTD, state = mixer(
      tap(self, "attn_in", Norm(cfg.norm_eps, cfg.dtype, name="norm")(r_BTD)), context, state
    )
    y_BTD = tap(self, "attn_out", y_BTD)
    if self.run.has_mlp:
      r_BTD = r_BTD + y_BTD.astype(jnp.float32)
      h_BTD = tap(self, "mlp_in", Norm(cfg.norm_eps, cfg.dtype, name="mlp_norm")(r_BTD))
      y_BTD = tap(
        self, "mlp_out", cfg.mlp.build(cfg.d_model, cfg.dtype, "mlp")(h_BTD, context.depth)
      )
    self.sow("intermediates", "branch", y_BTD)  # read by parity tests only
    self.sow("intermediates", "residual", r_BTD)
    r_BTD = nn.with_logical_constraint(
      r_BTD + y_BTD.astype(jnp.float32), ("batch", "seq", "embed_act")
    )
    return tap(self, "resid", r_BTD), state


class Prepare(nn.Module):
  """What the position encoding computes once for the stack."""

  cfg: IsotropicConfig

  @nn.compact
  def __call__(self, x_BTD, context, state):
    position, heads = self.cfg.position, self.cfg.heads
    x_BTD = position.add(self, x_BTD, context)
    context = context.replace(embedding_BTD=x_BTD)
    shared, state = position.prepare(self, heads, context, state)
    return x_BTD, context.replace(shared=shared, shared_by=(position, heads)), state


class Isotropic(nn.Module):
  """y = norm(x + sum of the branches), in the compute dtype. x: (B, T, D)."""

  cfg: IsotropicConfig

  @nn.compact
  def __call__(self, x_BTD, context, state: IsotropicState | None = None):
    cfg, runs = self.cfg, []
    old = IsotropicState((None,) * len(cfg.runs), ()) if state is None else state
    position_state = old.position
    if cfg.heads is not None:
      if state is None:
        position_state = cfg.position.init_model_state(cfg.heads, x_BTD.shape[0])
      x_BTD, context, position_state = Prepare(cfg, name="position")(x_BTD, context, position_state)
    r_BTD = x_BTD.astype(jnp.float32)
    layer = (
      Layer
      if cfg.remat == "none"
      else nn.remat(Layer, policy=REMAT_POLICIES[cfg.remat], prevent_cse=False)
    )
    for i, run in enumerate(cfg.runs):
      scanned = nn.scan(
        layer,
        variable_axes=STACKED,
        split_rngs={"params": True},
        in_axes=(nn.broadcast, 0),
        out_axes=0,
        length=run.count,
        unroll=min(cfg.unroll, run.count),
        metadata_params={nn.PARTITION_NAME: "layers"},
      )
      r_BTD, run_state = scanned(cfg, run, name=f"run_{i}")(r_BTD, context, old.runs[i])
      runs.append(run_state)
    y_BTD = (
      Norm(cfg.norm_eps, cfg.dtype, name="final_norm")(r_BTD)
      if cfg.final_norm
      else r_BTD.astype(cfg.dtype)
    )
    return y_BTD, None if state is None else IsotropicState(tuple(runs), position_state)
