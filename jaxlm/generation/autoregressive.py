"""Token-by-token decoding of any model that answers `extend`: prefill in pieces, then one jitted
step.

Axes: B batch, T time, V vocab. Shapes are static: prompts are padded to whole pieces and the cache
to a multiple of `PIECE`, so that a handful of programs serves every length.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.config import ConfigError, check_seed
from jaxlm.generation.sampling import Sampling, sample

PIECE = 64  # prompt tokens per prefill call; the cache grows in this unit


@dataclasses.dataclass(frozen=True)
class Generator:
  """A model with its weights, ready to continue prompts.

  config: a model config with `build()` and `init_state(batch_size, max_len)`; params: the tree
  under "params".
  stop_tokens: ids after which a row is finished (they are not returned); without any it never stops
  early.
  """

  config: object
  params: object
  sampling: Sampling = Sampling()
  stop_tokens: tuple[int, ...] = ()

  def stream(
    self, prompts: Sequence[Sequence[int]], max_new_tokens: int, *, seed: int = 0
  ) -> Iterator[np.ndarray]:
    """Yields, per step, int32 (B,): the next token of each row, -1 where the row has finished.

    Row b's draws depend on (seed, b, step) only. Raises ConfigError for an empty prompt or a token
    outside the vocabulary. Prompts may differ in length.
    """
    tokens_BT, length_B = _pad(prompts, self.config.vocab_size)
    _check_length(self.config, int(length_B.max()) + max_new_tokens)
    state = self.config.init_state(len(prompts), _round_up(int(length_B.max()) + max_new_tokens))
    logits_BV, state = prefill(self.config, self.params, tokens_BT, length_B, state)
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(
      jax.random.key(check_seed(seed)), jnp.arange(len(prompts))
    )
    alive_B = np.ones(len(prompts), bool)
    token_B = _draw(keys_B, 0, logits_BV, sampling=self.sampling)
    for step in range(max_new_tokens):
      if step:
        token_B, state = _step(
          self.params,
          state,
          token_B,
          jnp.asarray(alive_B),
          keys_B,
          step,
          config=self.config,
          sampling=self.sampling,
        )
      out_B = np.asarray(token_B)
      alive_B = alive_B & ~np.isin(out_B, self.stop_tokens)
      if not alive_B.any():
        return
      yield np.where(alive_B, out_B, -1)

  def generate(
    self, prompts: Sequence[Sequence[int]], max_new_tokens: int, *, seed: int = 0
  ) -> list[np.ndarray]:
    """The new tokens of each row, int32, without the prompt and the stop token."""
    steps = list(self.stream(prompts, max_new_tokens, seed=seed))
    return [np.asarray([s[b] for s in steps if s[b] >= 0], np.int32) for b in range(len(prompts))]


def prefill(config, params, tokens_BT, length_B, state):
  """Feeds right-padded prompts in pieces.

  Returns (logits_BV after each row's last token, state).
  """
  logits_BV, size = None, min(PIECE, config.max_len or PIECE)  # a table of positions may be shorter
  for start in range(0, int(length_B.max()), size):
    piece_BT = jnp.asarray(tokens_BT[:, start : start + size])
    logits_BV, state = _prefill_piece(
      params, state, piece_BT, jnp.asarray(length_B), start, logits_BV, config=config
    )
  return logits_BV, state


@functools.partial(jax.jit, static_argnames="config", donate_argnums=1)
def _prefill_piece(params, state, tokens_BT, length_B, start, logits_BV, *, config):
  index_BT = start + jnp.arange(tokens_BT.shape[1])[None, :]
  valid_BT = (index_BT < length_B[:, None]).astype(jnp.int32)
  out_BTV, state = config.build().apply(
    {"params": params}, tokens_BT, state, valid_BT, method="extend"
  )
  last_B = length_B - 1 - start
  here_B1 = ((last_B >= 0) & (last_B < tokens_BT.shape[1]))[:, None]
  picked_BV = jnp.take_along_axis(
    out_BTV, jnp.clip(last_B, 0, tokens_BT.shape[1] - 1)[:, None, None], axis=1
  )[:, 0]
  return (picked_BV if logits_BV is None else jnp.where(here_B1, picked_BV, logits_BV)), state


@functools.partial(jax.jit, static_argnames=("config", "sampling"), donate_argnums=1)
def _step(params, state, token_B, alive_B, keys_B, step, *, config, sampling):
  # A finished row feeds padding: its state stays, and its draw is ignored.
  logits_BTV, state = config.build().apply(
    {"params": params}, token_B[:, None], state, alive_B[:, None].astype(jnp.int32), method="extend"
  )
  return _draw(keys_B, step, logits_BTV[:, 0], sampling=sampling), state


@functools.partial(jax.jit, static_argnames="sampling")
def _draw(keys_B, step, logits_BV, *, sampling):
  return sample(jax.vmap(jax.random.fold_in, (0, None))(keys_B, step), logits_BV, sampling)


def _round_up(n: int) -> int:
  return -(-n // PIECE) * PIECE


def _check_length(config, total: int) -> None:
  max_len = config.max_len
  if max_len is not None and total > max_len:
    raise ConfigError(
      f"prompt and new tokens need {total} positions, this model's position table has {max_len}; "
      f"ask for fewer new tokens or use a model with relative positions"
    )


def _pad(prompts, vocab_size):
  if not prompts:
    raise ConfigError("no prompt: give at least one")
  for b, prompt in enumerate(prompts):
    if len(prompt) == 0:
      raise ConfigError(
        f"prompt {b} is empty: give at least one token (the end-of-text token starts a document)"
      )
    wrong = [int(t) for t in prompt if t < 0 or (vocab_size is not None and t >= vocab_size)]
    if wrong:
      raise ConfigError(
        f"prompt {b} holds token {wrong[0]}, outside the vocabulary of {vocab_size}"
      )
  length_B = np.asarray([len(p) for p in prompts], np.int32)
  tokens_BT = np.zeros((len(prompts), _round_up(int(length_B.max()))), np.int32)
  for b, prompt in enumerate(prompts):
    tokens_BT[b, : len(prompt)] = prompt
  return tokens_BT, length_B
