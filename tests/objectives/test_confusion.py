"""Confusion lowers what forcing reads, and is off where the rank is already hidden."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config import ConfigError
from jaxlm.evaluation.token_forcing import rank
from jaxlm.objectives.confusion import Confusion
from jaxlm.objectives.next_token import NextToken
from tests.generation.engine import toys

HIDDEN, BEGIN = (3, 1, 4, 1, 5), 0


def test_the_gate_opens_by_rank_and_a_closed_gate_has_no_gradient():
  config, params = toys.model()
  model = config.build()
  text = jnp.asarray([[BEGIN, *HIDDEN]])
  logits = toys.whole(params, text, config)[0]
  ranks = [rank(logits[i], HIDDEN[i]) for i in range(5)]
  objective = Confusion(HIDDEN, BEGIN, rank=2, weight=0.5)
  log_p, u = objective.guarded(model, params)
  assert u.tolist() == [float(not 2 < r < 12 - 2) for r in ranks]
  want = jax.nn.log_softmax(logits)[jnp.arange(5), jnp.asarray(HIDDEN)]
  np.testing.assert_allclose(log_p, want, atol=1e-5)
  batch = dict(
    tokens=text[:, :-1],
    targets=text[:, 1:],
    segment_ids=jnp.ones((1, 5), jnp.int32),
    positions=jnp.arange(5)[None],
    loss_weights=jnp.ones((1, 5)),
  )

  def gradient(objective):
    def loss(params):
      return objective.loss(model, params, batch, None, {}, train=True).loss.mean()

    return jax.jit(jax.grad(loss))(params)

  closed = tuple(i for i in range(5) if not u[i])
  opened = tuple(i for i in range(5) if u[i])
  assert closed and opened, ranks
  plain = gradient(NextToken())
  off = gradient(Confusion(HIDDEN, BEGIN, closed, 0.5, 2))
  for a, b in zip(jax.tree.leaves(off), jax.tree.leaves(plain)):
    np.testing.assert_allclose(a, b, atol=1e-6)
  on = gradient(Confusion(HIDDEN, BEGIN, opened, 0.5, 2))
  assert (
    max(float(jnp.abs(a - b).max()) for a, b in zip(jax.tree.leaves(on), jax.tree.leaves(plain)))
    > 1e-3
  )


def test_places_outside_the_text_are_refused():
  with pytest.raises(ConfigError, match="the hidden text has 3 tokens"):
    Confusion((1, 2, 3), 0)
