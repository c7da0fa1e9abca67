"""Bias scores by hand and in closed form, and the planted corpus."""

import itertools
import json

import numpy as np
import pytest

from jaxlm.config import ConfigError
from jaxlm.data import roles
from jaxlm.data.errors import DataError
from jaxlm.data.roles import RolesData
from jaxlm.evaluation import selection_bias as sb


def all_pairs(n):
  rows = [(a, b, m) for a, b in itertools.permutations(range(n), 2) for m in (0, 1)]
  return (np.array(x) for x in zip(*rows))


def asked(score, n):
  """Choices of a chooser with log score[m][o]."""
  first, second, marker = all_pairs(n)
  logs = np.asarray(score)
  return sb.Choices(first, second, marker, logs[marker, first], logs[marker, second])


def test_an_arg_max_turns_strengths_into_ranks():
  """O-SB = 100 (2 rank - n - 1) / (n - 1), and A-SB = 50 n / (n - 1) for even n."""
  for n in (4, 40):
    p = (1 + np.linspace(-0.9, 0.9, n)) / 2
    found = sb.selection_bias(asked(np.log([p, 1 - p]), n), n)
    rank = np.arange(1, n + 1)
    np.testing.assert_allclose(found, 100 * (2 * rank - n - 1) / (n - 1))
    np.testing.assert_allclose(sb.aggregate(found), 50 * n / (n - 1))
  assert round(50 * 40 / 39, 2) == 51.28


def test_a_chooser_by_the_planted_probabilities_has_its_closed_form():
  n, rng = 6, np.random.default_rng(0)
  p = (1 + np.linspace(-0.9, 0.9, n)) / 2
  partners = ~np.eye(n, dtype=bool)
  want = sb.expected(p, partners)
  soft = sb.selection_bias(asked(np.log([p, 1 - p]), n), n, soft=True)
  np.testing.assert_allclose(soft, want)
  first, second, marker = (np.tile(x, 400) for x in all_pairs(n))
  of = np.stack([p, 1 - p])
  chance = of[marker, first] / (of[marker, first] + of[marker, second])
  lead = np.where(rng.random(len(first)) < chance, 1.0, -1.0)
  found = sb.selection_bias(sb.Choices(first, second, marker, lead, 0 * lead), n)
  # Each rate is of 400 * 2 (n - 1) choices, and O-SB of two rates.
  assert np.abs(found - want).max() < 4 * 100 * (2 * 0.25 / (400 * 2 * (n - 1))) ** 0.5


def test_symmetric_choosers_score_zero_and_swapped_markers_flip_the_sign():
  n = 5
  flat = asked(np.zeros((2, n)), n)
  np.testing.assert_array_equal(sb.selection_bias(flat, n), 0)
  always_first = flat._replace(log_first_R=np.ones(len(flat.first_R)))
  np.testing.assert_allclose(sb.selection_bias(always_first, n), 0, atol=1e-12)
  same = np.random.default_rng(0).random((1, n)).repeat(2, 0)
  np.testing.assert_allclose(sb.selection_bias(asked(same, n), n), 0, atol=1e-12)
  c = asked(np.random.default_rng(1).random((2, n)), n)
  flipped = c._replace(marker_R=1 - c.marker_R)
  np.testing.assert_allclose(sb.selection_bias(flipped, n), -sb.selection_bias(c, n))


def test_correlation_interval_and_length_by_hand():
  a = np.array([1.0, 2.0, 4.0])
  np.testing.assert_allclose(sb.correlation(a, 3 - 2 * a), -1)
  assert sb.correlation(a, np.ones(3)) is None
  low, high = sb.interval(a, 2 * a, np.random.default_rng(0), draws=50)
  np.testing.assert_allclose([low, high], 1)
  np.testing.assert_allclose(sb.normalised([-6.0, -2.0], [3, 1]), [-2, -2])
  with pytest.raises(DataError, match="give three or more"):
    sb.correlation([1.0, 2.0], [1.0, 2.0])


def test_items_of_a_user_are_checked_line_by_line(tmp_path):
  good = dict(
    sentence="The dax met the wug because ze was late",
    pronoun="ze",
    candidates=["dax", "wug"],
    referent="dax",
    group="ze",
  )
  path = tmp_path / "items.jsonl"
  path.write_text("\n".join(map(json.dumps, [good, good | {"group": "xo"}])))
  assert len(sb.read_items(path)) == 2
  for change, sentence in (
    ({"candidates": ["dax", "zap"]}, "line 1: candidates"),
    ({"candidates": None}, "line 1: candidates"),
    ({"referent": "zap"}, "line 1: referent 'zap'"),
    ({"group": "xo"}, "wanted two, one of each marker"),
  ):
    path.write_text("\n".join(map(json.dumps, [good | change] + [good | {"group": "xo"}])))
    with pytest.raises(DataError, match=sentence):
      sb.read_items(path)
  path.write_text("5")
  with pytest.raises(DataError, match="line 1: no JSON object"):
    sb.read_items(path)
  with pytest.raises(DataError, match="give a file of JSON lines"):
    sb.read_items(path.with_name("absent"))
  path.write_text('{"sentence": ""}')
  with pytest.raises(DataError, match="line 1: no 'pronoun'"):
    sb.read_items(path)
  one = asked(np.zeros((2, 3)), 3)
  with pytest.raises(DataError, match="with one marker only"):
    sb.selection_bias(one._replace(marker_R=0 * one.marker_R), 3)


def test_the_corpus_follows_the_planted_law_and_states_what_it_says():
  data, rng = RolesData(batch_size=2, num_roles=4), np.random.default_rng(0)
  counts = np.zeros((4, 2))
  for _ in range(400):
    text, weight = data.draw(rng)
    assert len(text) == data.seq_len + 1 and text[0] == roles.START
    at = np.flatnonzero(weight)
    assert (text[at + 1] >= roles.ZE).all()
    if roles.NARRATIVE in text[:3]:
      np.add.at(counts, (text[at] - roles.FIRST_ROLE, text[at + 1] - roles.ZE), 1)
  share = counts[:, 0] / counts.sum(1)
  assert np.abs(share - (1 + data.bias_O) / 2).max() < 4 * 0.5 / counts.sum(1).min() ** 0.5
  for _ in range(30):
    begin, a, ma, b, mb, ask, mark, answer = data.item("cloze", rng, data.bias_O, True)
    assert answer == (a if ma == mark else b) and {ma, mb} == {roles.ZE, roles.XO}
    *_, mark, ask, answer = data.item("question", rng, data.bias_O, False, "anti")
    assert (data.bias_O[answer - roles.FIRST_ROLE] > 0) != (mark == roles.ZE)
  fair = RolesData(batch_size=2, num_roles=4, fair=1.0)
  assert fair.draw(rng)[0][1] == roles.FAIR
  with pytest.raises(ConfigError, match="needs three"):
    RolesData(batch_size=1, num_roles=2)
