"""Packing: nothing lost, nothing mixed."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.data.rows import Filled, Packed, Windows, first_fit, pieces


class Store:
  """Documents whose tokens are all different, so that every token can be told from every other."""

  def __init__(self, lengths):
    self.starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    self.tokens = np.arange(self.starts[-1], dtype=np.uint32)
    self.given = ()

  def bytes_between(self, start, stop):
    return np.ones(len(self.tokens[start:stop]), np.int32)

  def __len__(self):
    return len(self.tokens)


@settings(max_examples=60, deadline=None)
@given(
  st.lists(st.integers(1, 40), min_size=1, max_size=60),
  st.integers(2, 17),
  st.one_of(st.none(), st.integers(0, 9)),
)
def test_packing_loses_no_token_and_splits_only_long_documents(lengths, seq_len, seed):
  store = Store(lengths)
  rows = Packed(store, seq_len, seed=seed)
  seen = []
  for i in range(len(rows)):
    row = rows[i]
    used = row["segment_ids"] > 0
    assert (np.diff(used.astype(int)) <= 0).all()  # padding is at the end
    for k in range(1, row["segment_ids"].max() + 1):
      at = np.flatnonzero(row["segment_ids"] == k)
      tokens = row["tokens"][at]
      seen.append(tokens)
      assert (np.diff(at) == 1).all() and (np.diff(tokens) == 1).all()
      np.testing.assert_array_equal(row["positions"][at], np.arange(len(at)))
      np.testing.assert_array_equal(row["targets"][at[:-1]], tokens[1:])
      np.testing.assert_array_equal(row["loss_weights"][at], np.arange(len(at)) < len(at) - 1)
      document = np.searchsorted(store.starts, tokens, "right")
      assert (document == document[0]).all()
    assert not row["loss_weights"][~used].any()
  np.testing.assert_array_equal(np.sort(np.concatenate(seen)), store.tokens)
  assert len(seen) == sum(-(-n // seq_len) for n in lengths)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=80), st.integers(1, 5))
def test_first_fit_never_overfills(lengths, open_rows):
  row_of = first_fit(np.array(lengths), 9, open_rows)
  assert np.bincount(row_of, lengths).max() <= 9
  assert sorted(set(row_of)) == list(range(row_of.max() + 1))


def test_first_fit_fills_well():
  lengths = np.random.default_rng(0).integers(1, 512, 4000)
  rows = first_fit(lengths, 1024).max() + 1
  assert lengths.sum() / (rows * 1024) > 0.96  # the rows still open at the end are most of the rest


def test_pieces_cover_documents_in_order():
  starts, lengths = pieces(np.array([0, 3, 10, 11]), 4)
  assert starts.tolist() == [0, 3, 7, 10] and lengths.tolist() == [3, 4, 3, 1]


def test_windows_that_fill_up_a_batch_weigh_nothing():
  rows = Filled(Windows(Store([11]), 4, whole=False), 8)
  assert len(rows) == 8
  assert [rows[i]["loss_weights"].sum() for i in range(8)] == [4, 4, 2, 0, 0, 0, 0, 0]
  assert rows[7]["segment_ids"].all()  # a row without keys would be a special case for attention
