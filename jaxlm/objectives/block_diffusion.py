r"""Block diffusion: from left to right over blocks, masked diffusion inside each.

Axes: B batch, T position, C blocks.

  log p(x) = sum_b log p(x_b | x_<b);   each term is bounded from below by
  E_t (1/t) sum over masked i of block b of log p(x_i | noisy block, clean x_<b),   t ~ U(0, 1],

where every token is masked with probability t (Arriola et al., "Block Diffusion", arXiv 2503.09573).
One pass over a noisy and a clean copy gives all terms (`BlockDiffusionMask`). Blocks of one token with
t = 1 are left to right, exactly; one block of the whole row is masked diffusion (MDLM). The network is
not told t, so that keys and values of finished blocks can be kept.

t is drawn per block, stratified over the batch's blocks, from the clipped interval [clip_low,
clip_high], which lowers the variance; the loss is then that of the interval. The network's
probability of the mask itself is taken out (it is never predicted).
"""

import dataclasses
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp

from jaxlm.config import ConfigError, checked
from jaxlm.objectives.base import LossOutput, Objective, Pair
from jaxlm.ranges import Natural, Range, UpToOne


@dataclasses.dataclass(frozen=True)
@checked
class BlockDiffusion(Objective):
  """block_lens: a row's blocks have one of these lengths, drawn per row; 0 is the whole row.

  mask: an id that never occurs in the text. Reports `loss`, nats per token: a bound on the
  likelihood with the clip (0, 1), and exact for blocks of one token.
  """

  scores: ClassVar[str] = "masked_tokens"
  batch_form: ClassVar[str] = "causal"

  mask: Natural
  block_lens: tuple[Natural, ...] = (16,)
  clip_low: Annotated[float, Range(1e-3, 1)] = 1e-3
  clip_high: UpToOne = 1.0

  def __post_init__(self):
    if not self.block_lens or self.clip_low > self.clip_high:
      raise ConfigError(
        f"block_lens = {self.block_lens}, clip = [{self.clip_low}, {self.clip_high}]: wanted a length at least, "
        f"and clip_low <= clip_high"
      )

  def mask_token(self):
    return self.mask

  def loss(self, model, params, batch, key, state, *, train, bucket=None):
    clean_BT = batch["tokens"]
    (B, T), keys = clean_BT.shape, jax.random.split(key, 3)
    choices = jnp.asarray([n or T for n in self.block_lens], jnp.int32)
    block_len_B = choices[jax.random.randint(keys[0], (B,), 0, len(choices))]
    t_BT = noise_levels(keys[1], block_len_B, T, self.clip_low, self.clip_high)
    masked_BT = jax.random.uniform(keys[2], (B, T)) < t_BT
    weight_BT = (batch["segment_ids"] != 0).astype(jnp.float32)
    total = bound(model, params, clean_BT, masked_BT, t_BT, block_len_B, self.mask, weight_BT)
    loss = Pair(total, jnp.sum(weight_BT))
    return LossOutput(loss, {"loss": loss})


def bound(model, params, clean_BT, masked_BT, t_BT, block_len_B, mask: int, weight_BT):
  """sum over masked tokens of (1 / t)(-log p), of tokens whose weight is not 0."""
  noisy_BT = jnp.where(masked_BT, mask, clean_BT)
  logits_BTV = model.apply(
    {"params": params}, noisy_BT, clean_BT, block_len_B, method="block_logits"
  )
  log_p_BTV = jax.nn.log_softmax(logits_BTV.at[..., mask].set(-1e30))
  nll_BT = -jnp.take_along_axis(log_p_BTV, clean_BT[..., None], axis=2)[..., 0]
  return jnp.sum(jnp.where(masked_BT & (weight_BT > 0), nll_BT / t_BT, 0.0) * weight_BT)


def noise_levels(key, block_len_B, T: int, low: float, high: float):
  """t of each token's block, float32 (B, T); 1 for blocks of one token, where every draw below 1 would
  only add variance.

  The N blocks of the batch get low + (high - low) (u + n / N), n = 0 .. N - 1 in random order, with one
  u ~ U(0, 1 / N): each t alone is uniform, and each of the N strata holds one block.
  """
  B = len(block_len_B)
  grid_key, order_key = jax.random.split(key)
  # A row has at most T blocks: places behind its last one get a key that sorts behind all others.
  real_BC = jnp.arange(T)[None] * block_len_B[:, None] < T
  order_BC = jnp.where(real_BC, jax.random.uniform(order_key, (B, T)), 2.0)
  rank_BC = jnp.argsort(jnp.argsort(order_BC.reshape(-1))).reshape(B, T)
  t_BC = low + (high - low) * (jax.random.uniform(grid_key) + rank_BC) / jnp.sum(real_BC)
  block_BT = jnp.arange(T)[None] // block_len_B[:, None]
  t_BT = jnp.take_along_axis(t_BC, block_BT, axis=1)
  return jnp.where(block_len_B[:, None] == 1, 1.0, jnp.maximum(t_BT, 1e-3))
