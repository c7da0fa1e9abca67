"""Next-byte prediction with the ratio loss of H-Net, at a chunk capacity out of a few buckets.

Axes: B batch, T time, S chunking stages, P groups of rows with statistics of their own.
"""

import dataclasses
import math
from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.config import ConfigError, checked
from jaxlm.layers.chunking import ratio_loss
from jaxlm.models.hnet import HNetConfig
from jaxlm.models.hnet_rules import forward_flops
from jaxlm.models.score import lexicon_of
from jaxlm.objectives.base import Fit, LossOutput, Pair
from jaxlm.objectives.buckets import (
  BucketedObjective,
  check_capacities,
  check_rows,
  decayed_max,
  fractions_of,
)
from jaxlm.ranges import Count, NonNegative, Range


@dataclasses.dataclass(frozen=True)
@checked
class NextByte(BucketedObjective):
  """loss = mean CE + ratio_weight * sum_s ratio_s (paper, eq. 10; `docs/specs/hnet.md` sections 10,
  16).

  targets: N^s > 1 of every chunking stage, 0 chunkings for an isotropic model. A stage whose router
  has a rule has
    no ratio loss; its target still guides the capacity.
  stats_scope: F and G over the rows of each device, their losses averaged (as released), or over
  the whole batch.
  overflow: a row with more chunks than the capacity. "redo": the step is done again in the next
  bucket, exact;
    "clip": its last chunks are lost, in training only (a document without a chunk left goes past
    the main network); "error": the run ends.
  capacities: the buckets, each one capacity per stage, smallest first. Default: fractions of the
    length that a buffer serves (the model's `join.rows_per_buffer` rows); stage s + 1 holds the
    same fraction of stage s. multiple, headroom, memory: as in `BucketedObjective`.
  """

  former_fields = BucketedObjective.former_fields | {
    "rows_per_buffer": "the model says it, in model.join.rows_per_buffer; leave this one out"
  }

  targets: tuple[Annotated[float, Range(1, open_low=True)], ...] = ()
  ratio_weight: NonNegative = 0.03
  stats_scope: Literal["device", "global"] = "device"
  overflow: Literal["redo", "clip", "error"] = "redo"
  capacities: tuple[tuple[Count, ...], ...] | None = None

  def __post_init__(self):
    check_capacities(self.capacities)
    for k, bucket in enumerate(self.capacities or ()):
      if len(bucket) != len(self.targets):
        raise ConfigError(
          f"capacities[{k}] = {bucket}: wanted one capacity for each of the {len(self.targets)} `targets`"
        )
      if min(bucket, default=1) < 1:
        raise ConfigError(f"capacities[{k}] = {bucket}: a chunk buffer needs at least one slot")
      if k and any(a > b for a, b in zip(self.capacities[k - 1], bucket)):
        raise ConfigError(
          f"capacities[{k}] = {bucket} is smaller than the bucket before it; smallest first"
        )
    if self.overflow == "error" and (self.capacities is None or len(self.capacities) != 1):
      raise ConfigError(
        "overflow = 'error' needs `capacities` with the one bucket that must suffice"
      )

  def check(self, cfg):
    """Against the other sections: a target per chunking, rows that fill buffers, a last bucket that
    always fits.
    """
    self._fits(cfg.model)
    n = rows_per_buffer(cfg.model)
    check_rows("model.join.rows_per_buffer", n, cfg)
    if self.overflow != "redo" or not self.targets or self.capacities is None:
      return
    for s, length in enumerate((cfg.data.seq_len * n, *self.capacities[-1][:-1])):
      if cfg.model.stages[s].router.learned and self.capacities[-1][s] < length:
        raise ConfigError(
          f"objective.capacities ends with {self.capacities[-1]}: a learned router may start {length} chunks "
          f"in stage {s}, so a step might never fit; add a bucket that holds them, or choose "
          f"overflow = 'clip' or 'error'"
        )

  def _fits(self, model) -> None:
    """model: its config."""
    stages = model.num_chunkings
    if len(self.targets) != stages:
      raise ConfigError(
        f"objective.targets = {self.targets}, but the model chunks {stages} times; give the bytes per chunk "
        f"of every chunking stage, outside in"
      )

  def buckets(self, model, batch_shape):
    if not self.targets:
      return ()
    if self.capacities is not None:
      return self.capacities
    return fractions_of(batch_shape[1] * rows_per_buffer(model), self.multiple, len(self.targets))

  def init_state(self):
    """Largest number of chunks in a row, of late, per stage."""
    return {"largest": jnp.zeros(len(self.targets), jnp.float32)} if self.targets else {}

  def update_state(self, state, output):
    if not self.targets:
      return state
    return {"largest": decayed_max(state["largest"], output.fit.need_S, self.memory)}

  def train_flops_per_token(self, model, seq_len):
    """By the paper's appendix B, at the target compression."""
    if not isinstance(model, HNetConfig):
      return None
    return 3 * forward_flops(model, seq_len, self.targets) / seq_len

  def loss(self, model, params, batch, key, state, *, train, bucket=None):
    self._fits(model.cfg)
    w_BT = batch["loss_weights"]
    arguments = batch["tokens"], batch["targets"], batch["segment_ids"], batch["positions"]
    lexicon = lexicon_of(model.cfg, batch, train=train)
    if not train and self.overflow != "redo":
      bucket = None  # evaluation is exact: chunks at full length
    if not self.targets:
      score = model.apply({"params": params}, *arguments, method="score", **lexicon)
    else:
      score = model.apply(
        {"params": params},
        *arguments,
        capacities=None if bucket is None else tuple(bucket),
        boundaries_BT=batch.get("boundaries"),
        method="score",
        **lexicon,
      )
    infos = score.aux
    weight = jnp.sum(w_BT)
    # Where the weight is 0 nothing counts, whatever an unused position says.
    nll = Pair(jnp.sum(jnp.where(w_BT > 0, -score.log_prob_BT, 0.0) * w_BT), weight)
    metrics, total = {"loss": nll}, nll.sum
    if "target_bytes" in batch:
      num_bytes = jnp.sum(jnp.where(w_BT > 0, batch["target_bytes"], 0))
      metrics["bits_per_byte"] = Pair(nll.sum / math.log(2), num_bytes.astype(jnp.float32))
    one = jnp.ones((), jnp.float32)
    for s, (info, target) in enumerate(zip(infos, self.targets)):

      def rows_BT(x_BT):
        return jnp.sum(jnp.where(info.valid_BT, x_BT, 0).astype(jnp.float32), axis=1)

      starts_B, p_B, valid_B = rows_BT(info.boundary_BT), rows_BT(info.p_BT), rows_BT(info.valid_BT)
      if model.cfg.stages[s].router.learned:
        group = self._groups(starts_B.shape[0])
        ratio = jnp.mean(
          ratio_loss(*(jnp.sum(x.reshape(group, -1), 1) for x in (starts_B, p_B, valid_B)), target)
        )
        metrics[f"ratio_{s}"] = Pair(ratio * weight, weight)
        total += self.ratio_weight * ratio * weight
      metrics[f"boundaries_{s}"] = Pair(jnp.sum(starts_B), jnp.sum(valid_B))
      metrics[f"tokens_per_chunk_{s}"] = Pair(jnp.sum(valid_B), jnp.sum(starts_B))
      metrics[f"chunks_max_{s}"] = Pair(jnp.max(info.count_B).astype(jnp.float32), one)
    fit = None
    if infos:
      fit, more = self._fit(infos, train)
      metrics |= more
      # What was compiled for: so that a log says which bucket each step ran in.
      metrics |= {f"capacity_{s}": Pair(jnp.float32(c), one) for s, c in enumerate(bucket or ())}
    return LossOutput(Pair(total, weight), metrics, fit)

  def _groups(self, rows: int) -> int:
    """Groups of rows with their own F and G: the devices among which the batch is split."""
    if self.stats_scope == "global":
      return 1
    axes = (nn.logical_to_mesh_axes(("batch",)) or (None,))[0]
    sizes = jax.sharding.get_abstract_mesh().shape
    groups = math.prod(sizes.get(a, 1) for a in ((axes,) if isinstance(axes, str) else axes or ()))
    return groups if rows % groups == 0 else 1

  def _fit(self, infos, train: bool) -> tuple[Fit, dict[str, Pair]]:
    """(how the chunks fitted, what of it is reported)."""
    need_S = jnp.stack([jnp.max(info.count_B) for info in infos]).astype(jnp.float32)
    if self.overflow == "clip" and train:
      clipped = sum(jnp.sum(info.boundary_BT & ~info.kept_BT) for info in infos)
      reported = Pair(clipped.astype(jnp.float32), jnp.ones((), jnp.float32))
      return Fit(jnp.zeros((), jnp.float32), need_S), {"clipped_chunks": reported}
    return Fit(sum(jnp.sum(info.overflow_B) for info in infos).astype(jnp.float32), need_S), {}


def rows_per_buffer(model) -> int:
  """Rows of a batch whose chunks share a buffer. model: a config; 1 of one that does not chunk."""
  return model.join.rows_per_buffer if model.num_chunkings else 1
