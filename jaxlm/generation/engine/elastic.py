r"""Masked diffusion with keys and values that are computed again only where they have drifted.

Axes: B batch (rows are decoded one by one), T positions, W places of the window, D d_model, L layers.

Elastic-Cache (Nguyen-Tri et al., arXiv 2510.14973). Per layer, keys, values and inputs of all positions
are kept. A step passes the window, the W leftmost masks, the tokens revealed in the step before, and the
decoded token j* that the step before looked at most. At layer l

  s_l = cos((k, v)_l of j* now, as kept);

if s_l < gamma, all layers behind l are computed for all positions, from the kept inputs of layer l + 1
with those of the step put in; layers up to l keep what they have. gamma = 1 computes everything in every
step, which is the decoder without a cache. Then every place of the window whose confidence is above
`confidence` is revealed, and the most certain one at least. What the paper compares between steps is
attention rows or keys and values; this takes the latter.

`period` computes everything in every so-manieth step instead, the baseline.
"""

import dataclasses
import functools
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.config import ConfigError, checked
from jaxlm.generation.base import Batch, Engine, Row, refuse_options
from jaxlm.generation.engine.blocks import mask_of, need_mask
from jaxlm.kernels.attention import SetMask
from jaxlm.layers.mixer import Context
from jaxlm.layers.taps import STATISTICS
from jaxlm.models.masked_diffusion import AdaptiveBlock
from jaxlm.ranges import Count, Inside, Natural, UpToOne


class Cache(NamedTuple):
  """inputs_LBTD: of each layer, and behind the last. layers: keys and values. most_seen: int32, j*."""

  inputs_LBTD: jax.Array
  layers: tuple
  most_seen: jax.Array


class Cost(NamedTuple):
  """steps; layer-token computations, and how many there are without a cache."""

  steps: int
  computed: int
  whole: int

  @property
  def share(self) -> float:
    return self.computed / max(self.whole, 1)


@dataclasses.dataclass(frozen=True)
@checked
class Elastic(Engine):
  """mask: id of the mask. window: W. gamma, period: see above. An answer has `num_new` tokens where the
  prompt says so, otherwise all that it may have; a prompt with masks has only these filled.

  For models that are not told the noise level (`BlockDiffusion` with a block of the whole row): it
  would change the keys and values of every position in every step.
  """

  scores: ClassVar[tuple[str, ...]] = ("masked_tokens",)
  is_default: ClassVar[bool] = False

  model: object
  mask: Natural | None = None
  window: Count = 16
  gamma: UpToOne = 0.9
  confidence: Inside = 0.9
  period: Count | None = None

  def __post_init__(self):
    super().__post_init__()
    need_mask(self)

  @classmethod
  def from_data(cls, data):
    return {"mask": data.special_tokens.mask}

  @classmethod
  def from_objective(cls, objective):
    return mask_of(objective)

  @classmethod
  def from_options(cls, options):
    refuse_options(cls, options, options._fields)
    return {}

  def decode_batch(self, params, batch: Batch):
    rows, steps = [], 0
    for prompt, room in zip(batch.prompts, batch.room_B):
      tokens = list(prompt.tokens)
      new = prompt.num_new
      if new is None:
        new = 0 if self.mask in tokens else int(room)
      if new > room:
        raise ConfigError(f"{new} places to fill exceed the {room} that the row may get")
      found, cost = self.fill(params, np.asarray(tokens + [self.mask] * new, np.int32))
      rows.append(
        Row(found, len(tokens) if new else 0, new or int(np.sum(np.asarray(tokens) == self.mask)))
      )
      steps = max(steps, cost.steps)
    return rows, steps

  def fill(self, params, tokens_T) -> tuple[np.ndarray, Cost]:
    """(the row without masks, what it cost)."""
    x_1T = jnp.asarray(tokens_T)[None]
    T, L, W = len(tokens_T), self.model.num_layers, min(self.window, len(tokens_T))
    cache, recent_T, computed, steps = None, jnp.zeros(T, bool), 0, 0
    while (np.asarray(x_1T) == self.mask).any():
      whole = (
        cache is None or self.gamma >= 1 or (self.period is not None and steps % self.period == 0)
      )
      x_1T, recent_T, cache, count = _step(
        params, x_1T, recent_T, cache, engine=self, window=W, whole=whole
      )
      computed, steps = computed + int(count), steps + 1
    return np.asarray(x_1T[0]), Cost(steps, computed, steps * L * T)


@functools.partial(jax.jit, static_argnames=("engine", "window", "whole"))
def _step(params, x_1T, recent_T, cache, *, engine: Elastic, window: int, whole: bool):
  """(x, tokens revealed now, cache, layer-token computations)."""
  T = x_1T.shape[1]
  masked_T = x_1T[0] == engine.mask
  # The window, what was revealed in the last step, and j*; distinct, padded with -1.
  in_window_T = masked_T & (jnp.cumsum(masked_T) <= window)
  used_T = in_window_T | recent_T
  if cache is not None:
    used_T = used_T.at[cache.most_seen].set(True)
  width = min(2 * window + 1, T)
  at_W = jnp.sort(jnp.where(used_T, jnp.arange(T), T))[:width]
  logits_1TV, cache, count = forward(
    params, x_1T, at_W, jnp.sum(used_T), cache, engine=engine, whole=whole
  )
  logits_TV = logits_1TV[0].at[:, engine.mask].set(-jnp.inf)
  p_TV = jax.nn.softmax(logits_TV)
  sure_T = jnp.where(in_window_T, jnp.max(p_TV, axis=1), -1.0)
  shown_T = (sure_T > engine.confidence) | (jnp.arange(T) == jnp.argmax(sure_T))
  shown_T &= in_window_T
  x_1T = jnp.where(shown_T, jnp.argmax(logits_TV, axis=1).astype(x_1T.dtype), x_1T[0])[None]
  return x_1T, shown_T, cache, count


def forward(params, x_1T, at_W, num_used, cache, *, engine: Elastic, whole: bool):
  """(logits_1TV, valid at at_W; cache; layer-token computations).

  at_W: int32, positions of the step, T where there is none.
  """
  model, T = engine.model, x_1T.shape[1]
  network, L = model.build(), model.num_layers
  embedded_1TD = network.apply({"params": params}, x_1T, method=_embed)
  c_1C = network.apply({"params": params}, jnp.zeros(1), method=_noise)
  every_T = jnp.arange(T, dtype=jnp.int32)
  layers = params["blocks"]
  state = model.init_state(1, T).layers

  def context(at, valid):
    return Context(
      valid[None].astype(jnp.int32),
      jnp.minimum(at, T - 1)[None],
      depth=2 * L,
      packed=True,
      streaming=True,
      # A place that no token of the step fills looks at nothing, and counts for nothing.
      structure=SetMask(jnp.stack([jnp.zeros_like(at), jnp.where(valid, 0, T)], -1)[None, :, None]),
    )

  def layer(l, x_1nD, at, valid, kv):
    own = jax.tree.map(lambda p: p[l], layers)
    (y, kv), sown = AdaptiveBlock(model).apply(
      {"params": own}, x_1nD, context(at, valid), c_1C, kv, mutable=[STATISTICS]
    )
    columns = jax.tree.leaves(sown[STATISTICS])
    columns_T = next(c for c in columns if c.ndim == 3 and c.shape[-1] == T).sum((0, 1))
    return y, kv, columns_T

  seen_T = jnp.zeros(T)
  inputs, kept, count = [embedded_1TD], [], jnp.int32(0)
  x_1TD, fresh = embedded_1TD, jnp.asarray(whole)
  valid_W = at_W < T
  for l in range(L):
    old = jax.tree.map(lambda s: s[l], state) if cache is None else cache.layers[l]

    def full(x_1TD, l=l, old=old):
      y, kv, columns_T = layer(l, x_1TD, every_T, jnp.ones(T, bool), old)
      return y, kv, columns_T, jnp.int32(T)

    def part(x_1TD, l=l, old=old):
      x_1WD = x_1TD[:, jnp.minimum(at_W, T - 1)]
      y_1WD, kv, columns_T = layer(l, x_1WD, at_W, valid_W, old)
      y_1TD = cache.inputs_LBTD[l + 1].at[:, at_W].set(y_1WD, mode="drop")
      return y_1TD, kv, columns_T, num_used.astype(jnp.int32)

    if cache is None or whole:
      x_1TD, kv, columns_T, n = full(x_1TD)
    else:
      x_1TD, kv, columns_T, n = jax.lax.cond(fresh, full, part, x_1TD)
      fresh |= drift(old, kv, cache.most_seen) < engine.gamma
    inputs.append(x_1TD)
    kept.append(kv)
    seen_T += columns_T
    count += n
  logits_1TV = network.apply({"params": params}, x_1TD, c_1C, x_1T, method=_head)
  decoded_T = x_1T[0] != engine.mask
  most_seen = jnp.argmax(jnp.where(decoded_T, seen_T, -1.0)).astype(jnp.int32)
  return logits_1TV, Cache(jnp.stack(inputs), tuple(kept), most_seen), count


def drift(old, new, at):
  """cos of (k, v) at one position, as kept and now."""

  def vector(kv):
    return jnp.concatenate([kv.k_BSKH[0, at].reshape(-1), kv.v_BSKH[0, at].reshape(-1)])

  a, b = vector(old), vector(new)
  return jnp.sum(a * b) / jnp.maximum(jnp.linalg.norm(a) * jnp.linalg.norm(b), 1e-30)


def _embed(network, tokens_BT):
  context = network.plain_context(tokens_BT)
  return network.absolute(network.embed.encode(tokens_BT, context), context)


def _noise(network, sigma_B):
  return network.noise(sigma_B)


def _head(network, x_BTD, c_BC, tokens_BT):
  return network.head.logits(network.final_norm(x_BTD, c_BC), network.plain_context(tokens_BT))
