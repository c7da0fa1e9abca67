"""Isotropic stacks of H-Net (`docs/specs/hnet.md` section 3): runs of equal layers in one width.

Axes: B batch, T time, D d_model, L layers of a run.

Each run of a layout (`layers.layout`) is one scanned stack, `run_0`, `run_1`, ..., so compile time
does not grow with its count. In the place of Mamba-2 a stack may have any other mixer
(`IsotropicConfig.mamba`).
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from jaxlm.config import ConfigError, checked
from jaxlm.layers import stack
from jaxlm.layers.attention import AttentionConfig
from jaxlm.layers.layout import Run
from jaxlm.layers.mamba2 import Mamba2Config
from jaxlm.layers.mixer import Context, PatternConfig, check_width, given_or_plain
from jaxlm.layers.mlp import MLPConfig
from jaxlm.layers.norms import RMSNormConfig
from jaxlm.layers.positions import NoPosition
from jaxlm.layers.positions.shared import SharedPosition
from jaxlm.layers.rewind import trail
from jaxlm.ranges import Count, Natural, NonNegative


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
      if self.mamba.reads_embedding:
        raise ConfigError(
          f"mamba = {type(self.mamba).__name__}: this part of the model is not handed the embedding that "
          "it reads; use another mixer"
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

  @property
  def norm(self) -> RMSNormConfig:
    return RMSNormConfig(self.norm_eps)

  def block(self, run: Run) -> stack.BlockConfig:
    """What surrounds a run's mixers. The residual stream is float32 whatever the compute dtype."""
    return stack.BlockConfig(
      self.d_model,
      self.mlp if run.has_mlp else None,
      self.norm,
      remat=self.remat,
      unroll=self.unroll,
      dtype=self.dtype,
      residual_dtype="float32",
    )

  def init_state(self, batch_size: int, max_len: int, rewindable: int = 0) -> "IsotropicState":
    """max_len: most tokens of this stack's own sequence (chunks, at inner stages)."""
    position = self.position.init_model_state(self.heads, batch_size) if self.heads else ()
    runs = tuple(
      stack.init_states(
        self.block(run), (self.mixer(run),) * run.count, 1, batch_size, max_len, rewindable
      )
      for run in self.runs
    )
    return IsotropicState(runs, trail(position, rewindable))


class IsotropicState(NamedTuple):
  """runs: per run, the mixers' states stacked on a layer axis; position: of the position encoding."""

  runs: tuple
  position: Any


class Isotropic(nn.Module):
  """y = norm(x + sum of the branches), in the compute dtype. x: (B, T, D)."""

  cfg: IsotropicConfig

  @nn.compact
  def __call__(self, x_BTD, context: Context | None = None, state: IsotropicState | None = None):
    context = given_or_plain(context, x_BTD, state)
    cfg, runs = self.cfg, []
    old = IsotropicState((None,) * len(cfg.runs), ()) if state is None else state
    position_state = old.position
    if cfg.heads is not None:
      if state is None:
        position_state = cfg.position.init_model_state(cfg.heads, x_BTD.shape[0])
      shared = SharedPosition(cfg.position, cfg.heads, name="position")
      x_BTD, context, position_state = shared(x_BTD, context, position_state)
    r_BTD = x_BTD.astype(jnp.float32)
    for i, run in enumerate(cfg.runs):
      layers = stack.uniform(
        cfg.block(run), cfg.mixer(run), run.count, f"run_{i}", mlp_follows=run.has_mlp
      )
      r_BTD, run_state = layers(r_BTD, context, old.runs[i])
      runs.append(run_state)
    if cfg.final_norm:
      r_BTD = cfg.norm.build("float32", "final_norm")(r_BTD)
    y_BTD = r_BTD.astype(cfg.dtype)
    return y_BTD, None if state is None else IsotropicState(tuple(runs), position_state)
