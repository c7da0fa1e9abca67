"""Fast weights as a memory: per head a small network that is trained on (k, v) chunk by chunk and
read with q.

Axes: B batch, T time, D d_model, N fast-weight heads, H width of a head, F inner width, R rank, E
rates per token, J pieces of a chunk-aligned layout, S slots of a piece.
"""

import dataclasses
import math
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.config import ConfigError, checked
from jaxlm.kernels.fast_weight_chunk import (
  Causal,
  FastWeights,
  Rule,
  accumulate,
  apply_update,
  cannot_split,
  fast_weight_chunk,
  initial_state,
  read,
)
from jaxlm.kernels.fast_weight_chunk.rule import MATRICES
from jaxlm.kernels.newton_schulz import coefficients
from jaxlm.layers.rewind import walk
from jaxlm.layers.weights import normal, weights, zeros
from jaxlm.parameter import matrix
from jaxlm.ranges import Count, Dtype, Natural, NonNegative, Positive

#: Of initial fast weights, (N, out, in): one matrix per head.
PER_HEAD = matrix((2,), (1,))


@dataclasses.dataclass(frozen=True)
@checked
class UpdateConfig:
  """How a chunk's step moves the weights.

  momentum: a learned decay per token and head. muon: Newton-Schulz coefficients, None = plain
  gradient descent.
  prenorm: normalise a copy of un-normalised weights. fused: the semantics of the released fused
  kernels (kernel's Rule).
  """

  momentum: bool = True
  muon: Literal["language", "views"] | None = None
  muon_steps: Natural = 5
  muon_dtype: Dtype | None = None  # None = the compute dtype
  prenorm: bool = False
  fused: bool = False

  def rule(self, network: str, dtype: str) -> Rule:
    low = None if dtype in ("float32", "float64") else dtype
    return Rule(
      network=network,
      prenorm=self.prenorm,
      fused=self.fused,
      dtype=low,
      muon_dtype=self.muon_dtype or low,
      muon=coefficients(self.muon, self.muon_steps) if self.muon else None,
    )


@dataclasses.dataclass(frozen=True)
@checked
class FastWeightConfig:
  """num_heads: each is d_model / num_heads wide. expansion: inner width over head width (the
  state's size).

  chunk: tokens of one update; none of them sees another one of the chunk through the fast weights.
  rank: W0, W2 start as left right + I / 2 of this rank, None = full. init_gain: of the factors.
  rates_per_token: 1, or one per channel of the head (which needs expansion = 1). base_rate: at the
  start.
  documents: 'isolated' starts again with every document of a packed row and learns nothing from
  padding; 'shared' runs
    one state through the whole row, as the official code does.
  implementation: of the kernel; None = best for the platform.
  """

  num_heads: Count = 4
  chunk: Count = 2048
  expansion: Positive = 1.0
  network: Literal["swiglu", "linear"] = "swiglu"
  rank: Count | None = None
  init_gain: NonNegative = 0.5
  rates_per_token: Count = 1
  base_rate: Positive = 0.001
  update: UpdateConfig = UpdateConfig()
  documents: Literal["isolated", "shared"] = "isolated"
  implementation: Literal["xla", "pallas", "pallas_gpu"] | None = None

  def __post_init__(self):
    if self.network not in MATRICES:
      raise ConfigError(
        f"network = {self.network!r}: no such fast weights; known: {', '.join(MATRICES)}"
      )
    if self.network == "linear" and self.rank is not None:
      raise ConfigError(
        f"rank = {self.rank}: a linear fast weight is one full matrix; leave rank out"
      )
    if self.update.fused and self.rates_per_token != 1:
      raise ConfigError(
        f"rates_per_token = {self.rates_per_token}: the fused semantics know one rate per token"
      )

  def widths(self, d_model: int) -> tuple[int, int]:
    """(H, F) of one head."""
    if d_model % self.num_heads:
      raise ConfigError(
        f"d_model = {d_model} does not divide over fast.num_heads = {self.num_heads}"
      )
    H = d_model // self.num_heads
    F = int(H * self.expansion) if self.network == "swiglu" else H
    if F < 1:
      raise ConfigError(f"expansion = {self.expansion} leaves no inner width for heads of {H}")
    if self.rates_per_token not in (1, H) or (self.rates_per_token == H != F):
      raise ConfigError(
        f"rates_per_token = {self.rates_per_token}: wanted 1, or the head width {H} with expansion = 1"
      )
    return H, F

  def init_state(self, d_model: int, batch_size: int) -> "MemoryState":
    H, F = self.widths(d_model)
    shapes = [(H, H)] if self.network == "linear" else [(F, H), (H, F), (F, H)]

    def empty():
      return tuple(jnp.zeros((batch_size, self.num_heads, *s)) for s in shapes)

    return MemoryState(
      current=empty(),
      master=empty() if self.update.prenorm else None,
      momentum=empty() if self.update.momentum else None,
      step=empty(),
      beta_BN=jnp.zeros((batch_size, self.num_heads)),
      seen_B=jnp.zeros(batch_size, jnp.int32),
    )


class MemoryState(NamedTuple):
  """Constant size, whatever the length. step: the sum over the open chunk's tokens (exact: they all
  see the same weights); beta_BN: of their momentum. seen_B: tokens; before the first full chunk
  `current` is not yet in use."""

  current: tuple
  master: tuple | None
  momentum: tuple | None
  step: tuple
  beta_BN: jax.Array
  seen_B: jax.Array


class Memory(nn.Module):
  """o_t = f_{W(t)}(q_t), W(t) learned from all chunks before t's own."""

  cfg: FastWeightConfig
  d_model: int
  dtype: str

  @nn.compact
  def __call__(self, x_BTD, q_BNTH, k_BNTH, v_BNTH, context, state: MemoryState | None = None):
    cfg = self.cfg
    rule = cfg.update.rule(cfg.network, self.dtype)
    initial = tuple(jnp.broadcast_to(m[None], (x_BTD.shape[0], *m.shape)) for m in self._matrices())
    eta, beta_BNT = self._rates(x_BTD, len(initial))
    self.sow("intermediates", "arguments", (initial, q_BNTH, k_BNTH, v_BNTH, eta, beta_BNT))
    if state is not None:

      def learn(inputs, valid_BT, state):
        return extend(rule, cfg.chunk, initial, *inputs, state, valid_BT)

      inputs = q_BNTH, k_BNTH, v_BNTH, eta, beta_BNT
      return walk(learn, state, inputs, context.segment_ids_BT > 0, axis=2)
    ids_BT = context.segment_ids_BT if cfg.documents == "isolated" and context.packed else None
    spec = nn.logical_to_mesh_axes(("batch", "heads", "seq"))
    if why := cannot_split(cfg.chunk, cfg.num_heads, spec):
      raise ConfigError(f"model.mixer.fast: {why}")
    o_BNTH, _ = fast_weight_chunk(
      initial,
      q_BNTH,
      k_BNTH,
      v_BNTH,
      eta,
      beta_BNT,
      schedule=Causal(cfg.chunk),
      rule=rule,
      segment_ids_BT=ids_BT,
      implementation=cfg.implementation,
      spec=spec,
    )
    return o_BNTH, None

  def _matrices(self):
    cfg, w = self.cfg, weights(self)
    (H, F), N = cfg.widths(self.d_model), cfg.num_heads

    def full(name, rows, columns):
      return w(
        name,
        (N, rows, columns),
        ("heads", None, "embed"),
        init=normal(columns**-0.5),
        role=PER_HEAD,
      )

    if cfg.network == "linear":
      return (full("w0", H, H),)

    def input_matrix(name):
      if cfg.rank is None:
        return full(name, F, H)
      left_NFR = w(
        f"{name}_left",
        (N, F, cfg.rank),
        ("heads", None, None),
        init=normal(cfg.init_gain * cfg.rank**-0.5),
        role=PER_HEAD,
      )
      right_NRH = w(
        f"{name}_right",
        (N, cfg.rank, H),
        ("heads", None, "embed"),
        init=normal(cfg.init_gain * H**-0.5),
        role=PER_HEAD,
      )
      # The 0.5 is fixed in the official code, whatever init_gain says.
      return jnp.einsum("nfr,nrh->nfh", left_NFR, right_NRH) + 0.5 * jnp.eye(F, H)[None]

    return input_matrix("w0"), full("w1", H, F), input_matrix("w2")

  def _rates(self, x_BTD, count):
    """eta = softplus(x w + b + softplus^-1(base_rate)) per matrix, beta = sigmoid(x w + b), both
    float32.
    """
    cfg, w, D, N, E = (
      self.cfg,
      weights(self, self.dtype),
      self.d_model,
      self.cfg.num_heads,
      self.cfg.rates_per_token,
    )
    raw = jnp.einsum(
      "btd,dnme->bntme", x_BTD, w("w_rate", (D, N, count, E), ("embed", "heads", None, None))
    )
    bias = w("b_rate", (N, count, E), ("heads", None, None), init=zeros)
    raw = (raw + bias[None, :, None]).astype(jnp.float32)
    eta_BNTME = jax.nn.softplus(raw + math.log(math.expm1(cfg.base_rate)))
    beta_BNT = None
    if cfg.update.momentum:
      raw_BNT = jnp.einsum("btd,dn->bnt", x_BTD, w("w_momentum", (D, N), ("embed", "heads")))
      raw_BNT += w("b_momentum", (N,), ("heads",), init=zeros)[None, :, None]
      beta_BNT = jax.nn.sigmoid(raw_BNT.astype(jnp.float32))
    return tuple(eta_BNTME[:, :, :, i] for i in range(count)), beta_BNT


def extend(
  rule: Rule,
  chunk: int,
  initial,
  q_BNTH,
  k_BNTH,
  v_BNTH,
  eta,
  beta_BNT,
  state: MemoryState,
  valid_BT,
):
  """More tokens of rows whose chunks may be open at different places. Returns (o_BNTH, state).

  Every row's tokens are laid out in J pieces that end where its chunks end, then piece by piece:
  read, add to the running sums, and update the rows whose chunk is now full. Updating at once is
  what the whole-sequence form does lazily: its last chunk is never learned because nothing reads
  it.
  """
  B, N, T, _ = q_BNTH.shape
  pieces, size = -(-(T + chunk - 1) // chunk), min(chunk, T)
  phase_B, count_B = state.seen_B % chunk, valid_BT.sum(1, dtype=jnp.int32)
  place_BT = (
    phase_B[:, None] + jnp.cumsum(valid_BT, 1, dtype=jnp.int32) - 1
  )  # from the start of the open chunk
  # A long text fills whole chunks; a short one crosses at most one boundary and keeps its own
  # indices in both pieces.
  slot_BT = (
    place_BT if T > chunk else (place_BT // chunk) * T + jnp.arange(T, dtype=jnp.int32)[None]
  )
  slot_BT = jnp.where(valid_BT, slot_BT, pieces * size)  # outside: dropped
  row_B1 = jnp.arange(B)[:, None]

  def lay(x_BNT):
    flat = jnp.zeros((B, pieces * size, *x_BNT.shape[1:2], *x_BNT.shape[3:]), x_BNT.dtype)
    flat = flat.at[row_B1, slot_BT].set(jnp.moveaxis(x_BNT, 2, 1), mode="drop")
    return jnp.moveaxis(flat.reshape(B, pieces, size, *flat.shape[2:]), (1, 3), (0, 2))

  fresh = initial_state(rule, initial, momentum=state.momentum is not None)
  used_B = state.seen_B >= chunk

  def pick(keep_B, new, old):
    return jax.tree.map(
      lambda a, b: jnp.where(keep_B.reshape(-1, *(1,) * (a.ndim - 1)), a, b), new, old
    )

  memory = FastWeights(state.current, state.master, state.momentum, fresh.norms)
  memory = pick(used_B, memory, fresh)

  def body(carry, piece):
    memory, step, beta_BN = carry
    index, q, k, v, eta, beta = piece
    o = read(rule, memory.current, q)
    step = jax.tree.map(jnp.add, step, accumulate(rule, memory.current, k, v, eta))
    if beta is not None:
      beta_BN += beta.sum(-1)
    full_B = phase_B + count_B >= (index + 1) * chunk

    def close(memory, step, beta_BN):
      learned = apply_update(rule, memory, step, beta_BN / chunk)
      return (
        pick(full_B, learned, memory),
        pick(full_B, jax.tree.map(jnp.zeros_like, step), step),
        pick(full_B, jnp.zeros_like(beta_BN), beta_BN),
      )

    carry = jax.lax.cond(jnp.any(full_B), close, lambda *same: same, memory, step, beta_BN)
    return carry, o

  laid = (
    jnp.arange(pieces),
    lay(q_BNTH),
    lay(k_BNTH),
    lay(v_BNTH),
    tuple(map(lay, eta)),
    None if beta_BNT is None else lay(beta_BNT),
  )
  (memory, step, beta_BN), o_JBNSH = jax.lax.scan(body, (memory, state.step, state.beta_BN), laid)
  o_BJSNH = jnp.moveaxis(o_JBNSH, (0, 2), (1, 3)).reshape(B, pieces * size, N, -1)
  o_BTNH = jnp.take_along_axis(
    o_BJSNH, jnp.minimum(slot_BT, pieces * size - 1)[:, :, None, None], 1
  )
  state = MemoryState(
    memory.current, memory.master, memory.momentum, step, beta_BN, state.seen_B + count_B
  )
  return jnp.moveaxis(o_BTNH, 1, 2).astype(v_BNTH.dtype), state
