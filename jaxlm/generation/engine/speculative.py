r"""Speculative decoding of ragged batches: a chain of draft tokens per row and round.

Axes: B batch, V vocab, K = num_draft + 1.

With q_i the draft's distribution behind the first i draft tokens x_1 .. x_gamma and p_i the target's,
token by token from the left,

  accept x_i with probability min(1, p_{i-1}(x_i) / q_{i-1}(x_i));
  at the first rejection draw from norm([p_{i-1} - q_{i-1}]_+), and if none is rejected from p_gamma.

The row then has the distribution of the target alone (Leviathan et al., arXiv 2211.17192, theorem 1;
Chen et al., arXiv 2302.01318; numbers from memory). Greedy: p and q are one-hot, so x_i is accepted if it
is the target's best.

A batch is ragged, for rows accept different numbers (Batch Speculative Decoding Done Right, arXiv
2510.22876). Here every row has its own write index in static caches, and states go back row by row
(`layers.rewind`): nothing is realigned. Every mixer that can go back serves, as target and as draft.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxlm.config import checked
from jaxlm.generation.engine.drafted import (
  Carry,
  DraftedEngine,
  commit,
  next_pending,
  residual,
)
from jaxlm.generation.engine.step import extend
from jaxlm.generation.sampling import Sampling, probabilities
from jaxlm.ranges import Count, Natural


@dataclasses.dataclass(frozen=True)
@checked
class Speculative(DraftedEngine):
  """num_draft: tokens that are drafted in a round. draft: config of the model that drafts.

  deterministic: see `LeftToRight`; greedy tokens then equal its own to the last bit of the logits.
  """

  model: object
  draft: object = None
  sampling: Sampling = Sampling()
  stops: tuple[Natural, ...] = ()
  num_draft: Count = 4
  deterministic: bool = False

  @classmethod
  def from_options(cls, options):
    chosen = super().from_options(options._replace(draft=None, num_draft=None))
    chosen |= {} if options.num_draft is None else {"num_draft": options.num_draft}
    return chosen | {"draft": options.draft}

  @property
  def back(self):
    return self.num_draft + 1

  def round(self, params, carry: Carry, keys_B, room_B) -> Carry:
    done, n = carry.committed, self.num_draft
    drafts_Bn, q_BnV, draft = draft_chain(self, params["draft"], carry, keys_B)
    read_BK = jnp.concatenate([done.last_B[:, None], drafts_Bn], axis=1)
    valid_BK = jnp.broadcast_to(done.alive_B[:, None], read_BK.shape).astype(jnp.int32)
    before_B = carry.target.length_B
    logits_BKV, target = extend(
      self.model,
      params["target"],
      read_BK,
      carry.target,
      valid_BK,
      deterministic=self.deterministic,
    )
    p_BKV = of_each(self.sampling, logits_BKV, done.num_new_B)
    accepted_B, own_B = accept(keys_B, drafts_Bn, p_BKV, q_BnV)
    tokens_BK = jnp.concatenate([drafts_Bn, own_B[:, None]], axis=1)
    tokens_BK = tokens_BK.at[jnp.arange(len(own_B)), accepted_B].set(own_B)
    target = self.model.rewind(target, before_B + accepted_B + 1)
    # The draft has read all drafts but the last one.
    read_B = jnp.minimum(accepted_B, n - 1)
    draft = self.draft.rewind(draft, before_B + 1 + read_B)
    pending_B2, num_pending_B = next_pending(tokens_BK, accepted_B + 1, read_B)
    done = commit(done, tokens_BK, accepted_B + 1, self.stops, room_B)
    return Carry(target, draft, pending_B2, num_pending_B, done)


def draft_chain(engine, params, carry: Carry, keys_B):
  """(drafts (B, n), their distributions (B, n, V), the draft's state, which has read all but the last)."""
  done, chain, qs = carry.committed, [], []
  valid_B2 = (jnp.arange(2)[None] < carry.num_pending_B[:, None]) & done.alive_B[:, None]
  logits_B2V, state = extend(
    engine.draft,
    params,
    carry.pending_B2,
    carry.draft,
    valid_B2.astype(jnp.int32),
    deterministic=engine.deterministic,
  )
  row_B = jnp.arange(len(keys_B))
  logits_BV = logits_B2V[row_B, carry.num_pending_B - 1]
  for i in range(engine.num_draft):
    q_BV = probabilities(logits_BV, engine.sampling, done.num_new_B + i)
    token_B = draw(keys_B, i, q_BV)
    chain.append(token_B)
    qs.append(q_BV)
    if i + 1 < engine.num_draft:
      logits_B1V, state = extend(
        engine.draft,
        params,
        token_B[:, None],
        state,
        done.alive_B[:, None].astype(jnp.int32),
        deterministic=engine.deterministic,
      )
      logits_BV = logits_B1V[:, 0]
  return jnp.stack(chain, axis=1), jnp.stack(qs, axis=1), state


def accept(keys_B, drafts_Bn, p_BKV, q_BnV):
  """(drafts that are accepted, the target's own token behind them), int32 (B,)."""
  n = drafts_Bn.shape[1]
  p_Bn, q_Bn = (
    jnp.take_along_axis(x[:, :n], drafts_Bn[..., None], axis=2)[..., 0] for x in (p_BKV, q_BnV)
  )
  u_Bn = jnp.stack([uniform(keys_B, n + i) for i in range(n)], axis=1)
  taken_Bn = u_Bn * q_Bn < p_Bn
  accepted_B = jnp.sum(jnp.cumprod(taken_Bn, axis=1), axis=1, dtype=jnp.int32)
  row_B = jnp.arange(len(accepted_B))
  q_BKV = jnp.pad(q_BnV, ((0, 0), (0, 1), (0, 0)))  # nothing was drafted behind the last
  rest_BV = residual(p_BKV[row_B, accepted_B], q_BKV[row_B, accepted_B])
  return accepted_B, draw(keys_B, 2 * n, rest_BV)


def of_each(sampling: Sampling, logits_BKV, num_new_B):
  """Probabilities behind each of K tokens, of which the first is the row's token number num_new."""
  return jax.vmap(lambda z_BV, k: probabilities(z_BV, sampling, num_new_B + k), (1, 0), 1)(
    logits_BKV, jnp.arange(logits_BKV.shape[1])
  )


def draw(keys_B, number: int, p_BV):
  """One int32 token per row from p; number: of the draw in its round."""
  own_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, number)
  return jax.vmap(jax.random.categorical)(own_B, jnp.log(p_BV)).astype(jnp.int32)


def uniform(keys_B, number: int):
  """One float32 of [0, 1) per row."""
  own_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, number)
  return jax.vmap(jax.random.uniform)(own_B)
