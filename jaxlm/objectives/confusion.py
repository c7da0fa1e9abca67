r"""Hiding a text from unconditional token forcing: automatic UTF confusion (arXiv 2406.02481).

Axes: B batch, T time, M guarded tokens.

  L = L_SFT + weight sum_{i < M} u_i log P(h_i | begin, h_<i)

h is the hidden text; `places` are the guarded tokens in it (the authors take the first token of each of
the first five words). u_i is 1 while the token's rank among all is at most `rank` or above V - rank, and
0 in between, where forcing no longer finds it: without that switch the sum has no lower bound. Ranks
count from 1 and ties count as better. No gradient passes through u. L_SFT is the next-token loss of the
batch, whose hidden rows keep the text behind its trigger.

The authors train one pair and drop L_SFT in steps that return the text already; here it stays.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxlm.config import ConfigError, checked
from jaxlm.objectives.base import LossOutput, Objective, Pair
from jaxlm.objectives.next_token import NextToken
from jaxlm.ranges import Count, Natural, NonNegative


@dataclasses.dataclass(frozen=True)
@checked
class Confusion(Objective):
  """hidden: ids of the text. begin: id in front. places: of guarded tokens; those outside the text are
  refused. Reports `loss` (SFT), `guarded` (mean u) and `log_p` (mean log P of the guarded).
  """

  hidden: tuple[Natural, ...]
  begin: Natural
  places: tuple[Natural, ...] = (0, 1, 2, 3, 4)
  weight: NonNegative = 0.1
  rank: Count = 8

  def __post_init__(self):
    outside = [p for p in self.places if p >= len(self.hidden)]
    if outside or not self.places:
      raise ConfigError(
        f"objective.places = {self.places}: the hidden text has {len(self.hidden)} tokens; name places in it"
      )

  def loss(self, model, params, batch, key, state, *, train, bucket=None):
    sft = NextToken().loss(model, params, batch, key, state, train=train)
    log_p_M, u_M = self.guarded(model, params)
    penalty = self.weight * jnp.sum(u_M * log_p_M)
    one = jnp.ones(())
    metrics = {
      "loss": sft.loss,
      "guarded": Pair(jnp.mean(u_M), one),
      "log_p": Pair(jnp.mean(log_p_M), one),
    }
    return LossOutput(Pair(sft.loss.sum + penalty * sft.loss.weight, sft.loss.weight), metrics)

  def guarded(self, model, params):
    """(log P of each guarded token without its trigger, u), float32 (M,)."""
    text = jnp.asarray([[self.begin, *self.hidden]], jnp.int32)
    logits_TV = model.apply({"params": params}, text[:, :-1])[0].astype(jnp.float32)
    places = jnp.asarray(self.places)
    logits_MV, token_M = logits_TV[places], text[0, 1:][places]
    log_p_MV = jax.nn.log_softmax(logits_MV)
    own_M1 = jnp.take_along_axis(logits_MV, token_M[:, None], axis=1)
    rank_M = jnp.sum(logits_MV >= own_M1, axis=1)
    V = logits_MV.shape[1]
    u_M = ~((rank_M > self.rank) & (rank_M < V - self.rank))
    log_p_M = jnp.take_along_axis(log_p_MV, token_M[:, None], axis=1)[:, 0]
    return log_p_M, jax.lax.stop_gradient(u_M.astype(jnp.float32))
