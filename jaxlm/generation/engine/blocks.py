r"""Decoding of block diffusion: a block at a time from masks, with keys and values of finished blocks kept.

Axes: B batch, C tokens of a block, V vocab.

A block begins as C masks. With K steps and times t_k = 1 - k / K, a step from t to s reveals every
masked place with probability (t - s) / t and draws its token from the network's distribution, without
the mask; revealed tokens stay (the reverse process of masked diffusion, Sahoo et al., arXiv 2406.07524,
equation 6, number from memory). "confidence" reveals the most certain masked places instead, the same
number each step. The clean block is then read once and its keys and values are kept. Noise sees its own
block and finished ones only, so caching changes no logit.

How long a block is, is decided by its text so far, where there is a policy (block_policy.py, CtrlDiff);
guidance moves the logits by a classifier's gradient (guidance.py).

Rows of a batch have blocks of their own lengths: a block's places behind its length are padding.
"""

import dataclasses
import functools
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.config import ConfigError, checked
from jaxlm.generation.base import (
  ENGINES,
  Batch,
  Engine,
  Row,
  Snapshot,
  refuse_options,
  registered_name,
)
from jaxlm.generation.engine.step import round_up
from jaxlm.generation.masked_diffusion import filtered
from jaxlm.generation.processors import refuse_order
from jaxlm.generation.sampling import PLAIN, Sampling
from jaxlm.ranges import Count, Natural


@dataclasses.dataclass(frozen=True)
@checked
class Blocks(Engine):
  """mask: id of the mask. block_len: C. steps: K of a block, None: as many as it has places.

  policy: a function of (hidden state of each row's last token (B, D), rng keys (B,)) that returns
  int32 (B,) block lengths up to block_len; None: block_len. guide: a function of the noisy rows (B, C)
  and logits that returns new logits; None: none. The prompt is read in blocks of block_len tokens
  from its first on, the last one shorter; the first new block begins right behind it.
  """

  scores: ClassVar[tuple[str, ...]] = ("masked_tokens",)
  is_default: ClassVar[bool] = False

  model: object
  mask: Natural | None = None
  sampling: Sampling = PLAIN
  stops: tuple[Natural, ...] = ()
  block_len: Count = 16
  steps: Count | None = None
  order: Literal["ancestral", "confidence"] = "ancestral"
  policy: object = None
  guide: object = None

  def __post_init__(self):
    super().__post_init__()
    need_mask(self)
    refuse_order(self.sampling.processors, "block diffusion")

  @classmethod
  def from_data(cls, data):
    ids = data.special_tokens
    return {"mask": ids.mask, "stops": () if ids.eos is None else (ids.eos,)}

  @classmethod
  def from_objective(cls, objective):
    return mask_of(objective)

  @classmethod
  def from_options(cls, options):
    names = ("temperature", "top_k", "top_p", "min_p", "block_len", "processors")
    refuse_options(cls, options, [n for n in options._fields if n not in names])
    chosen = {} if options.block_len is None else {"block_len": options.block_len}
    return chosen | {"sampling": options.sampling(default_temperature=1.0)}

  def decode_batch(self, params, batch: Batch):
    *_, (tokens_BG, count_B, passes, _) = self.stream(params, batch)
    rows = []
    for prompt, new_G, count in zip(batch.prompts, np.asarray(tokens_BG), np.asarray(count_B)):
      new = new_G[:count]
      ends = np.flatnonzero(np.isin(new, self.stops))
      new = new[: ends[0]] if len(ends) else new
      tokens = np.concatenate([np.asarray(prompt.tokens, np.int32), new]).astype(np.int32)
      rows.append(Row(tokens, len(prompt), len(new)))
    return rows, passes

  def watch(self, params, prompt, max_new_tokens: int, *, seed: int = 0):
    batch = self.single(prompt, max_new_tokens, seed)
    begun, sequence, passes = [int(t) for t in batch.prompts[0].tokens], [], 0
    for tokens_BG, count_B, passes, block in self.stream(params, batch, every_step=True):
      new = np.asarray(tokens_BG)[0, : int(count_B[0])].tolist()
      sequence = begun + new + ([] if block is None else block[0].tolist())
      yield Snapshot(sequence, None, passes)
    yield Snapshot(sequence, None, passes, final=True)

  def stream(self, params, batch: Batch, every_step: bool = False):
    """Yields (tokens_BG, count_B, passes, the unfinished block or None) after every block, or step."""
    B, C, K = len(batch.prompts), self.block_len, self.steps
    room_B = np.asarray(batch.room_B)
    length_B = np.asarray([len(p) for p in batch.prompts], np.int32)
    state = self.model.init_state(B, round_up(batch.longest + C))
    state, last_BD, passes = self._read_prompts(params, batch, length_B, state)
    tokens_BG = np.zeros((B, max(int(room_B.max()), 1)), np.int32)
    count_B, alive_B, block = np.zeros(B, np.int32), room_B > 0, 0
    while alive_B.any():
      keys_B = jax.vmap(jax.random.fold_in)(batch.keys_B, jnp.asarray(count_B))
      size_B = np.full(B, C)
      if self.policy is not None:
        size_B = np.asarray(self.policy(last_BD, keys_B))
      size_B = np.where(alive_B, np.minimum(np.minimum(size_B, C), room_B - count_B), 0)
      x_BC = jnp.full((B, C), self.mask, jnp.int32)
      num_steps = K or int(size_B.max())
      for k in range(num_steps):
        x_BC = _reveal(params, x_BC, state, jnp.asarray(size_B), keys_B, k, num_steps, engine=self)
        passes += 1
        if every_step:
          yield tokens_BG, count_B, passes, np.asarray(x_BC)[:, : int(size_B.max())]
      state, last_BD = _keep(params, x_BC, state, jnp.asarray(size_B), engine=self)
      passes += 1
      found_BC = np.asarray(x_BC)
      for b in range(B):
        n = int(size_B[b])
        tokens_BG[b, count_B[b] : count_B[b] + n] = found_BC[b, :n]
        count_B[b] += n
        if np.isin(found_BC[b, :n], self.stops).any():
          alive_B[b] = False
      alive_B &= count_B < room_B
      block += 1
      yield tokens_BG, count_B.copy(), passes, None
    if not block:
      yield tokens_BG, count_B, passes, None

  def _read_prompts(self, params, batch, length_B, state):
    """(the state behind the prompts, the hidden state of each row's last token, passes)."""
    C, passes, last_BD = self.block_len, 0, jnp.zeros((len(length_B), self.model.d_model))
    for start in range(0, int(length_B.max()), C):
      piece_BC = np.full((len(length_B), C), self.mask, np.int32)
      size_B = np.clip(length_B - start, 0, C)
      for b, prompt in enumerate(batch.prompts):
        piece_BC[b, : size_B[b]] = list(prompt.tokens)[start : start + size_B[b]]
      state, here_BD = _keep(params, jnp.asarray(piece_BC), state, jnp.asarray(size_B), engine=self)
      last_BD = jnp.where(jnp.asarray(size_B > 0)[:, None], here_BD, last_BD)
      passes += 1
    return state, last_BD, passes


def mask_of(objective) -> dict[str, int]:
  """{"mask": the objective's own}, {} where it has none."""
  mask = objective.mask_token()
  return {} if mask is None else {"mask": mask}


def need_mask(engine) -> None:
  """ConfigError for an engine that knows no mask."""
  if engine.mask is None:
    name = registered_name(ENGINES, type(engine))
    raise ConfigError(
      f"engine {name!r} needs the id of the mask, and neither the data nor the objective have one; take a run that "
      f"was trained by objective.kind = 'block_diffusion', or give `mask` in Python"
    )


def _valid(size_B, C: int):
  return (jnp.arange(C)[None] < size_B[:, None]).astype(jnp.int32)


@functools.partial(jax.jit, static_argnames="engine", donate_argnums=2)
def _keep(params, x_BC, state, size_B, *, engine: Blocks):
  """(the state with the clean block, the hidden state of its last token)."""
  valid_BC = _valid(size_B, x_BC.shape[1])
  (_, state), sown = engine.model.build().apply(
    {"params": params}, x_BC, state, valid_BC, method="extend", mutable=["intermediates"]
  )
  final_BCD = sown["intermediates"]["final"][0]
  return state, final_BCD[jnp.arange(len(size_B)), jnp.maximum(size_B - 1, 0)]


@functools.partial(jax.jit, static_argnames=("engine",))
def _reveal(params, x_BC, state, size_B, keys_B, step, num_steps, *, engine: Blocks):
  """The block after one step; step and num_steps may be traced."""
  B, C = x_BC.shape
  logits_BCV, _ = engine.model.build().apply(
    {"params": params}, x_BC, state, _valid(size_B, C), method="extend"
  )
  logits_BCV = logits_BCV.at[..., engine.mask].set(-jnp.inf)
  if engine.guide is not None:
    logits_BCV = engine.guide(x_BC, logits_BCV).at[..., engine.mask].set(-jnp.inf)
  masked_BC = (x_BC == engine.mask) & (jnp.arange(C)[None] < size_B[:, None])
  keys_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, step)
  kept_BCV = filtered(logits_BCV, engine.sampling)
  noise_BCV = jax.vmap(lambda key: jax.random.gumbel(key, logits_BCV.shape[1:]))(keys_B)
  drawn_BC = jnp.argmax(kept_BCV if engine.sampling.is_greedy else kept_BCV + noise_BCV, axis=-1)
  if engine.order == "confidence":
    sure_BC = jnp.where(masked_BC, jnp.max(jax.nn.log_softmax(logits_BCV), -1), -jnp.inf)
    rank_BC = jnp.argsort(jnp.argsort(-sure_BC, axis=1), axis=1)
    left_B = size_B * (num_steps - step - 1) // num_steps
    shown_BC = rank_BC < (jnp.sum(masked_BC, axis=1) - left_B)[:, None]
  else:
    u_BC = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1), (C,)))(keys_B)
    # (t - s) / t with t = 1 - k / K: 1 / (K - k), and 1 in the last step.
    shown_BC = u_BC * (num_steps - step) < 1
  return jnp.where(masked_BC & shown_BC, drawn_BC.astype(x_BC.dtype), x_BC)
