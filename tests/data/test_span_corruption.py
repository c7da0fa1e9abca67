"""Span corruption and ByT5 tokens: what they refuse."""

import numpy as np
import pytest

from jaxlm.data import DataError, byte_t5, span_corruption


def test_more_spans_than_impossible_bytes_are_refused():
  span_corruption.check_spans(1024, 0.15, 20.0)
  with pytest.raises(DataError, match="57 spans|spans at inputs_length"):
    span_corruption.check_spans(1024, 0.15, 3.0)


def test_text_that_is_not_utf8_is_refused_with_its_place():
  with pytest.raises(DataError, match="0xff at 2"):
    byte_t5.encode(b"ab\xff")


def test_inputs_and_labels_together_hold_every_token_once():
  rng = np.random.default_rng(0)
  tokens = rng.integers(3, 100, 148)
  inputs, labels = span_corruption.corrupt(tokens, span_corruption.noise_mask(148, 0.15, 20.0, rng))

  def kept(x):
    return x[(x > 1) & (x < 247)]

  assert sorted([*kept(inputs), *kept(labels)]) == sorted(tokens)
