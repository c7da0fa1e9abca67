"""Evaluation against sums taken by hand over a bigram model whose every probability is a table
entry.
"""

import dataclasses
import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxlm.config import ConfigError
from jaxlm.data.base import DataConfig
from jaxlm.evaluation.perplexity import evaluate, evaluate_lengths
from jaxlm.models.base import ModelConfig

VOCAB = 11


class Score(NamedTuple):
  log_prob_BT: jax.Array
  log_z_BT: jax.Array


class Bigram(nn.Module):
  cfg: "BigramConfig"

  @nn.compact
  def score(self, tokens_BT, targets_BT, segment_ids_BT, positions_BT):
    if self.cfg.max_len and tokens_BT.shape[1] > self.cfg.max_len:
      raise ConfigError(
        f"length {tokens_BT.shape[1]} is beyond the learned table of {self.cfg.max_len} positions"
      )
    logits_VV = self.param("table", nn.initializers.normal(1.0), (VOCAB, VOCAB))
    logits_BTV = logits_VV[tokens_BT]
    log_z_BT = jax.nn.logsumexp(logits_BTV, -1)
    return Score(
      jnp.take_along_axis(logits_BTV, targets_BT[..., None], -1)[..., 0] - log_z_BT, log_z_BT
    )


@dataclasses.dataclass(frozen=True)
class BigramConfig(ModelConfig):
  max_len: int = 0

  def build(self):
    return Bigram(self)


@dataclasses.dataclass(frozen=True)
class Windows(DataConfig):
  """Contiguous windows of a fixed text, the last batch short, shared among hosts by row."""

  seq_len: int = 8
  batch_size: int = 4
  num_tokens: int = 205

  def build(self, split, *, seed, process_index=0, process_count=1, repeat=True):
    assert split == "validation" and not repeat
    text = np.random.default_rng(7).integers(0, VOCAB, self.num_tokens + 1).astype(np.int32)
    starts = range(0, self.num_tokens - self.seq_len + 1, self.seq_len)
    rows = [(text[s : s + self.seq_len], text[s + 1 : s + self.seq_len + 1]) for s in starts][
      process_index::process_count
    ]
    size = self.batch_size // process_count
    for i in range(0, len(rows), size):
      tokens, targets = (np.stack(x) for x in zip(*rows[i : i + size]))
      yield dict(
        tokens=tokens,
        targets=targets,
        segment_ids=np.ones_like(tokens),
        positions=np.broadcast_to(np.arange(self.seq_len, dtype=np.int32), tokens.shape),
        loss_weights=np.ones(tokens.shape, np.float32),
        target_bytes=(1 + targets % 3).astype(np.int32),
      )


@pytest.fixture(scope="module")
def params():
  tokens = jnp.zeros((1, 8), jnp.int32)
  return Bigram(BigramConfig()).init(
    jax.random.key(0), tokens, tokens, tokens, tokens, method="score"
  )["params"]


def by_hand(params, data, num_windows=None):
  """(nll_BT, bytes_BT) of every window, float64."""
  logits = np.asarray(params["table"], np.float64)
  log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  batches = list(data.build("validation", seed=0, repeat=False))
  tokens, targets, num_bytes = (
    np.concatenate([b[k] for b in batches])[:num_windows]
    for k in ("tokens", "targets", "target_bytes")
  )
  return -log_p[tokens, targets], num_bytes


def test_perplexity_bits_per_byte_and_positions_are_the_sums_taken_by_hand(params):
  data = Windows()
  [got] = evaluate_lengths(BigramConfig(), params, data, [8])
  nll, num_bytes = by_hand(params, data)
  assert got.tokens == nll.size == 200
  assert got.perplexity == pytest.approx(math.exp(nll.mean()), rel=1e-6)
  assert got.bits_per_byte == pytest.approx(nll.sum() / math.log(2) / num_bytes.sum(), rel=1e-6)
  np.testing.assert_allclose(got.loss_by_position, nll.mean(0), rtol=1e-6)
  assert got.loss_between(3, 6) == pytest.approx(nll[:, 3:6].mean(), rel=1e-6)


def test_batch_size_and_a_short_last_batch_do_not_show(params):
  want = evaluate(
    BigramConfig(),
    params,
    Windows(batch_size=1).build("validation", seed=0, repeat=False),
    length=8,
  )
  for batch_size in (4, 7, 64):
    [got] = evaluate_lengths(BigramConfig(), params, Windows(batch_size=batch_size), [8])
    assert got.tokens == want.tokens
    np.testing.assert_allclose(got.nll_T, want.nll_T, rtol=1e-6)


def test_padding_inside_a_window_is_not_scored(params):
  def padded():
    for batch in Windows().build("validation", seed=0, repeat=False):
      wide = {k: np.pad(v, ((0, 0), (0, 5))) for k, v in batch.items()}
      wide["targets"][:, 8:] = 3  # whatever stands in padding must not matter
      yield wide

  [want] = evaluate_lengths(BigramConfig(), params, Windows(), [8])
  got = evaluate(BigramConfig(), params, padded(), length=13)
  assert (got.tokens, got.target_bytes) == (want.tokens, want.target_bytes)
  np.testing.assert_allclose(got.nll_T[:8], want.nll_T, rtol=1e-6)
  assert not got.weight_T[8:].any()


def test_packed_documents_count_positions_from_their_own_start(params):
  [want] = evaluate_lengths(BigramConfig(), params, Windows(seq_len=8), [8])

  def packed():
    for batch in Windows(seq_len=8, batch_size=2).build("validation", seed=0, repeat=False):
      if len(batch["tokens"]) == 2:
        row = {k: v.reshape(1, 16) for k, v in batch.items()}
      else:
        row = {k: np.pad(v, ((0, 0), (0, 8))) for k, v in batch.items()}
      yield row

  got = evaluate(BigramConfig(), params, packed(), length=16)
  np.testing.assert_allclose(got.nll_T[:8], want.nll_T, rtol=1e-6)


def test_eight_devices_give_the_sums_of_one(params):
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  rows = NamedSharding(mesh, PartitionSpec("data"))

  def place(batch):
    return {k: jax.device_put(v, rows) for k, v in batch.items()}

  [want] = evaluate_lengths(BigramConfig(), params, Windows(), [8])
  with jax.set_mesh(mesh):
    here = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    [got] = evaluate_lengths(BigramConfig(), here, Windows(batch_size=2), [8], place=place)
  assert got.tokens == want.tokens
  np.testing.assert_allclose(got.nll_T, want.nll_T, rtol=1e-6)


def test_every_length_scores_the_same_text(params):
  short, long = evaluate_lengths(BigramConfig(), params, Windows(), [8, 16], num_tokens=70)
  assert short.tokens == long.tokens == 64  # whole windows of the longest
  nll, _ = by_hand(params, Windows(), 8)
  assert short.loss == pytest.approx(nll.mean(), rel=1e-6)
  assert long.loss == pytest.approx(short.loss, rel=1e-6)  # a bigram model sees no further


def test_hosts_add_up_to_the_whole_run(params):
  [want] = evaluate_lengths(BigramConfig(), params, Windows(), [8], num_tokens=88)
  parts = []
  for index in range(2):  # each host's own part; the collective sum is the mesh's business
    data = Windows(batch_size=4)
    batches = data.build("validation", seed=0, process_index=index, process_count=2, repeat=False)
    mine = [b for b in batches]
    keep = -(-(11 - index) // 2)
    parts.append(evaluate(BigramConfig(), params, mine, length=8, num_windows=keep))
  assert sum(p.tokens for p in parts) == want.tokens == 88
  np.testing.assert_allclose(sum(p.nll_T for p in parts), want.nll_T, rtol=1e-6)


def test_a_learned_table_that_ends_earlier_gives_no_number_but_the_reason(params):
  short, long = evaluate_lengths(BigramConfig(max_len=8), params, Windows(), [8, 16])
  assert math.isfinite(short.perplexity)
  assert math.isnan(long.perplexity) and "16" in long.note and "learned" in long.note
  assert "perplexity" not in long.to_json()


def test_a_split_shorter_than_one_window_is_refused(params):
  with pytest.raises(ConfigError, match="less than one window"):
    evaluate_lengths(BigramConfig(), params, Windows(num_tokens=12), [16])
