r"""Speculative decoding with draft trees, verified by recursive rejection without replacement.

Axes: B batch, V vocab, N drafted nodes, M = N + 1 with the root, W words of 32 bits, K tokens that a
round may commit.

The root of a tree is the row's newest token. The children x^1, x^2, .. of a node are drawn in this
order from the draft's distribution q without replacement. With p_1 = p, the target's distribution
behind the node, and q_1 = q,

  accept x^k with probability min(1, p_k(x^k) / q_k(x^k)), go on at its node; else
  p_{k+1} = norm([p_k - q_k]_+),   q_{k+1} = norm(q_k with x^k taken out);

with no child left, the round's last token is drawn from p_{k+1}. Each token then has the target's
distribution: Recursive Speculative Decoding (Jeon et al., arXiv 2402.14160, section 3). Children
drawn with replacement keep q_{k+1} = q_k (SpecInfer, Miao et al., arXiv 2305.09781). The number of a
node's children may depend on what was drawn before each of them, never on that child itself.

The target reads the whole tree in one pass: every node sees the text, its ancestors and itself
(`TreeMask`), at position (text so far + depth). The keys of the accepted branch are kept, the others
dropped (`KVCache.kept`). Models of attention without window only, with positions that go by number.
"""

import dataclasses
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.config import Kinds, checked
from jaxlm.generation.engine.drafted import Carry, DraftedEngine, commit, next_pending, residual
from jaxlm.generation.engine.rsd import WithoutReplacement
from jaxlm.generation.engine.speculative import draw
from jaxlm.generation.engine.step import extend
from jaxlm.generation.sampling import Sampling, probabilities
from jaxlm.kernels.attention import TreeMask
from jaxlm.kernels.attention.structure import WORD
from jaxlm.ranges import Natural

DRAFTINGS = Kinds(
  "way of drafting",
  {
    "rsd_c": "jaxlm.generation.engine.rsd:WithoutReplacement",
    "rsd_s": "jaxlm.generation.engine.rsd:StochasticBeam",
    "replacement": "jaxlm.generation.engine.rsd:WithReplacement",
    "dyspec": "jaxlm.generation.engine.dyspec:DySpec",
    "dyspec_layers": "jaxlm.generation.engine.dyspec:DySpecByLayer",
  },
)


class Tree(NamedTuple):
  """Drafted nodes 1 .. N; node 0 is the root. Siblings are numbered in the order of their draws.

  tokens_BM, parent_BM, depth_BM: int32; the root's parent is -1. real_BM: bool, False for a place
  that no node fills. q_BMV: the draft's distribution behind every node that has children.
  ancestors_BMW: uint32, see TreeMask. num_read_B: int32, nodes 0 .. num_read - 1 are in the draft's
  cache.
  """

  tokens_BM: jax.Array
  parent_BM: jax.Array
  depth_BM: jax.Array
  real_BM: jax.Array
  q_BMV: jax.Array
  ancestors_BMW: jax.Array
  num_read_B: jax.Array

  @classmethod
  def root(cls, token_B, q_BV, num_nodes: int) -> "Tree":
    """The tree of the root alone, with room for num_nodes drafted nodes."""
    (B, V), M = q_BV.shape, num_nodes + 1
    words_BMW = jnp.zeros((B, M, -(-M // WORD)), jnp.uint32).at[:, 0, 0].set(1)
    zeros_BM = jnp.zeros((B, M), jnp.int32)
    return cls(
      zeros_BM.at[:, 0].set(token_B),
      zeros_BM - 1,
      zeros_BM,
      jnp.zeros((B, M), bool).at[:, 0].set(True),
      jnp.zeros((B, M, V), jnp.float32).at[:, 0].set(q_BV),
      words_BMW,
      jnp.ones(B, jnp.int32),
    )

  def add(self, first: int, tokens_Bn, parent_Bn, real_Bn) -> "Tree":
    """The tree with nodes first .. first + n - 1; first may be traced."""
    n, row_B1 = tokens_Bn.shape[1], jnp.arange(len(tokens_Bn))[:, None]
    number_n = first + jnp.arange(n)
    words_BnW = self.ancestors_BMW[row_B1, parent_Bn]
    word_nW = jnp.arange(words_BnW.shape[2])[None] == (number_n // WORD)[:, None]
    bit_n1 = (jnp.uint32(1) << (number_n % WORD).astype(jnp.uint32))[:, None]
    words_BnW = words_BnW | jnp.where(word_nW, bit_n1, jnp.uint32(0))[None]

    def put(x, new):
      return jax.lax.dynamic_update_slice_in_dim(x, new.astype(x.dtype), first, 1)

    return self._replace(
      tokens_BM=put(self.tokens_BM, tokens_Bn),
      parent_BM=put(self.parent_BM, parent_Bn),
      depth_BM=put(self.depth_BM, self.depth_BM[row_B1, parent_Bn] + 1),
      real_BM=put(self.real_BM, real_Bn & self.real_BM[row_B1, parent_Bn]),
      ancestors_BMW=put(self.ancestors_BMW, words_BnW),
    )


@dataclasses.dataclass(frozen=True)
@checked
class TreeSpeculative(DraftedEngine):
  """drafting: how the tree grows. draft: config of the model that drafts."""

  model: object
  draft: object = None
  sampling: Sampling = Sampling()
  stops: tuple[Natural, ...] = ()
  drafting: Annotated[object, DRAFTINGS] = WithoutReplacement()
  deterministic = False  # a tree is one pass; there is no token-by-token form of it

  @classmethod
  def from_options(cls, options):
    chosen = super().from_options(options._replace(draft=None, drafting=None))
    chosen |= {"drafting": DRAFTINGS.build({"kind": options.drafting})} if options.drafting else {}
    return chosen | {"draft": options.draft}

  def why_not(self, model):
    return super().why_not(model) or model.why_unstructured

  @property
  def back(self):
    return self.drafting.num_nodes + 1

  def round(self, params, carry: Carry, keys_B, room_B) -> Carry:
    done = carry.committed
    tree, draft = self.grow(params["draft"], carry, keys_B)
    before_B, alive_B1 = carry.target.length_B, done.alive_B[:, None]
    logits_BMV, target = extend(
      self.model,
      params["target"],
      tree.tokens_BM,
      carry.target,
      jnp.broadcast_to(alive_B1, tree.tokens_BM.shape).astype(jnp.int32),
      positions_BT=before_B[:, None] + tree.depth_BM,
      structure=TreeMask(before_B, tree.ancestors_BMW),
    )
    p_BMV = jax.vmap(lambda z, d: probabilities(z, self.sampling, done.num_new_B + d), 1, 1)(
      logits_BMV, tree.depth_BM
    )
    with_replacement = self.drafting.with_replacement
    path_BK, accepted_B, own_B = reject(
      keys_B, tree, p_BMV, self.drafting.depth + 1, with_replacement
    )
    row_B, row_B1 = jnp.arange(len(own_B)), jnp.arange(len(own_B))[:, None]
    tokens_BK = jnp.roll(tree.tokens_BM[row_B1, path_BK], -1, axis=1)
    tokens_BK = tokens_BK.at[row_B, accepted_B].set(own_B)
    target = self.model.keep(target, before_B, path_BK, accepted_B + 1)
    known_BK = (path_BK < tree.num_read_B[:, None]) & (
      jnp.arange(path_BK.shape[1])[None] <= accepted_B[:, None]
    )
    read_B = jnp.sum(known_BK, axis=1, dtype=jnp.int32)  # the root and the accepted nodes it read
    draft = self.draft.keep(draft, before_B, path_BK, read_B)
    pending_B2, num_pending_B = next_pending(tokens_BK, accepted_B + 1, read_B - 1)
    done = commit(done, tokens_BK, accepted_B + 1, self.stops, room_B)
    return Carry(target, draft, pending_B2, num_pending_B, done)

  def grow(self, params, carry: Carry, keys_B):
    """(the tree, the draft's state with its nodes)."""
    done = carry.committed
    valid_B2 = (jnp.arange(2)[None] < carry.num_pending_B[:, None]) & done.alive_B[:, None]
    logits_B2V, state = extend(
      self.draft, params, carry.pending_B2, carry.draft, valid_B2.astype(jnp.int32)
    )
    logits_BV = logits_B2V[jnp.arange(len(keys_B)), carry.num_pending_B - 1]
    reader = Reader(self, params, carry.target.length_B, done, keys_B)
    tree = Tree.root(done.last_B, reader.q(logits_BV, 0), self.drafting.num_nodes)
    return self.drafting.grow(reader, tree, state)


class Reader(NamedTuple):
  """What a way of drafting works with: the draft model, row by row at the root's place."""

  engine: TreeSpeculative
  params: Any
  base_B: jax.Array
  done: Any
  keys_B: jax.Array

  @property
  def greedy(self) -> bool:
    return self.engine.sampling.is_greedy

  def q(self, logits_BV, depth_B):
    """The distribution to draw children from: the sampled one; of greedy decoding the softmax, whose
    best tokens are then taken in order.
    """
    sampling, num_new_B = self.engine.sampling, self.done.num_new_B + depth_B
    if self.greedy:
      sampling = Sampling(processors=sampling.processors)
    return probabilities(logits_BV, sampling, num_new_B)

  def read(self, tree: Tree, state, first, count: int):
    """(tree with q behind nodes first .. first + count - 1, state); first may be traced."""

    def cut(x):
      return jax.lax.dynamic_slice_in_dim(x, first, count, axis=1)

    depth_Bn = cut(tree.depth_BM)
    logits_BnV, state = extend(
      self.engine.draft,
      self.params,
      cut(tree.tokens_BM),
      state,
      jnp.broadcast_to(self.done.alive_B[:, None], depth_Bn.shape).astype(jnp.int32),
      positions_BT=self.base_B[:, None] + depth_Bn,
      structure=TreeMask(self.base_B, cut(tree.ancestors_BMW)),
    )
    q_BnV = jax.vmap(self.q, 1, 1)(logits_BnV, depth_Bn)
    q_BMV = jax.lax.dynamic_update_slice_in_dim(tree.q_BMV, q_BnV, first, 1)
    return tree._replace(q_BMV=q_BMV, num_read_B=tree.num_read_B + count), state

  def gumbel(self, number, shape):
    """Standard Gumbel noise (B, *shape); number: of the draw in its round, may be traced."""
    own_B = jax.vmap(jax.random.fold_in, (0, None))(self.keys_B, number)
    return jax.vmap(lambda key: jax.random.gumbel(key, shape))(own_B)


def reject(keys_B, tree: Tree, p_BMV, max_path: int, with_replacement: bool):
  """(path_BK: the root and the accepted nodes, accepted_B, the token behind them), int32.

  p_BMV: the target's distribution behind every node. max_path: K, nodes of a branch at most.
  """
  B, M = tree.tokens_BM.shape
  row_B, own_keys_B = jnp.arange(B), jax.vmap(jax.random.fold_in, (0, None))(keys_B, 1 << 20)
  u_BM = jax.vmap(lambda key: jax.random.uniform(key, (M,)))(own_keys_B)

  def visit(at, number):
    current_B, p_BV, q_BV, path_BK, accepted_B = at
    token_B = tree.tokens_BM[:, number]
    q_B = q_BV[row_B, token_B]
    asked_B = (tree.parent_BM[:, number] == current_B) & tree.real_BM[:, number] & (q_B > 0)
    taken_B = asked_B & (u_BM[:, number] * q_B < p_BV[row_B, token_B])
    refused_B1 = (asked_B & ~taken_B)[:, None]
    rest_BV = q_BV if with_replacement else q_BV.at[row_B, token_B].set(0.0)
    total_B1 = jnp.sum(rest_BV, axis=1, keepdims=True)
    rest_BV = jnp.where(total_B1 > 0, rest_BV / jnp.where(total_B1 > 0, total_B1, 1.0), 0.0)
    p_BV = jnp.where(refused_B1, residual(p_BV, q_BV), p_BV)
    q_BV = jnp.where(refused_B1, rest_BV, q_BV)
    taken_B1 = taken_B[:, None]
    p_BV = jnp.where(taken_B1, p_BMV[:, number], p_BV)
    q_BV = jnp.where(taken_B1, tree.q_BMV[:, number], q_BV)
    accepted_B = accepted_B + taken_B
    path_BK = path_BK.at[row_B, jnp.where(taken_B, accepted_B, max_path)].set(number, mode="drop")
    return (jnp.where(taken_B, number, current_B), p_BV, q_BV, path_BK, accepted_B), None

  zero_B = jnp.zeros(B, jnp.int32)
  begin = (zero_B, p_BMV[:, 0], tree.q_BMV[:, 0], jnp.zeros((B, max_path), jnp.int32), zero_B)
  (_, p_BV, _, path_BK, accepted_B), _ = jax.lax.scan(visit, begin, jnp.arange(1, M))
  return path_BK, accepted_B, draw(keys_B, (1 << 20) + 1, p_BV)
