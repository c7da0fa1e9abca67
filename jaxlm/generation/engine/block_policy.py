r"""How long the next block should be: a policy over block lengths, trained by policy gradient.

Axes: B batch, D d_model, A block lengths to choose from.

CtrlDiff (Huang and Tang, arXiv 2505.14455) lets a policy choose the block length from the text so far.
Its state, reward and estimator are not public; this is our interpretation. The policy is an MLP of two
layers on the hidden state of the last finished token. A block of length n earns

  r = -(bound on its nats per token) - cost K / n,

K the passes that a block takes (`reward`), and the gradient is REINFORCE with a moving baseline:

  grad J = E[(r - baseline) grad log pi(n | h)].

The cost is in r and hence in the gradient: without it the shortest length, whose bound is the least, would
always pay.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax


@dataclasses.dataclass(frozen=True, eq=False)
class BlockPolicy:
  """lengths: to choose from. params: of `init`. greedy: the most probable length, not a draw.

  Equal to itself alone, so that an engine that holds it can be a static argument.
  """

  lengths: tuple[int, ...]
  params: Any
  greedy: bool = True

  def __call__(self, hidden_BD, keys_B):
    logits_BA = policy_logits(self.params, hidden_BD)
    if self.greedy:
      index_B = jnp.argmax(logits_BA, axis=1)
    else:
      index_B = jax.vmap(jax.random.categorical)(keys_B, logits_BA)
    return jnp.asarray(self.lengths)[index_B]


def init(key, d_model: int, num_lengths: int, width: int = 64):
  """Parameters whose policy is uniform."""
  return {
    "w_in": jax.random.normal(key, (d_model, width)) / d_model**0.5,
    "b_in": jnp.zeros(width),
    "w_out": jnp.zeros((width, num_lengths)),
    "b_out": jnp.zeros(num_lengths),
  }


def policy_logits(params, hidden_BD):
  """(B, A)."""
  h_BF = jax.nn.gelu(hidden_BD @ params["w_in"] + params["b_in"][None])
  return h_BF @ params["w_out"] + params["b_out"][None]


def reward(nats_per_token, length: int, passes: int, cost: float):
  """r: see above. cost: nats that one pass is worth."""
  return -nats_per_token - cost * passes / length


def surrogate(params, hidden_BD, action_B, advantage_B):
  """-mean (advantage log pi(action)): its gradient is that of -J, in expectation over the actions."""
  log_pi_BA = jax.nn.log_softmax(policy_logits(params, hidden_BD))
  chosen_B = jnp.take_along_axis(log_pi_BA, action_B[:, None], axis=1)[:, 0]
  return -jnp.mean(jax.lax.stop_gradient(advantage_B) * chosen_B)


def train(key, hidden_ND, reward_NA, *, steps: int, learning_rate=3e-3, batch_size=64, decay=0.95):
  """(params, the mean reward at each step). reward_NA: what each length earns in each state.

  The policy sees only the rewards of the lengths that it draws.
  """
  init_key, key = jax.random.split(key)
  params = init(init_key, hidden_ND.shape[1], reward_NA.shape[1])
  optimizer = optax.adam(learning_rate)

  def step(carry, key):
    params, opt, baseline = carry
    row_key, action_key = jax.random.split(key)
    row_B = jax.random.randint(row_key, (batch_size,), 0, len(hidden_ND))
    action_B = jax.random.categorical(action_key, policy_logits(params, hidden_ND[row_B]))
    reward_B = reward_NA[row_B, action_B]
    gradient = jax.grad(surrogate)(params, hidden_ND[row_B], action_B, reward_B - baseline)
    updates, opt = optimizer.update(gradient, opt)
    mean = jnp.mean(reward_B)
    return (optax.apply_updates(params, updates), opt, decay * baseline + (1 - decay) * mean), mean

  begun = (params, optimizer.init(params), jnp.mean(reward_NA))
  (params, _, _), rewards = jax.lax.scan(step, begun, jax.random.split(key, steps))
  return params, rewards
