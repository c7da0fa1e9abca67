"""Perplexity, bits per byte and loss by position, at any length, exact under padding, packing and
sharding.

Axes: B batch, T time. What is summed is the negative log likelihood of each target with a positive
weight, over non-overlapping windows; sums leave the device as float32 per (batch, position) and are
added in float64 on the host, so neither the batch size nor the number of devices shows in the
result beyond float32 rounding.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.config import ConfigError
from jaxlm.evaluation.tables import averaged_log_prob
from jaxlm.models.score import lexicon_of, lexinvariant
from jaxlm.parallel.mesh import BATCH_AXES


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Loss at one length.

  `note` says why there is none (a learned table that ends before `length`).
  """

  length: int
  nll_T: (
    np.ndarray
  )  # float64 (length,): nats, summed over the targets at each position of their segment
  weight_T: np.ndarray  # float64 (length,): number (weight) of those targets
  target_bytes: float  # UTF-8 bytes of the scored targets; 0 if the data does not say
  note: str = ""

  @property
  def tokens(self) -> float:
    return float(self.weight_T.sum())

  @property
  def loss(self) -> float:
    """Nats per token; nan where nothing was scored."""
    return float(self.nll_T.sum()) / self.tokens if self.tokens else math.nan

  @property
  def perplexity(self) -> float:
    return math.exp(self.loss) if self.loss < 700 else math.inf if self.tokens else math.nan

  @property
  def bits_per_byte(self) -> float:
    """Bits per UTF-8 byte: comparable across tokenizers, which perplexity is not."""
    return (
      float(self.nll_T.sum()) / math.log(2) / self.target_bytes if self.target_bytes else math.nan
    )

  @property
  def loss_by_position(self) -> np.ndarray:
    """float64 (length,): nats per token at each position; nan where no target was scored."""
    with np.errstate(invalid="ignore", divide="ignore"):
      return self.nll_T / self.weight_T

  def loss_between(self, start: int, stop: int) -> float:
    """Nats per token over positions start..stop-1: where extrapolation fails, the mean over a
    window hides it.
    """
    weight = self.weight_T[start:stop].sum()
    return float(self.nll_T[start:stop].sum() / weight) if weight else math.nan

  def to_json(self, *, by_position: bool = False) -> dict:
    """Plain values; absent (not nan) where there is no number."""
    out = {"length": self.length, "tokens": int(self.tokens)}
    for key in ("loss", "perplexity", "bits_per_byte"):
      value = getattr(self, key)
      if math.isfinite(value):
        out[key] = value
    if self.note:
      out["note"] = self.note
    if by_position and self.tokens:
      out["loss_by_position"] = [
        round(float(x), 5) if math.isfinite(x) else None for x in self.loss_by_position
      ]
    return out


def evaluate(
  config,
  params,
  batches: Iterable[dict],
  *,
  length: int,
  batch_size: int | None = None,
  num_windows: int | None = None,
  place: Callable | None = None,
  process_index: int = 0,
  process_count: int = 1,
  num_tables: int = 1,
) -> Evaluation:
  """-log p(targets) summed over batches of windows of `length`.

  config: a model config with `build()`, whose module answers `score`. params: the tree under
  "params".
  batches: host-local numpy batches, (rows, length) each; a last one of fewer than `batch_size` rows
  (global; default: the first one's) is filled up with rows of weight 0. num_windows: score the
  first so many windows of the whole run (window i is row i // process_count of host i %
  process_count), None: all.
  place: host batch -> global arrays (`jaxlm.parallel`); None: one device. Run under the mesh that
  `place` uses.
  num_tables: of a lexinvariant model, whose probabilities are averaged over so many tables per
  sequence.
  """
  if num_tables > 1 and not lexinvariant(config):
    raise ConfigError(
      f"num_tables = {num_tables}, but this model's embedding is not lexinvariant: it has one table"
    )
  place = place or (lambda batch: jax.tree.map(jnp.asarray, batch))
  nll_T, weight_T, target_bytes, seen, spare = np.zeros(length), np.zeros(length), 0.0, 0, None
  rows = batch_size // process_count if batch_size else None
  batches = iter(batches)
  while num_windows is None or seen * process_count < num_windows:
    batch = next(batches, None)
    if not _any_has(batch is not None, process_count):
      break
    if batch is None:  # this host is through, another is not, and the step is theirs together
      batch = spare
    if batch is None:
      raise ConfigError(
        f"host {process_index} has no window of {length} tokens; evaluate on fewer hosts or more text"
      )
    rows = rows or len(batch["tokens"])
    if batch["tokens"].shape[1] != length:
      raise ConfigError(
        f"a batch has windows of {batch['tokens'].shape[1]} tokens, wanted {length}"
      )
    batch = _fill(batch, rows)
    if num_windows is not None:
      index_B = (seen + np.arange(rows)) * process_count + process_index
      batch["loss_weights"] = batch["loss_weights"] * (index_B < num_windows)[:, None]
    seen += rows
    spare = batch | {"loss_weights": np.zeros_like(batch["loss_weights"])}
    try:
      sums = _sums(params, place(batch), config=config, num_tables=num_tables)
    except (
      ConfigError
    ) as error:  # the model refuses the length: it is not clamped, it is not a number
      return Evaluation(length, np.zeros(length), np.zeros(length), 0.0, note=str(error))
    nll, weight, num_bytes = (np.asarray(x, np.float64) for x in jax.device_get(sums))
    nll_T, weight_T, target_bytes = (
      nll_T + nll,
      weight_T + weight,
      target_bytes + float(num_bytes.sum()),
    )
  if not weight_T.any():
    raise ConfigError(
      f"no target to score at length {length}: the split holds less than one window; "
      f"evaluate at a shorter length or on more text"
    )
  return Evaluation(length, nll_T, weight_T, target_bytes)


def at_length(data, length: int, ways: int = 1):
  """The data cut into windows of `length`: about as many tokens per batch, whose rows are a
  multiple of `ways`.
  """
  rows = max(data.batch_size * data.seq_len // length, 1)
  return data.resized(length, -(-rows // ways) * ways)


def evaluate_lengths(
  config,
  params,
  data,
  lengths: Sequence[int],
  *,
  split: str = "validation",
  num_tokens: int | None = None,
  seed: int = 0,
  process_index: int = 0,
  process_count: int = 1,
  place: Callable | None = None,
  num_tables: int = 1,
  build: Callable | None = None,
) -> list[Evaluation]:
  """One Evaluation per length, over the same text: each is cut into windows of its own length.

  data: a data config with `seq_len`, `batch_size` and `build`; batches keep its number of tokens.
  num_tokens: score only the first so many tokens, rounded down to whole windows of the longest
  length, so that every length scores the same ones; None: the whole split. Batches are a multiple
  of the ways in which the context mesh splits them. build: data config -> its batches, for a caller
  that evaluates often and keeps them.
  """
  if num_tokens is not None:
    num_tokens = max(num_tokens // max(lengths), 1) * max(lengths)
  mesh, out = jax.sharding.get_abstract_mesh(), []
  ways = math.lcm(math.prod(mesh.shape.get(axis, 1) for axis in BATCH_AXES), process_count)
  for length in lengths:
    windows = at_length(data, length, ways)
    batches = (
      build(windows)
      if build is not None
      else windows.build(
        split, seed=seed, process_index=process_index, process_count=process_count, repeat=False
      )
    )
    out.append(
      evaluate(
        config,
        params,
        batches,
        length=length,
        batch_size=windows.batch_size,
        place=place,
        num_windows=None if num_tokens is None else num_tokens // length,
        process_index=process_index,
        process_count=process_count,
        num_tables=num_tables,
      )
    )
  return out


@functools.partial(jax.jit, static_argnames=("config", "num_tables"))
def _sums(params, batch, *, config, num_tables=1):
  """(nll_T, weight_T, bytes_T) by position within the segment, float32."""
  if num_tables > 1:
    log_prob_BT = averaged_log_prob(config, params, batch, num_tables)
  else:
    tokens_BT, *others = config.inputs(batch)
    log_prob_BT = (
      config.build()
      .apply(
        {"params": params},
        tokens_BT,
        batch["targets"],
        *others,
        method="score",
        **lexicon_of(config, batch, train=False),
      )
      .log_prob_BT
    )
  weight_BT = batch["loss_weights"].astype(jnp.float32)
  # Not 0 * log_prob: a padded target may be -inf.
  nll_BT = jnp.where(weight_BT > 0, -log_prob_BT * weight_BT, 0.0)
  bytes_BT = jnp.where(
    weight_BT > 0, batch.get("target_bytes", jnp.zeros_like(batch["targets"])), 0
  )

  def at(x_BT):
    return (
      jnp.zeros(x_BT.shape[1], jnp.float32).at[batch["positions"]].add(x_BT.astype(jnp.float32))
    )

  return at(nll_BT), at(weight_BT), at(bytes_BT)


def _fill(batch: dict, rows: int) -> dict:
  """The batch with `rows` rows; added ones repeat the last row with weight 0 (a row without keys is
  a special case).
  """
  short = rows - len(batch["tokens"])
  if short < 0:
    raise ConfigError(
      f"a batch has {len(batch['tokens'])} rows, more than batch_size {rows} of this host"
    )
  out = {
    k: np.concatenate([v, np.repeat(v[-1:], short, 0)]) if short else np.asarray(v)
    for k, v in batch.items()
  }
  if short:
    out["loss_weights"] = out["loss_weights"] * (np.arange(rows) < rows - short)[:, None].astype(
      np.float32
    )
  return out


def _any_has(mine: bool, process_count: int) -> bool:
  """Whether any host still has a batch: hosts may hold one window more or less than each other."""
  if process_count == 1:
    return mine
  from jax.experimental import multihost_utils

  return bool(np.any(multihost_utils.process_allgather(np.asarray(mine))))
