r"""Draft trees that grow where acceptance is expected: DySpec (Xiong et al., arXiv 2410.11744).

Axes: B batch, V vocab, M = N + 1 nodes with the root.

Every node u has the residual R_u of the draft's distribution behind it and a value v_u, the expected
acceptance of its next child; the root begins with (q, 1). Until there are N nodes:

  u = argmax v;   draw y from R_u;   v0 = v_u R_u(y)
  the new node (u, y) gets (q behind it, v0);   v_u <- v_u (1 - R_u(y));   R_u <- norm(R_u without y).

If a token is accepted with the draft's probability, the sum of the v0 is the expected number of
accepted tokens, and this order makes it as large as a tree of N nodes can (section 4 of the paper,
from memory). A child is drawn after it was decided that there is one, so recursive rejection without
replacement (trees.py) is exact. Greedy decoding takes argmax R instead of a draw.

`DySpec` asks the draft once per node. `DySpecByLayer` asks it once per level: every node of the level
draws children while its value is at least `threshold`, up to `width` nodes per level.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxlm.config import checked
from jaxlm.ranges import Count, UpToOne


def take_child(reader, number, r_BV):
  """(token_B, its probability under the residual, the residual without it)."""
  log_r_BV = jnp.log(r_BV)
  noise = 0.0 if reader.greedy else reader.gumbel(number, r_BV.shape[1:])
  token_B = jnp.argmax(log_r_BV + noise, axis=1).astype(jnp.int32)
  row_B = jnp.arange(len(token_B))
  share_B = r_BV[row_B, token_B]
  rest_BV = r_BV.at[row_B, token_B].set(0.0)
  total_B1 = jnp.sum(rest_BV, axis=1, keepdims=True)
  return token_B, share_B, rest_BV / jnp.where(total_B1 > 0, total_B1, 1.0)


@dataclasses.dataclass(frozen=True)
@checked
class DySpec:
  """num_nodes: N, the budget. max_depth: levels at most."""

  with_replacement: ClassVar[bool] = False

  num_nodes: Count = 12
  max_depth: Count = 8

  @property
  def depth(self) -> int:
    return min(self.max_depth, self.num_nodes)

  def grow(self, reader, tree, state):
    B, M, V = tree.q_BMV.shape
    row_B = jnp.arange(B)
    value_BM = jnp.zeros((B, M)).at[:, 0].set(1.0)

    def one(number, at):
      tree, state, rest_BMV, value_BM = at
      u_B = jnp.argmax(value_BM, axis=1)
      token_B, share_B, left_BV = take_child(reader, number, rest_BMV[row_B, u_B])
      value_B = value_BM[row_B, u_B]
      tree = tree.add(
        number, token_B[:, None], u_B[:, None], (share_B > 0)[:, None] & (value_B > 0)[:, None]
      )
      tree, state = reader.read(tree, state, number, 1)
      too_deep_B = tree.depth_BM[:, number] >= self.depth
      new_B = jnp.where(too_deep_B, 0.0, value_B * share_B)
      value_BM = value_BM.at[row_B, u_B].set(value_B * (1 - share_B)).at[:, number].set(new_B)
      rest_BMV = rest_BMV.at[row_B, u_B].set(left_BV).at[:, number].set(tree.q_BMV[:, number])
      return tree, state, rest_BMV, value_BM

    tree, state, _, _ = jax.lax.fori_loop(1, M, one, (tree, state, tree.q_BMV, value_BM))
    return tree, state


@dataclasses.dataclass(frozen=True)
@checked
class DySpecByLayer:
  """width: nodes of a level at most. depth: levels. threshold: a node with a smaller value draws no
  child. max_children: of a node.
  """

  with_replacement: ClassVar[bool] = False

  width: Count = 4
  depth: Count = 4
  threshold: UpToOne = 0.05
  max_children: Count = 4

  @property
  def num_nodes(self) -> int:
    return self.width * self.depth

  def grow(self, reader, tree, state):
    B, _, V = tree.q_BMV.shape
    row_B = jnp.arange(B)
    value_Bn, first, size = jnp.ones((B, 1)), 0, 1
    for d in range(self.depth):
      rest_BnV, start, number = tree.q_BMV[:, first : first + size], first + size, 0
      token_Bw = jnp.zeros((B, self.width), jnp.int32)
      parent_Bw, worth_Bw = jnp.zeros_like(token_Bw), jnp.zeros((B, self.width))
      count_B = jnp.zeros(B, jnp.int32)
      for k in range(min(self.max_children, V)):
        for i in range(size):
          # Decided before the child is drawn, by what was drawn before it.
          open_B = (value_Bn[:, i] >= self.threshold) & (count_B < self.width)
          draw = (d * self.max_children + k) * self.width + i
          token_B, share_B, left_BV = take_child(reader, draw, rest_BnV[:, i])
          open_B &= share_B > 0
          at_B = jnp.where(open_B, count_B, self.width)
          token_Bw = token_Bw.at[row_B, at_B].set(token_B, mode="drop")
          parent_Bw = parent_Bw.at[row_B, at_B].set(first + i, mode="drop")
          worth_Bw = worth_Bw.at[row_B, at_B].set(value_Bn[:, i] * share_B, mode="drop")
          rest_BnV = rest_BnV.at[:, i].set(jnp.where(open_B[:, None], left_BV, rest_BnV[:, i]))
          value_Bn = value_Bn.at[:, i].multiply(jnp.where(open_B, 1 - share_B, 1.0))
          count_B += open_B
          number += 1
      real_Bw = jnp.arange(self.width)[None] < count_B[:, None]
      tree = tree.add(start, token_Bw, parent_Bw, real_Bw)
      value_Bn, first, size = jnp.where(real_Bw, worth_Bw, 0.0), start, self.width
      if d + 1 < self.depth:
        tree, state = reader.read(tree, state, first, size)
    return tree, state
