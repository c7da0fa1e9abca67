"""An update that is not finite, a batch without targets and a spike of the loss change nothing, and
cost no checkpoint.
"""

import dataclasses
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from test_train_step import run, started

from jaxlm.checkpoint.reading import restore_params
from jaxlm.config import ConfigError
from jaxlm.training.config import run_config
from jaxlm.training.guard import Watched
from jaxlm.training.loop import NonFinite
from jaxlm.training.run import train

KEPT = ("params", "opt_state", "ema", "objective")


def assert_unchanged(new, old):
  for name in KEPT:
    jax.tree.map(np.testing.assert_array_equal, getattr(new, name), getattr(old, name))


@pytest.mark.parametrize(
  "optimizer",
  [
    dict(kind="adamw", learning_rate=1e30),  # finite, but its square is not
    dict(
      kind="adamw", learning_rate=1e2, lr_multipliers=(("scale", 3e38),)
    ),  # infinite, one parameter of all
    dict(kind="sgd", learning_rate=1e6, weight_decay=3e38, clip_norm=None),
  ],
  ids=str,
)
def test_an_update_that_is_not_finite_changes_nothing_and_is_counted(optimizer):
  program, state, batches = started(**{"train.ema_decay": 0.9, "optimizer": optimizer})
  start = jax.device_get(state)
  end, metrics = run(program, state, batches[:2])
  assert all(np.isfinite(m["grad_norm"].sum) and np.isfinite(m["loss"].sum) for m in metrics)
  assert_unchanged(end, start)
  assert (end.step, end.skipped, end.skipped_in_row) == (2, 2, 2)


def test_an_optimiser_state_that_is_not_finite_is_not_accepted_either():
  program, state, batches = started(
    **{"optimizer": dict(kind="sgd", learning_rate=0.0, momentum=0.9, clip_norm=None)}
  )
  grown = dataclasses.replace(
    state, opt_state=jax.tree.map(lambda x: jnp.full_like(x, jnp.inf), state.opt_state)
  )
  start = jax.device_get(state.params)
  end, metrics = run(program, grown, batches[:1])
  assert np.isfinite(metrics[0]["grad_norm"].sum) and (end.step, end.skipped) == (1, 1)
  jax.tree.map(np.testing.assert_array_equal, end.params, start)


def test_a_batch_without_targets_is_no_update_and_no_failure():
  program, state, batches = started(**{"train.ema_decay": 0.9})
  first, _ = run(program, state, batches[:1])
  nothing = batches[1] | {"loss_weights": jnp.zeros_like(batches[1]["loss_weights"])}
  second, metrics = run(program, jax.device_put(first), [nothing])
  assert_unchanged(second, first)  # no weight decay, no momentum, no controller
  assert (second.step, second.skipped, second.skipped_in_row) == (2, 0, 0)
  assert (metrics[0]["empty"].sum, metrics[0]["skipped"].sum) == (1, 0)
  ended, _ = run(
    program, jax.device_put(dataclasses.replace(second, skipped_in_row=np.int32(3))), [nothing]
  )
  assert ended.skipped_in_row == 3  # it says nothing about whether losses are finite again


@pytest.mark.parametrize(
  "before, skipped",
  [((0.1, 0.1, 9.0), True), ((9.0, 0.1, 9.0), False), ((np.nan, 0.1, 0.1), False)],
  ids=["spike", "not a spike", "window not full"],
)
def test_a_loss_far_above_the_running_median_is_skipped_where_that_is_asked_for(before, skipped):
  program, state, batches = started(**{"train.spike_factor": 2.0, "train.spike_window": 3})
  state = dataclasses.replace(
    state, opt_state=state.opt_state._replace(losses=jnp.array(before, jnp.float32))
  )
  start = jax.device_get(state)
  end, metrics = run(program, state, batches[:1])
  loss = metrics[0]["loss"].sum / metrics[0]["loss"].weight
  assert 0.2 < loss < 9 and (end.skipped, metrics[0]["spike"].sum) == (skipped, skipped)
  if skipped:
    assert_unchanged(end, start)  # the window too: else many spikes would make the median theirs
  else:
    np.testing.assert_allclose(end.opt_state.losses, [*before[1:], loss], rtol=1e-6)


def test_the_policy_is_off_by_default_and_then_the_state_is_as_it_was():
  _, state, _ = started()
  assert not isinstance(state.opt_state, Watched)
  for factor in (1.0, math.nan, -2.0):
    with pytest.raises(ConfigError, match="train.spike_factor"):
      run_config(tiny_run.config(**{"train.spike_factor": factor}))


@pytest.mark.parametrize(
  "key",
  ["optimizer.eps", "optimizer.learning_rate", "optimizer.weight_decay", "optimizer.clip_norm"],
)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_of_the_optimiser_that_is_not_finite_is_refused(key, value):
  with pytest.raises(ConfigError, match=re.escape(key)):
    run_config(tiny_run.config(**{key: value}))


STORM = {
  "objective.kind": "tiny_nan",
  "objective.first": 3,
  "train.save_every": 1,
  "train.keep_last": 2,
  "mesh.fsdp": 1,
  "mesh.data": 8,
  "schedule": "constant",
}


def saved(folder):
  return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


def test_no_good_checkpoint_is_given_up_while_steps_are_skipped_and_the_result_says_why_it_ended(
  tmp_path,
):
  with pytest.raises(
    NonFinite, match=r"step 8: 5 steps in a row .* The newest checkpoint is of step 3\."
  ):
    train(
      tiny_run.config(**STORM, **{"train.steps": 20, "train.max_skipped": 5}), tmp_path, quiet=True
    )
  assert saved(tmp_path) == [2, 3]
  result = json.loads((tmp_path / "result.json").read_text())
  assert not result["finished"] and result["failed"].startswith(
    "step 8: 5 steps in a row without a finite loss and gradient"
  )
  assert (result["step"], result["skipped"], result["saved"]) == (8, 5, 3)


def test_a_run_that_ends_in_skipped_steps_is_saved_beside_the_good_checkpoints(tmp_path):
  result = train(tiny_run.config(**STORM, **{"train.steps": 5}), tmp_path, quiet=True)
  assert result.step == 5 and saved(tmp_path) == [2, 3, 5]


def test_what_a_hopeless_learning_rate_leaves_is_what_was_before_it(tmp_path):
  with pytest.raises(
    NonFinite,
    match="without a finite update of the parameters .* though loss and gradient are finite",
  ):
    train(
      tiny_run.config(
        **{"optimizer.learning_rate": 1e30, "train.save_every": 1, "train.steps": 20}
      ),
      tmp_path,
      quiet=True,
    )
  assert not (tmp_path / "checkpoints").exists() or saved(tmp_path) == []
  with pytest.raises(ConfigError, match="no complete checkpoint"):
    restore_params(tmp_path)
