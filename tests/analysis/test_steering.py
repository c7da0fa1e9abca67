"""Steering keeps norms, vanishes where nothing differs, and the planted cues are where they should be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from jaxlm.analysis import intervene, observe
from jaxlm.analysis import steering as st
from jaxlm.analysis.attribution.gradients import GradientXInput
from jaxlm.config import ConfigError
from jaxlm.data.planted import ASK, START, RecallData, StylesData, require_planted

KEY = jax.random.key(0)


def pair(plus, minus, model=None):
  model = model or small.opened()
  return model, st.preference(model.config, model.params, small.tokens(length=5), plus, minus)


def test_equal_responses_give_zero_attribution_zero_direction_and_the_identity():
  same = np.array([[1, 2], [3, 4]])
  model, both = pair(same, same)
  a = st.attribute(GradientXInput(), both, 5, KEY)
  np.testing.assert_array_equal(a, 0)
  chosen = st.choose(a, 2, "pos", np.random.default_rng(0))
  v = st.shifts(both.plus, chosen, 0, 1) - st.shifts(both.minus, chosen, 0, 1)
  assert not v.any() and st.steered(st.direction(v), 4.0, 1) == {}
  assert not st.direction(v, "pca").any() and st.steered(np.ones(4), 0.0, 1) == {}


def test_responses_of_different_length_and_the_attribution_of_a_difference():
  model, both = pair(np.array([[1], [3]]), np.array([[2, 2], [4, 1]]))
  a = st.attribute(GradientXInput(), both, 5, KEY)
  want = GradientXInput()(both.plus, KEY)[:, :5] - GradientXInput()(both.minus, KEY)[:, :5]
  np.testing.assert_allclose(a, want, atol=1e-6)
  with pytest.raises(ConfigError, match="an empty response"):
    pair(np.zeros((2, 0), int), np.array([[1], [1]]))


def test_norms_are_kept_at_every_position_and_layers_before_are_unchanged():
  model, batch = small.opened(), small.tokens()
  v = np.random.default_rng(0).standard_normal(small.D)
  plain = observe(model, batch, "resid")["resid"]
  found = intervene(model, batch, st.steered(v, 2.0, 1), "resid")["resid"]
  norm = lambda x: np.linalg.norm(np.asarray(x, np.float64), axis=-1)  # noqa: E731
  np.testing.assert_allclose(norm(found[1]), norm(plain[1]), rtol=1e-6)
  np.testing.assert_array_equal(found[0], plain[0])
  moved = np.asarray(plain[1]) + 2 * v
  want = moved * (norm(plain[1]) / norm(moved))[..., None]
  np.testing.assert_allclose(found[1], want, atol=1e-4)
  released = intervene(model, batch, st.as_released(v, 0.2, 1), "resid")["resid"][1]
  over_time = lambda x: np.linalg.norm(np.asarray(x, np.float64), axis=1)  # noqa: E731
  np.testing.assert_allclose(over_time(released), over_time(plain[1]), rtol=1e-5)


def test_one_position_is_moved_and_the_others_are_not():
  model, batch = small.opened(), small.tokens()
  T, v = batch.shape[1], np.ones(small.D, np.float32)
  changes = st.steered(v, 0.7, 1, at_T=np.arange(T) == 4)
  plain = observe(model, batch, "resid")["resid"][1]
  moved = intervene(model, batch, changes, "resid")["resid"][1]
  far = np.abs(np.asarray(moved) - np.asarray(plain)).max(axis=(0, 2))
  np.testing.assert_array_equal(far > 1e-4, np.arange(T) == 4)
  np.testing.assert_allclose(
    np.linalg.norm(moved, axis=-1), np.linalg.norm(plain, axis=-1), rtol=1e-5
  )


def test_a_scan_over_layers_is_steered_as_an_unrolled_model():
  v = np.ones(small.D)
  outs = []
  for unroll in (1, 2):
    cfg = small.decoder(unroll=unroll)
    model = small.Opened(cfg, small.params_of(small.decoder()), folder="")
    outs.append(intervene(model, small.tokens(), st.steered(v, 1.0, 0))["output"])
  np.testing.assert_allclose(*outs, atol=1e-5)


def test_choices_directions_and_their_errors():
  rng = np.random.default_rng(0)
  a = np.array([[3.0, -4.0, 1.0, 0.0]])
  picked = lambda how, n: np.flatnonzero(st.choose(a, n, how, rng)[0]).tolist()  # noqa: E731
  assert (picked("pos", 1), picked("neg", 1), picked("abs", 2)) == ([0], [1], [0, 1])
  assert picked("pos", 9) == [0, 1, 2, 3] and len(picked("rand", 2)) == 2
  keep = np.array([[True, False, False, False]])
  assert np.flatnonzero(st.choose(a, 1, "pos", rng, keep)[0]).tolist() == [2]
  d = np.array([[2.0, 0.1], [4.0, -0.1], [3.0, 0.0]])
  v = st.direction(d, "pca")
  assert v @ d.mean(0) > 0 and abs(np.linalg.norm(v) - np.linalg.norm(d.mean(0))) < 1e-9
  with pytest.raises(ConfigError, match="one of pos, neg, abs, rand"):
    st.choose(a, 1, "most", rng)
  model, both = pair(np.array([[1], [3]]), np.array([[2], [4]]))
  with pytest.raises(ConfigError, match="there are layers 0 .. 1"):
    st.states(model.config, model.params, small.tokens(), 2)
  with pytest.raises(ConfigError, match="name the one that stands for a removed token"):
    st.shifts(both.plus, np.zeros((2, 5), bool), 99, 0)


def test_greedy_continuation_is_that_of_whole_passes():
  model = small.opened()
  prompt = small.tokens(length=4)
  got = st.continued(model, prompt, 2, {}, KEY, temperature=0)
  rows = jnp.asarray(prompt)
  for i in range(2):
    token = small.logits(model, rows)[:, -1].argmax(-1)
    np.testing.assert_array_equal(got[:, i], token)
    rows = jnp.concatenate([rows, token[:, None].astype(jnp.int32)], axis=1)


def test_styles_follow_their_cue_and_parse():
  data = StylesData(batch_size=4)
  rng = np.random.default_rng(0)
  for _ in range(50):
    row = data.draw(rng)
    assert row["prompt"][0] == START and row["prompt"][-1] == ASK
    assert data.parse(row["prompt"], row["answer"]) == row["style"]
    if row["cue"].any():
      assert row["prompt"][row["cue"]][0] in data.words(row["style"])["cues"]
  assert data.parse(row["prompt"], row["answer"][::-1]) is None
  batch = next(iter(data.build("train", seed=0)))
  assert batch["tokens"].shape == (4, data.seq_len) and batch["loss_weights"].sum() == 12
  assert max(batch["targets"].max(), data.words(1)["closers"].max()) < data.vocab_size


def test_recall_marks_what_matters_and_rows_without_a_cue_are_refused():
  data = RecallData(batch_size=4)
  found = data.examples("validation", 0, 30)
  for prompt, answer, relevant in zip(found["prompt"], found["answer"], found["relevant"]):
    assert relevant.sum() == 3 and relevant[-1]
    at = np.flatnonzero(relevant)
    assert prompt[at[0]] == prompt[-1] and prompt[at[1]] == answer[0]
  one = next(iter(data.build("train", seed=0)))
  several = RecallData(batch_size=4, num_asked=3)
  batch = next(iter(several.build("train", seed=0)))
  T, first = several.seq_len, data.seq_len - 1  # first: the input whose target is the first answer
  assert batch["tokens"].shape == (4, T) and T == data.seq_len + 6
  np.testing.assert_array_equal(batch["tokens"][:, : first + 1], one["tokens"])
  np.testing.assert_array_equal(one["loss_weights"], np.tile(np.arange(first + 1) == first, (4, 1)))
  for row in range(4):
    counted = np.flatnonzero(batch["loss_weights"][row])
    np.testing.assert_array_equal(counted, first + 3 * np.arange(3))
    shown = dict(batch["tokens"][row, 1 : 1 + 2 * data.num_pairs].reshape(-1, 2))
    for at in counted:
      assert batch["targets"][row, at] == shown[batch["tokens"][row, at]]
  with pytest.raises(ConfigError, match="row 1 holds no planted cue"):
    require_planted([[True, False], [False, False]], "cue")
  with pytest.raises(ConfigError, match="take more keys"):
    RecallData(batch_size=1, num_pairs=20)
