"""The smallest parts that satisfy the contracts, so that the trainer's tests compile in a second
and name no system.
"""

import dataclasses
import time

import flax.linen as nn
import grain
import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.data import DATA
from jaxlm.data.base import DataConfig
from jaxlm.layers.weights import weights
from jaxlm.models import MODELS
from jaxlm.models.base import ModelConfig
from jaxlm.objectives import OBJECTIVES
from jaxlm.objectives.base import Fit, LossOutput, Objective, Pair
from jaxlm.parameter import SPARED

DATA.table["tiny"] = "tiny_run:TinyData"
DATA.table["tiny_paced"] = "tiny_run:PacedData"
MODELS.table["tiny"] = "tiny_run:TinyModel"
OBJECTIVES.table["tiny"] = "tiny_run:TinyLoss"
OBJECTIVES.table["tiny_buckets"] = "tiny_run:TinyBuckets"
OBJECTIVES.table["tiny_nan"] = "tiny_run:TinyNaN"


@dataclasses.dataclass(frozen=True)
class TinyData(DataConfig):
  """Row i of split s is a function of (s, seed, i); about a third of the targets weigh nothing."""

  seq_len: int = 8
  batch_size: int = 8
  vocab_size: int = 16
  num_rows: int = 64

  def build(self, split, *, seed, process_index=0, process_count=1, repeat=True):
    def row(i):
      rng = np.random.default_rng((i, seed, len(split)))
      tokens = (np.cumsum(rng.integers(1, 3, self.seq_len + 1)) % self.vocab_size).astype(np.int32)
      weights = (rng.random(self.seq_len) < 0.7).astype(np.float32)
      return {
        "tokens": tokens[:-1],
        "targets": tokens[1:],
        "segment_ids": np.ones(self.seq_len, np.int32),
        "positions": np.arange(self.seq_len, dtype=np.int32),
        "loss_weights": weights,
      }

    rows = grain.MapDataset.range(self.num_rows).seed(seed).shuffle()
    rows = (rows.repeat() if repeat else rows)[process_index::process_count].map(row)
    return rows.batch(self.batch_size // process_count).to_iter_dataset(
      grain.ReadOptions(num_threads=0)
    )


@dataclasses.dataclass(frozen=True)
class PacedData(TinyData):
  """A batch every `pace_s`, none read ahead: time to interrupt a run in its middle."""

  pace_s: float = 0.1

  def build(self, split, *, seed, process_index=0, process_count=1, repeat=True):
    def wait(batch):
      time.sleep(self.pace_s)
      return batch

    data = super().build(
      split, seed=seed, process_index=process_index, process_count=process_count, repeat=repeat
    )
    return data.map(wait)


@dataclasses.dataclass(frozen=True)
class TinyModel(ModelConfig):
  vocab_size: int = 16
  d_model: int = 16
  num_layers: int = 2
  max_len: int | None = None
  dtype: str = "float32"

  def build(self):
    return Tiny(self)


class Block(nn.Module):
  cfg: TinyModel

  @nn.compact
  def __call__(self, x_BTD, _):
    w, D = weights(self, self.cfg.dtype), self.cfg.d_model
    h_BTF = jnp.tanh(
      jnp.einsum("btd,df->btf", x_BTD, w("w_in", (D, 2 * D), ("embed", "mlp")))
      + w("b_in", (2 * D,), ("mlp",))[None, None]
    )
    x_BTD = x_BTD + jnp.einsum("btf,fd->btd", h_BTF, w("w_out", (2 * D, D), ("mlp", "embed")))
    return nn.with_logical_constraint(
      x_BTD * w("scale", (D,), ("embed",), init=nn.initializers.ones)[None, None],
      ("batch", "seq", "embed_act"),
    ), None


class Tiny(nn.Module):
  cfg: TinyModel

  @nn.compact
  def __call__(self, tokens_BT, segment_ids_BT=None, positions_BT=None):
    cfg, w = self.cfg, weights(self, self.cfg.dtype)
    table_VD = w("embedding", (cfg.vocab_size, cfg.d_model), ("vocab", "embed"))
    blocks = nn.scan(
      Block,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      length=cfg.num_layers,
      metadata_params={nn.PARTITION_NAME: "layers"},
    )
    x_BTD, _ = blocks(cfg, name="blocks")(jnp.take(table_VD, tokens_BT, axis=0), None)
    x_BTD = x_BTD @ w("w_spared", (cfg.d_model, cfg.d_model), ("embed", None), role=SPARED)
    return jnp.einsum("btd,vd->btv", x_BTD, table_VD).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class TinyLoss(Objective):
  """Next token; counts its own updates in its state."""

  def init_state(self):
    return {"updates": jnp.zeros((), jnp.int32)}

  def update_state(self, state, output):
    return {"updates": state["updates"] + 1}

  def loss(self, model, params, batch, key, state, *, train, bucket=None):
    logits_BTV = model.apply(
      {"params": params}, batch["tokens"], batch["segment_ids"], batch["positions"]
    )
    log_p_BTV = jax.nn.log_softmax(logits_BTV)
    nll_BT = -jnp.take_along_axis(log_p_BTV, batch["targets"][..., None], axis=-1)[..., 0]
    weights_BT = batch["loss_weights"]
    total = jnp.sum(weights_BT)
    right_BT = (jnp.argmax(logits_BTV, -1) == batch["targets"]) * weights_BT
    loss = Pair(jnp.sum(nll_BT * weights_BT), total)
    return LossOutput(loss, {"accuracy": Pair(jnp.sum(right_BT), total)})


@dataclasses.dataclass(frozen=True)
class TinyBuckets(TinyLoss):
  """Overflows when a row holds more weighted targets than the bucket; goes back to the smallest
  afterwards.
  """

  capacities: tuple[int, ...] = (4, 6, 8)

  def buckets(self, model, batch_shape):
    return self.capacities

  def next_bucket(self, fit, state, buckets):
    return jnp.zeros((), jnp.int32)

  def loss(self, model, params, batch, key, state, *, train, bucket=None):
    output = super().loss(model, params, batch, key, state, train=train)
    needed = jnp.max(jnp.sum(batch["loss_weights"], axis=1))
    one = jnp.ones((), jnp.float32)
    return output._replace(
      metrics=output.metrics | {"bucket": Pair(one * bucket, one)},
      fit=Fit((needed > bucket).astype(jnp.float32), needed[None]),
    )


@jax.custom_vjp
def poisoned(x, bad):
  """x; its gradient is NaN where bad."""
  return x


poisoned.defvjp(lambda x, bad: (x, bad), lambda bad, g: (g + jnp.where(bad, jnp.nan, 0.0), None))


@dataclasses.dataclass(frozen=True)
class TinyNaN(TinyLoss):
  """From its `first`th update on every gradient is NaN while the loss stays finite."""

  first: int = 3

  def loss(self, model, params, batch, key, state, *, train, bucket=None):
    params = jax.tree.map(lambda p: poisoned(p, state["updates"] >= self.first), params)
    return super().loss(model, params, batch, key, state, train=train)


def config(**overrides):
  """A whole run of 6 steps; overrides by dotted key."""
  from jaxlm.training.config import load_config

  base = dict(
    seed=3,
    model=dict(kind="tiny"),
    objective=dict(kind="tiny"),
    data=dict(kind="tiny"),
    optimizer=dict(kind="adamw", learning_rate=1e-2, weight_decay=0.1),
    schedule=dict(kind="cosine"),
    train=dict(steps=6, log_every=1, save_every=0),
  )
  return load_config(base, overrides)
