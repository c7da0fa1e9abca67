"""Masked diffusion: the sampler, ancestral as released or by confidence, and its engine.

Axes: B batch, T position, V vocab. docs/specs/ilm.md, section 6.2.
"""

import dataclasses
import functools
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.config import ConfigError, checked
from jaxlm.generation.base import Batch, Engine, refuse_options
from jaxlm.generation.framed_rows import framed_row
from jaxlm.generation.processors import process, refuse_order
from jaxlm.generation.sampling import PLAIN, Sampling
from jaxlm.objectives.masked_diffusion import K, total_noise
from jaxlm.ranges import Count

WIDTH = 32  # without max_len, rows are padded to a multiple of it


@dataclasses.dataclass(frozen=True)
@checked
class MaskedDiffusionEngine(Engine):
  """Fills the places of a row that hold the mask, all at once, in several passes.

  A prompt says how many tokens its answer has (`num_new`), or holds masks where they go. ids:
  SpecialTokens of the data. passes: forward passes of a row; None: as many as it has masks. order: see
  `sample`. unmasking: how tokens are drawn in "ancestral" order; a filter acts on p(token | row).
  """

  scores: ClassVar[tuple[str, ...]] = ("masked_tokens",)
  form: ClassVar[str] = "masked_diffusion"

  model: object
  ids: object
  passes: Count | None = None
  order: Literal["ancestral", "confidence"] = "ancestral"
  unmasking: Sampling = PLAIN

  def __post_init__(self):
    super().__post_init__()
    self.ids.require(("eos", "pad", "mask"), "MaskedDiffusionEngine.ids")
    refuse_order(self.unmasking.processors, "masked diffusion")

  @classmethod
  def from_data(cls, data):
    return {"ids": data.special_tokens}

  @classmethod
  def from_options(cls, options):
    refuse_options(cls, options, ("slot_top_k", "slot_top_p", "stop_threshold"))
    return {"unmasking": options.sampling(default_temperature=1.0)}

  def decode_batch(self, params, batch: Batch):
    mask, lengths = self.ids.mask, []
    for b, (prompt, room) in enumerate(zip(batch.prompts, batch.room_B)):
      masks = int(np.sum(np.asarray(prompt.tokens) == mask))
      if prompt.num_new is None and not masks:
        raise ConfigError(
          f"prompt {b}: masked diffusion fills a given number of places; say how long each answer is "
          f"(num_new), or put masks into the prompt"
        )
      num_new = prompt.num_new or 0
      if num_new > room:
        raise ConfigError(
          f"prompt {b}: {len(prompt)} tokens and {num_new} to be filled in exceed the {len(prompt) + room} "
          f"that the row may hold; raise max_len or max_new_tokens"
        )
      lengths.append((len(prompt), num_new, masks + num_new))
    T = batch.longest if batch.max_len is not None else -(-batch.longest // WIDTH) * WIDTH
    T = T if self.model.max_len is None else min(T, self.model.max_len)
    tokens_BT = np.full((len(lengths), T), self.ids.pad, np.int32)
    inside_BT = np.zeros(tokens_BT.shape, bool)
    for b, (prompt, (own, new, _)) in enumerate(zip(batch.prompts, lengths)):
      tokens_BT[b, :own], tokens_BT[b, own : own + new] = prompt.tokens, mask
      inside_BT[b, : own + new] = True
    steps_B = [self.passes or max(masks, 1) for _, _, masks in lengths]
    found_BT = sample(
      params,
      jnp.asarray(tokens_BT),
      jnp.asarray(inside_BT),
      batch.keys_B,
      jnp.asarray(steps_B, jnp.int32),
      config=self.model,
      mask=mask,
      order=self.order,
      unmasking=self.unmasking,
    )
    rows = [
      framed_row(found[: own + new], prompt, self.ids, begin=0 if masks > new else own)
      for found, prompt, (own, new, masks) in zip(np.asarray(found_BT), batch.prompts, lengths)
    ]
    return rows, max(steps_B)


def step_size(max_steps):
  return (1 - 1e-5) / (max_steps + 1)


def ancestral(logits_BTV, tokens_BT, t_B, dt, mask: int, u_BTV):
  """x_s ~ q(x_s | x_t): token v with p_v (m_t - m_s), mask with m_s, m = k t, s = t - dt; known
  tokens are copied.

  dt: of every row, or (B,). u_BTV: uniform noise.
  """
  m_t, m_s = (K * x[:, None, None] for x in (t_B, t_B - dt))
  q_BTV = jax.nn.softmax(logits_BTV.astype(jnp.float32)) * (m_t - m_s)
  is_mask_11V = (jnp.arange(logits_BTV.shape[-1]) == mask)[None, None]
  q_BTV = jnp.where(is_mask_11V, m_s, q_BTV) / (1e-10 - jnp.log(u_BTV + 1e-10))
  return jnp.where(tokens_BT == mask, jnp.argmax(q_BTV, axis=-1).astype(tokens_BT.dtype), tokens_BT)


def finish(logits_BTV, tokens_BT, mask: int):
  """The most probable token at every masked position (the mask itself, if the network says so: the
  release's last step).
  """
  return jnp.where(
    tokens_BT == mask, jnp.argmax(logits_BTV, axis=-1).astype(tokens_BT.dtype), tokens_BT
  )


@functools.partial(jax.jit, static_argnames=("config", "mask", "order", "unmasking"))
def sample(
  params,
  tokens_BT,
  inside_BT,
  keys_B,
  steps_B,
  *,
  config,
  mask: int,
  order: Literal["ancestral", "confidence"] = "ancestral",
  unmasking: Sampling = PLAIN,
):
  """Fills the positions that hold `mask`; (B, T) int32.

  inside_BT: bool, positions that attention sees; None = all. keys_B: typed PRNG keys, one per row.
  steps_B: int32, forward passes of each row, one at least: a row is finished after its own.
  "ancestral": steps - 1 random steps from t = 1, then the most probable tokens, at time 1 - dt as
  in the release. "confidence": step i reveals the most certain of the masked positions, so that
  (1 - (i + 1) / steps) of them stay.
  """
  model, V = config.build(), config.vocab_size
  dt_B = step_size(steps_B.astype(jnp.float32))
  count_B = jnp.sum(tokens_BT == mask, axis=1)

  def logits(x_BT, t_B):
    return model.apply({"params": params}, x_BT, total_noise(t_B), inside_BT)

  def uniform(i, T):
    draw = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, i), (T * V,)))
    return draw(keys_B).reshape(-1, T, V)

  def ancestral_step(i, x_BT):
    last_B = i == steps_B - 1
    t_B = jnp.where(last_B, 1 - dt_B, jnp.maximum(1 - i * dt_B, 0.0))
    out_BTV = logits(x_BT, t_B)
    kept_BTV = filtered(out_BTV, unmasking)
    drawn_BT = ancestral(kept_BTV, x_BT, t_B, dt_B, mask, uniform(i, x_BT.shape[1]))
    y_BT = jnp.where(last_B[:, None], finish(out_BTV, x_BT, mask), drawn_BT)
    return jnp.where((i < steps_B)[:, None], y_BT, x_BT)

  def confident_step(i, x_BT):
    masked_BT = x_BT == mask
    left_B = jnp.floor(count_B * (1 - (i + 1) / steps_B)).astype(jnp.int32)
    t_B = jnp.maximum(1 - i / steps_B, 0.0)
    out_BTV = logits(x_BT, t_B).at[..., mask].set(-jnp.inf)
    sure_BT = jnp.where(masked_BT, jnp.max(jax.nn.log_softmax(out_BTV), axis=-1), -jnp.inf)
    rank_BT = jnp.argsort(jnp.argsort(-sure_BT, axis=1), axis=1)
    shown_BT = masked_BT & (rank_BT < jnp.sum(masked_BT, axis=1, keepdims=True) - left_B[:, None])
    return jnp.where(shown_BT, jnp.argmax(out_BTV, axis=-1).astype(x_BT.dtype), x_BT)

  step = confident_step if order == "confidence" else ancestral_step
  return jax.lax.fori_loop(0, jnp.max(steps_B), step, tokens_BT)


def filtered(logits_BTV, sampling: Sampling):
  """The logits after the processors, at every position as if it were a row; greedy: the best only."""
  if sampling == PLAIN:
    return logits_BTV
  flat_NV = process(logits_BTV.reshape(-1, logits_BTV.shape[-1]), sampling.chain)
  if sampling.is_greedy:
    best_NV = jax.nn.one_hot(jnp.argmax(flat_NV, axis=-1), flat_NV.shape[-1], dtype=bool)
    flat_NV = jnp.where(best_NV, flat_NV, -jnp.inf)
  return flat_NV.reshape(logits_BTV.shape)
