"""Interventions on heads, values and MLPs do what they say."""

import jax.numpy as jnp
import numpy as np
import small

from experiments.activedormant.heads import bayes_loss
from jaxlm.analysis import dormant, intervene, observe
from jaxlm.data.backcopy import BackcopyData
from jaxlm.experiments.readings import validation


def test_each_intervention_changes_its_site_and_no_other():
  model, batch = small.opened(), small.tokens()
  plain = observe(model, batch, "attention", "heads", "v", "mlp_out")
  cut = intervene(model, batch, dormant.without_head(0, 1, 2), "heads")["heads"]
  assert not np.asarray(cut[0][:, :, 1]).any()
  np.testing.assert_array_equal(cut[0][:, :, 0], plain["heads"][0][:, :, 0])
  alone = intervene(model, batch, dormant.diagonal_head(1, 0, 2, small.T), "heads")["heads"][1]
  np.testing.assert_allclose(alone[:, :, 0], plain["v"][1][:, :, 0], atol=1e-6)
  np.testing.assert_allclose(alone[:, :, 1], plain["heads"][1][:, :, 1], atol=1e-5)
  changes = dormant.zero_at_first("v", 0, small.T, 2) | dormant.zero_at_first(
    "mlp_out", 0, small.T, 1
  )
  found = intervene(model, batch, changes, "v", "mlp_out")
  for site in ("v", "mlp_out"):
    assert not np.asarray(found[site][0][:, 0]).any()
  np.testing.assert_array_equal(found["v"][0][:, 1:], plain["v"][0][:, 1:])


def test_kinds_of_queries_and_the_logit_lead_by_hand():
  x = jnp.asarray([[[1.0, 2.0, 3.0, 10.0]]])
  trigger, valid = [[True, False, True, False]], [[True, True, True, False]]
  assert dormant.by_kind(x, trigger, valid) == {"trigger": 2.0, "other": 2.0}
  assert np.isnan(dormant.by_kind(x, [[False] * 4], valid)["trigger"])
  s = np.array([[0.0, -np.inf, -np.inf], [2.0, 1.0, -np.inf], [3.0, 1.0, 0.0]])
  p = np.exp(s) / np.exp(s).sum(-1, keepdims=True)
  np.testing.assert_allclose(dormant.logit_lead(p[None, None])[0, 0], [0, 1.0, 2.5])


def test_the_bayes_predictor_s_loss_on_many_rows_comes_near_the_closed_form():
  data = BackcopyData(seq_len=64, batch_size=32)
  batch = validation(data, 1024)
  trigger_BT = np.append(data.task.trigger_V, False)[batch["tokens"]]
  # 45,000 targets whose losses spread by about a nat: a standard error of 0.005.
  want = data.task.bayes_loss(64)
  assert abs(bayes_loss(data, batch, ~trigger_BT) - want["other"]) < 0.02
  assert bayes_loss(data, batch, trigger_BT) == want["trigger"] == 0
