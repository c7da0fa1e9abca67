r"""Draft trees of Recursive Speculative Decoding (Jeon et al., arXiv 2402.14160), and two baselines.

Axes: B batch, V vocab, n nodes of a level, b children of a node.

RSD-C (`WithoutReplacement`): every node of level d has b_d children, drawn without replacement by
Gumbel-top-k: the b_d largest of log q + Gumbel, largest first.

RSD-S (`StochasticBeam`): stochastic beam search of width w (Kool et al., arXiv 1903.06059). A node has
phi, the log probability of its path under the draft, and G, its perturbed value. Of the children c,

  phi_c = phi + log q(c);   G~_c = phi_c + Gumbel;   Z = max_c G~_c;
  G_c = -log(exp(-G) - exp(-Z) + exp(-G~_c));

the w largest G_c of the level are kept, in decreasing order. Whether a node has a k-th child depends
on values G and on the tokens drawn before it, not on the k-th token, so that recursive rejection
stays exact.

`WithReplacement` draws the children of a node independently; with one child per level it is a chain.
How nodes are accepted: trees.py. Greedy decoding takes the most probable children, in order.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.config import ConfigError, checked
from jaxlm.ranges import Count

MOST_NODES = 1024


@dataclasses.dataclass(frozen=True)
class _Levels:
  """Trees with a fixed number of children per level: branching (b_1, .., b_D)."""

  def __post_init__(self):
    if not self.branching:
      raise ConfigError("branching = (): a tree needs one level at least")
    if self.num_nodes > MOST_NODES:
      raise ConfigError(
        f"branching = {self.branching} has {self.num_nodes:,} nodes, at most {MOST_NODES:,} are read in one pass"
      )

  @property
  def depth(self) -> int:
    return len(self.branching)

  @property
  def num_nodes(self) -> int:
    return int(np.cumprod(self.branching).sum())

  def grow(self, reader, tree, state):
    first, size = 0, 1  # of the level before
    for d, b in enumerate(self.branching):
      q_BnV = tree.q_BMV[:, first : first + size]
      V = q_BnV.shape[-1]
      tokens_Bnb = self.children(reader, d, jnp.log(q_BnV), min(b, V))
      real_Bnb = jnp.take_along_axis(q_BnV, tokens_Bnb, axis=2) > 0
      if b > V:  # places that no token fills
        widths = ((0, 0), (0, 0), (0, b - V))
        tokens_Bnb, real_Bnb = jnp.pad(tokens_Bnb, widths), jnp.pad(real_Bnb, widths)
      B = len(tokens_Bnb)
      parent_n = first + jnp.repeat(jnp.arange(size), b)
      parent_Bn = jnp.broadcast_to(parent_n[None], (B, size * b))
      tree = tree.add(first + size, tokens_Bnb.reshape(B, -1), parent_Bn, real_Bnb.reshape(B, -1))
      first, size = first + size, size * b
      if d + 1 < self.depth:
        tree, state = reader.read(tree, state, first, size)
    return tree, state


@dataclasses.dataclass(frozen=True)
@checked
class WithoutReplacement(_Levels):
  """branching: children of each node, level by level."""

  with_replacement: ClassVar[bool] = False

  branching: tuple[Count, ...] = (3, 2, 1, 1)

  def children(self, reader, level, log_q_BnV, b):
    noise = 0.0 if reader.greedy else reader.gumbel(level, log_q_BnV.shape[1:])
    return jax.lax.top_k(log_q_BnV + noise, b)[1].astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
@checked
class WithReplacement(_Levels):
  """branching: children of each node, level by level; (1, 1, 1) is a chain of three tokens."""

  with_replacement: ClassVar[bool] = True

  branching: tuple[Count, ...] = (3, 2, 1, 1)

  def children(self, reader, level, log_q_BnV, b):
    if reader.greedy:
      return jax.lax.top_k(log_q_BnV, b)[1].astype(jnp.int32)
    noise_BbnV = reader.gumbel(level, (b, *log_q_BnV.shape[1:]))
    return jnp.moveaxis(jnp.argmax(log_q_BnV[:, None] + noise_BbnV, axis=-1), 1, 2).astype(
      jnp.int32
    )


@dataclasses.dataclass(frozen=True)
@checked
class StochasticBeam:
  """width: nodes of a level. depth: levels."""

  with_replacement: ClassVar[bool] = False

  width: Count = 4
  depth: Count = 4

  def __post_init__(self):
    if self.num_nodes > MOST_NODES:
      raise ConfigError(
        f"width = {self.width} and depth = {self.depth} make {self.num_nodes:,} nodes, at most "
        f"{MOST_NODES:,} are read in one pass"
      )

  @property
  def num_nodes(self) -> int:
    return self.width * self.depth

  def grow(self, reader, tree, state):
    B, _, V = tree.q_BMV.shape
    phi_Bn, g_Bn, first, size = jnp.zeros((B, 1)), jnp.zeros((B, 1)), 0, 1
    row_B1 = jnp.arange(B)[:, None]
    for d in range(self.depth):
      phi_BnV = phi_Bn[..., None] + jnp.log(tree.q_BMV[:, first : first + size])
      g_BnV = phi_BnV if reader.greedy else conditioned(phi_BnV + reader.gumbel(d, (size, V)), g_Bn)
      width = min(self.width, size * V)
      g_Bw, flat_Bw = jax.lax.top_k(g_BnV.reshape(B, -1), width)
      parent_Bw, tokens_Bw = first + flat_Bw // V, flat_Bw % V
      phi_Bw, real_Bw = phi_BnV.reshape(B, -1)[row_B1, flat_Bw], g_Bw > -jnp.inf
      tree = tree.add(first + size, tokens_Bw, parent_Bw, real_Bw)
      g_Bn, phi_Bn = g_Bw, jnp.where(real_Bw, phi_Bw, -jnp.inf)
      first, size = first + size, width
      if d + 1 < self.depth:
        tree, state = reader.read(tree, state, first, size)
    return tree, state


def conditioned(perturbed_BnV, g_Bn):
  """G_c: the perturbed values moved so that the largest of each node is the node's own G."""
  z_Bn1, g_Bn1 = jnp.max(perturbed_BnV, axis=-1, keepdims=True), g_Bn[..., None]
  # -log(e^-G - e^-Z + e^-G~) without cancellation: Kool et al., appendix B.3 (number from memory).
  v_BnV = g_Bn1 - perturbed_BnV + jnp.log1p(-jnp.exp(jnp.minimum(perturbed_BnV - z_Bn1, 0.0)))
  moved = g_Bn1 - jnp.maximum(v_BnV, 0.0) - jnp.log1p(jnp.exp(-jnp.abs(v_BnV)))
  return jnp.where(
    jnp.isfinite(perturbed_BnV) & jnp.isfinite(g_Bn1),
    jnp.where(perturbed_BnV == z_Bn1, g_Bn1, moved),
    -jnp.inf,
  )
