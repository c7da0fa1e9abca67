"""What an H-Net is made of: its layout, its stages and how chunks rejoin their positions
(docs/specs/hnet.md).

Axes: B batch, D d_model.
"""

import dataclasses
from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.config import ConfigError, checked
from jaxlm.layers.attention import AttentionConfig
from jaxlm.layers.embedding import EMBEDDINGS, EmbeddingConfig
from jaxlm.layers.isotropic import IsotropicConfig
from jaxlm.layers.layout import Run, height, parse_layout, write_layout
from jaxlm.layers.lexinvariant import check_embedding
from jaxlm.layers.mamba2 import Mamba2Config
from jaxlm.layers.mixer import MIXERS
from jaxlm.layers.rewind import Reach, trail
from jaxlm.layers.routers import ROUTERS, CosineRouter, ExternalBoundaries
from jaxlm.models.base import ModelConfig, StackPart
from jaxlm.models.hnet_state import HNetState, StageState, rewind_stage
from jaxlm.ranges import Count, Dtype, Natural, NonNegative


@dataclasses.dataclass(frozen=True)
@checked
class StageConfig:
  """What one stage is made of, where its layout asks for it.

  attention: of t and T (its window counts positions of this stage). mamba: of m and M, Mamba-2 or
  any other mixer, with a position of its own where it takes one. d_ff: of M and T, rounded up to a
  multiple of 128; None = 8/3 d_model, 0 where there is no M or T. router: where the next stage's
  chunks start; unused in the innermost.
  """

  d_model: Count
  d_ff: Natural | None = None
  attention: AttentionConfig | None = None
  mamba: Annotated[object, MIXERS.with_default("mamba2")] = Mamba2Config()
  router: Annotated[object, ROUTERS] = CosineRouter()


@dataclasses.dataclass(frozen=True)
@checked
class JoinConfig:
  """How chunks rejoin their positions. All but the defaults are baselines and ablations of the
  paper.

  smooth: the moving average with weights P; otherwise chunks are repeated. confident: times STE(c).
  residual: a float32 projection of the encoder's output, or that output itself (SpaceByte).
  rows_per_buffer: neighbouring rows of the batch whose chunks share one buffer, told apart by
  segment ids. With the
    rows of a device, less headroom suffices, since totals spread less than rows (section 16).
  """

  smooth: bool = True
  confident: bool = True
  residual: Literal["projection", "identity"] = "projection"
  rows_per_buffer: Count = 1


@dataclasses.dataclass(frozen=True)
@checked
class HNetConfig(ModelConfig):
  """layout: 'm4 [T1m4 [T26] m4T1] m4', or the nested lists of an official config; one stage per
  level, outside in.

  network_norm: every stack ends with its own norm; otherwise only the outermost decoder.
  loss_chunk, remat, unroll, dtype: as in the decoder.
  """

  layout: object
  stages: tuple[StageConfig, ...]
  vocab_size: Count = 256
  embedding: Annotated[object, EMBEDDINGS] = EmbeddingConfig(init_std=1.0)
  join: JoinConfig = JoinConfig()
  network_norm: bool = True
  tie_embeddings: bool = False
  norm_eps: NonNegative = 1e-5
  remat: Literal["none", "full", "minimal", "dots"] = "none"
  unroll: Count = 1
  dtype: Dtype = "float32"
  loss_chunk: Count | None = None

  float32_params = (
    "w_residual",
  )  # for train.gather_dtype: the residual projection is one of float32

  def __post_init__(self):
    if not isinstance(self.layout, str):
      object.__setattr__(self, "layout", write_layout(self.layout))  # configs are hashable
    check_embedding(self.embedding, self.tie_embeddings)
    outer, _ = self.parsed
    if len(self.stages) != len(outer) + 1:
      raise ConfigError(
        f"layout {self.layout!r} has {_number(len(outer) + 1, 'stage')}, `stages` has {len(self.stages)}; give "
        f"one entry per level of the layout, outside in"
      )
    widths = [stage.d_model for stage in self.stages]
    if widths != sorted(widths):
      raise ConfigError(
        f"d_model of the stages = {widths}: an inner stage cannot be narrower than its outer one"
      )
    for s, stage in enumerate(self.stages[1:-1], start=1):
      if stage.router.level == 0:
        raise ConfigError(
          f"stages[{s}].router needs the bytes, which only stage 0 has; use 'learned' or 'pool' here"
        )
    for s in range(len(self.stages)):
      for runs in self.runs(s):
        try:
          self.stack(s, runs)
        except ConfigError as error:
          raise ConfigError(f"stages[{s}]: {error}") from None

  def check(self, cfg) -> None:
    """Against the other sections of a run's configuration."""
    if self.num_chunkings and isinstance(self.stages[0].router, ExternalBoundaries):
      raise ConfigError(
        "model.stages[0].router = 'given' waits for boundaries, which no data section makes: it is for "
        "callers in Python; use 'learned', 'space' or 'pool'"
      )

  @property
  def parsed(self) -> tuple[tuple[tuple[tuple[Run, ...], tuple[Run, ...]], ...], tuple[Run, ...]]:
    """((encoder, decoder) of every outer stage, main network)."""
    return parse_layout(self.layout)

  @property
  def num_chunkings(self) -> int:
    return len(self.stages) - 1

  @property
  def d_model(self) -> int:
    return self.stages[0].d_model

  def runs(self, s: int) -> tuple[tuple[Run, ...], ...]:
    """(encoder, decoder) of stage s, or (main network,)."""
    outer, main = self.parsed
    return outer[s] if s < len(outer) else (main,)

  def depth(self, s: int) -> int:
    """Residual additions on the way through stage s: its own and those of the stages around it."""
    return sum(height(runs) for t in range(s + 1) for runs in self.runs(t))

  def stack(self, s: int, runs: tuple[Run, ...], last: bool = False) -> IsotropicConfig:
    stage = self.stages[s]
    return IsotropicConfig(
      runs,
      stage.d_model,
      stage.d_ff,
      stage.attention,
      stage.mamba,
      self.network_norm or last,
      self.norm_eps,
      self.remat,
      self.unroll,
      self.dtype,
    )

  @property
  def stacks(self) -> dict[str, tuple[StackPart, ...]]:
    """encoder_<s> and decoder_<s> of every outer stage s, and `main`."""
    out = {}
    for s in range(len(self.stages)):
      for name, runs in zip(
        ("encoder", "decoder") if s < self.num_chunkings else ("main",), self.runs(s)
      ):
        firsts = [sum(run.count for run in runs[:r]) for r in range(len(runs))]
        out["main" if name == "main" else f"{name}_{s}"] = tuple(
          StackPart(
            ("backbone", *("inner",) * s, name, f"run_{r}"), tuple(range(first, first + run.count))
          )
          for r, (run, first) in enumerate(zip(runs, firsts))
        )
    return out

  @property
  def decodes(self) -> bool:
    return True

  def build(self) -> nn.Module:
    from jaxlm.models.hnet import HNet  # the network's file imports this one

    return HNet(self)

  def example(self, length: int = 8) -> dict[str, jax.ShapeDtypeStruct]:
    """As many rows as one buffer of chunks takes."""
    return {"tokens": jax.ShapeDtypeStruct((self.join.rows_per_buffer, length), jnp.int32)}

  def init_state(self, batch_size: int, max_len: int, rewindable: int = 0) -> HNetState:
    """The state before the first byte; at most max_len bytes per row may follow, and each row can
    go back by `rewindable` bytes.
    """
    return HNetState(
      jnp.zeros(batch_size, jnp.int32),
      self._stage_state(0, batch_size, max_len, rewindable),
      Reach.begin(batch_size, rewindable),
    )

  def _stage_state(self, s, batch_size, max_len, rewindable):
    stacks = [
      self.stack(s, runs).init_state(batch_size, max_len, rewindable) for runs in self.runs(s)
    ]
    if s == self.num_chunkings:
      return stacks[0]
    encoder, decoder = stacks
    # So many bytes start at most as many chunks: inner stages go back by the same number.
    inner = self._stage_state(s + 1, batch_size, max_len, rewindable)
    router = self.stages[s].router.init_state(self.stages[s].d_model, batch_size, self.dtype)
    last_BD = jnp.zeros((batch_size, self.stages[s].d_model), jnp.float32)
    return StageState(
      encoder,
      trail(router, rewindable),
      jnp.zeros(batch_size, bool),
      trail(jnp.zeros(batch_size, jnp.int32), rewindable),
      inner,
      trail(last_BD, rewindable),
      decoder,
    )

  def rewind(self, state: HNetState, length_B) -> HNetState:
    length_B = state.reach.allowed(length_B, state.length_B)
    return state._replace(length_B=length_B, stage=rewind_stage(state.stage, length_B))


def _number(n: int, what: str) -> str:
  return f"{n} {what}" if n == 1 else f"{n} {what}s"
