"""Next-byte prediction with the ratio loss of H-Net, at a chunk capacity from a ladder of buckets.

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
from jaxlm.objectives import ladder
from jaxlm.objectives.base import Objective, Pair
from jaxlm.ranges import Count, Fraction, NonNegative, Range


@dataclasses.dataclass(frozen=True)
@checked
class NextByte(Objective):
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
  capacities: the buckets, each one capacity per stage, smallest first. Default: the ladder; stage s
  + 1 holds the
    same fraction of stage s. multiple: capacities are rounded up to it (TPU lanes, SSD chunks).
  rows_per_buffer: as in the model's `join`: the ladder is of the length that a buffer serves.
  slack: of the next step's capacity over the largest count of late. memory: per step, of that
  largest count.
  """

  targets: tuple[Annotated[float, Range(1, open_low=True)], ...] = ()
  ratio_weight: NonNegative = 0.03
  stats_scope: Literal["device", "global"] = "device"
  overflow: Literal["redo", "clip", "error"] = "redo"
  capacities: tuple[tuple[Count, ...], ...] | None = None
  multiple: Count = 128
  rows_per_buffer: Count = 1
  slack: Annotated[float, Range(1)] = 1.05
  memory: Fraction = 0.98

  def __post_init__(self):
    ladder.check_capacities(self.capacities, self.multiple)
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
    n, rows = self.rows_per_buffer, cfg.data.batch_size // cfg.train.accumulation
    if rows % n:
      raise ConfigError(
        f"objective.rows_per_buffer = {n} does not divide the {rows} rows of a (micro-)batch"
      )
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
    if stages and model.join.rows_per_buffer != self.rows_per_buffer:
      raise ConfigError(
        f"objective.rows_per_buffer = {self.rows_per_buffer}, but model.join.rows_per_buffer = "
        f"{model.join.rows_per_buffer}; set both to the same"
      )

  def buckets(self, batch_shape):
    if not self.targets:
      return ()
    if self.capacities is not None:
      return self.capacities
    length = batch_shape[1] * self.rows_per_buffer

    def up(x):
      return min(length, math.ceil(x / self.multiple) * self.multiple)

    rungs = (
      tuple(up(length * f ** (s + 1)) for s in range(len(self.targets))) for f in ladder.FRACTIONS
    )
    return tuple(dict.fromkeys(rungs))

  def first_bucket(self, num_buckets):
    # Untrained routers start chunks at half of the positions and more: begin where everything fits.
    return num_buckets - 1

  def choose_bucket(self, metrics, current):
    return ladder.choose(metrics, current)

  def init_state(self):
    """Largest number of chunks in a row, of late, per stage."""
    return {"largest": jnp.zeros(len(self.targets), jnp.float32)} if self.targets else {}

  def update_state(self, state, metrics):
    if not self.targets:
      return state
    return {"largest": ladder.remember(state["largest"], self._largest(metrics), self.memory)}

  def after_micro_batch(self, state, metrics):
    """The next micro-batch knows the largest count of this one: `update_state` sees their mean."""
    return (
      {"largest": jnp.maximum(state["largest"], self._largest(metrics))} if self.targets else state
    )

  def _largest(self, metrics):
    return jnp.stack([metrics[f"chunks_max_{s}"].mean() for s in range(len(self.targets))])

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
      score, infos = model.apply({"params": params}, *arguments, method="score", **lexicon), ()
    else:
      score, infos = model.apply(
        {"params": params},
        *arguments,
        capacities=None if bucket is None else tuple(bucket),
        boundaries_BT=batch.get("boundaries"),
        method="score_with_stages",
        **lexicon,
      )
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
    if infos:
      metrics |= self._capacity_metrics(infos, state, batch["tokens"].shape, train)
      # What was compiled for: so that a log says which bucket each step ran in.
      metrics |= {f"capacity_{s}": Pair(jnp.float32(c), one) for s, c in enumerate(bucket or ())}
    return Pair(total, weight), metrics

  def _groups(self, rows: int) -> int:
    """Groups of rows with their own F and G: the devices among which the batch is split."""
    if self.stats_scope == "global":
      return 1
    axes = (nn.logical_to_mesh_axes(("batch",)) or (None,))[0]
    sizes = jax.sharding.get_abstract_mesh().shape
    groups = math.prod(sizes.get(a, 1) for a in ((axes,) if isinstance(axes, str) else axes or ()))
    return groups if rows % groups == 0 else 1

  def _capacity_metrics(self, infos, state, batch_shape, train):
    one = jnp.ones((), jnp.float32)
    lost = sum(jnp.sum(info.overflow_B) for info in infos).astype(jnp.float32)
    clipped = sum(jnp.sum(info.boundary_BT & ~info.kept_BT) for info in infos).astype(jnp.float32)
    metrics = {}
    if self.overflow == "clip" and train:
      metrics["clipped_chunks"] = Pair(clipped, one)
    else:
      metrics["overflow"] = Pair(lost, one)
    # The smallest bucket that holds this batch and the largest of late; a state without history
    # asks for this batch.
    now_S = jnp.stack([jnp.max(info.count_B) for info in infos]).astype(jnp.float32)
    metrics["wanted_bucket"] = ladder.wanted(
      now_S, state["largest"] if state else None, self.buckets(batch_shape), self.slack
    )
    return metrics
