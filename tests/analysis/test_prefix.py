"""Rows that all begin alike, and prefixes that see themselves whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from jaxlm.analysis import observe
from jaxlm.config import ConfigError
from jaxlm.data.text import TextData, evaluation_batches
from jaxlm.objectives.next_token import NextToken
from jaxlm.training.config import check, load_config, run_config

TEXT = dict(source="mini:udhr/eng", seq_len=16, batch_size=2)


def test_every_row_of_a_text_begins_with_the_separator_and_keeps_its_targets():
  plain, started = TextData(**TEXT), TextData(**TEXT, row_start=True)
  for rows in (
    lambda data: data.build("validation", seed=0, repeat=False),
    lambda data: evaluation_batches(data, "validation", 16, 2),
  ):
    a, b = next(iter(rows(plain))), next(iter(rows(started)))
    assert (b["tokens"][:, 0] == started.start).all() and plain.start is None
    for name in a:
      kept = slice(1, None) if name == "tokens" else slice(None)
      np.testing.assert_array_equal(a[name][:, kept], b[name][:, kept])
  with pytest.raises(ConfigError, match="set packing = 'windows'"):
    TextData(**TEXT, row_start=True, packing="packed")
  with pytest.raises(ConfigError, match="set data.source to the text itself"):
    TextData(**(TEXT | dict(source="store:somewhere")), row_start=True)


def test_the_tokens_of_a_prefix_see_one_another_and_no_later_one():
  mixer = dict(kind="attention", num_heads=2, prefix=4)
  model, batch = small.opened(mixer=mixer), small.tokens()
  found = observe(model, batch, "attention")["attention"][0]
  i, j = np.arange(small.T)[:, None], np.arange(small.T)
  seen = (j <= i) | ((i < 4) & (j < 4))
  assert (np.asarray(found)[:, :, seen] > 0).all() and not np.asarray(found)[:, :, ~seen].any()
  other = batch.copy()
  other[:, 6:] = (other[:, 6:] + 1) % small.V
  a, b = small.logits(model, batch), small.logits(model, other)
  np.testing.assert_allclose(a[:, :6], b[:, :6], atol=1e-6)
  other = batch.copy()
  other[:, 3] = (other[:, 3] + 1) % small.V
  assert float(jnp.abs(small.logits(model, other)[:, 0] - a[:, 0]).max()) > 1e-4
  with pytest.raises(ConfigError, match="nothing to cache"):
    model.config.init_state(1, 8)


def test_targets_inside_the_prefix_weigh_nothing_and_a_leak_is_refused():
  model, batch = small.opened(), small.tokens(length=6)
  row = dict(
    tokens=batch,
    targets=batch,
    segment_ids=np.ones_like(batch),
    positions=np.broadcast_to(np.arange(6, dtype=np.int32), (2, 6)),
    loss_weights=np.ones((2, 6), np.float32),
  )

  def loss(prefix):
    run = lambda p: NextToken(prefix=prefix).loss(  # noqa: E731
      model.config.build(), p, row, None, {}, train=True
    )
    return jax.jit(run)(model.params).loss

  whole, later = loss(0), loss(4)
  assert float(whole.weight) == 12 and float(later.weight) == 6  # positions 3, 4 and 5 of two rows
  cfg = run_config(load_config("configs/attnsink/tiny.py", {"model.mixer.prefix": 5}))
  with pytest.raises(ConfigError, match="set objective.prefix = 5"):
    check(cfg, 1)
