"""H-Net: dynamic chunking for end-to-end hierarchical sequence modelling (arXiv 2507.07955;
`docs/specs/hnet.md`).

Axes: B batch, T positions of a stage, C chunk capacity, D d_model, V vocab.

A stage maps (B, T, width of its caller) to the same: it widens, encodes, routes, runs the next
stage on the chunks, smooths, adds its residual, decodes and narrows. The innermost stage is one
isotropic stack. With a state the same code goes on after the tokens seen so far, for any T: a
prefill and a step are the parallel pass.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.config import ConfigError
from jaxlm.kernels.compact import compact, gather
from jaxlm.layers.chunking import StageInfo, dechunk, inner_context, reads_its_own, stage_info
from jaxlm.layers.embedding import Head
from jaxlm.layers.isotropic import Isotropic
from jaxlm.layers.lexinvariant import check_packing
from jaxlm.layers.linear import linear
from jaxlm.layers.mamba2 import starts
from jaxlm.layers.mixer import Context
from jaxlm.layers.rewind import Trail, last_valid, latest
from jaxlm.layers.routers import RouterInputs, tap_boundaries
from jaxlm.layers.taps import recorded_collections, tap
from jaxlm.layers.weights import weights, zeros
from jaxlm.models.base import check_rows
from jaxlm.models.hnet_config import HNetConfig, JoinConfig, StageConfig
from jaxlm.models.hnet_state import HNetState, StageState
from jaxlm.models.score import Outputs, Score

__all__ = ["HNet", "HNetConfig", "HNetState", "JoinConfig", "StageConfig", "StageState"]

#: From so many positions at once a stage that goes on runs its inner network on fewer slots where
#: the chunks fit them.
MIN_PREFILL = 32


class ByteInputs(NamedTuple):
  """What only the outermost stage has: routers that read bytes or boundaries need it."""

  tokens_BT: jax.Array | None = None
  boundaries_BT: jax.Array | None = None


class Stage(nn.Module):
  """Stage s and all within it: (B, T, width of the caller) -> the same."""

  cfg: HNetConfig
  index: int

  @nn.compact
  def __call__(self, x_BTD, context, byte_inputs, capacities, state):
    """Returns (y_BTD, (StageInfo of this stage, of the next, ...), state). capacities: of the chunk
    buffers, outside in; None: the stage's whole length."""
    cfg, s, width = self.cfg, self.index, x_BTD.shape[-1]
    D = cfg.stages[s].d_model
    context = context.replace(depth=cfg.depth(s))
    if D > width:
      pad_D = weights(self, x_BTD.dtype)("pad", (D - width,), ("embed",), init=zeros)
      x_BTD = jnp.concatenate(
        [x_BTD, jnp.broadcast_to(pad_D[None, None], (*x_BTD.shape[:2], D - width))], axis=-1
      )
    if s == cfg.num_chunkings:
      y_BTD, state = Isotropic(cfg.stack(s, cfg.runs(s)[0], last=s == 0), name="main")(
        x_BTD, context, state
      )
      y_BTD = tap(self, "main_out", y_BTD)
      return y_BTD[..., :width], (), state

    old = StageState(*(None,) * 7) if state is None else state
    encode, decode = cfg.runs(s)
    h_BTD, encoder = Isotropic(cfg.stack(s, encode), name="encoder")(x_BTD, context, old.encoder)
    h_BTD = tap(self, "encoder_out", h_BTD)
    residual_BTD = tap(self, "residual_out", self._residual(h_BTD))

    # Routing: which rows go in.
    valid_BT = context.segment_ids_BT != 0
    first_BT = starts(context.segment_ids_BT) if state is None else jnp.zeros_like(valid_BT)
    first_BT = first_BT.at[:, 0].set(True if state is None else ~old.seen_B)
    router = cfg.stages[s].router.build(D, cfg.dtype, "router")
    decision, router_state = router(
      h_BTD, RouterInputs(first_BT, valid_BT, context.positions_BT, *byte_inputs), old.router
    )
    decision = tap_boundaries(self, decision, first_BT, valid_BT)
    T = x_BTD.shape[1]
    rows = cfg.join.rows_per_buffer if s == 0 and state is None else 1
    chosen, outer, h_BTD = (
      _merge_rows(decision, context, h_BTD, rows) if rows > 1 else (decision, context, h_BTD)
    )
    slots = compact(chosen.boundary_BT, capacities[0] if capacities else rows * T)

    # The inner network, on the chunks.
    spec = nn.logical_to_mesh_axes(("batch", "chunk", "embed_act"))
    chunks_BCD = nn.with_logical_constraint(
      gather(h_BTD, slots, spec=spec), ("batch", "chunk", "embed_act")
    )
    chunks_BCD = tap(self, "chunks", chunks_BCD)
    chunk_context = inner_context(outer, slots, latest(old.count_B))
    inner = Stage(cfg, s + 1, name="inner")

    def run(inner, x_BCD, state):
      return inner(
        x_BCD, chunk_context, ByteInputs(), capacities[1:] if capacities else None, state
      )

    recorded = [] if self.is_initializing() else recorded_collections(self)
    if state is not None and T == 1 and not self.is_initializing():
      # No row starts a chunk at most steps: then the inner network, most of the parameters, need
      # not run.
      def skip(inner, x_BCD, state):
        return (jnp.zeros_like(x_BCD), _no_infos(cfg, s + 1, valid_BT), state)

      if recorded:
        z_BCD, infos, inner_state = self._recorded(
          recorded, jnp.any(slots.valid_BC), run, skip, chunks_BCD, old.inner
        )
      else:
        z_BCD, infos, inner_state = nn.cond(
          jnp.any(slots.valid_BC), run, skip, inner, chunks_BCD, old.inner
        )
    elif state is not None and T >= MIN_PREFILL and not (recorded or self.is_initializing()):
      # The chunks of a prefill usually fill few of the slots that must be there for all.
      num_slots = T * 3 // 8
      start_context = chunk_context.replace(
        segment_ids_BT=chunk_context.segment_ids_BT[:, :num_slots],
        positions_BT=chunk_context.positions_BT[:, :num_slots],
      )

      def start(inner, x_BCD, state):
        return _lengthened(
          *inner(x_BCD[:, :num_slots], start_context, ByteInputs(), None, state), T
        )

      z_BCD, infos, inner_state = nn.cond(
        jnp.all(slots.count_B <= num_slots), start, run, inner, chunks_BCD, old.inner
      )
    else:
      z_BCD, infos, inner_state = run(inner, chunks_BCD, old.inner)

    # Back to positions.
    reset_BC = starts(chunk_context.segment_ids_BT) if state is None and outer.packed else None
    # In a buffer that is full, a later document (or row) has no chunk of its own, and must not read
    # another's.
    own_BT = (
      reads_its_own(outer.segment_ids_BT, chunk_context.segment_ids_BT, slots)
      if reset_BC is not None and slots.valid_BC.shape[1] < outer.segment_ids_BT.shape[1]
      else None
    )
    y_BTD, last_BD = dechunk(
      z_BCD,
      chosen,
      slots,
      reset_BC,
      latest(old.last_BD),
      smooth=cfg.join.smooth,
      confident=cfg.join.confident,
      own_BT=own_BT,
      spec=spec,
    )
    y_BTD = y_BTD.reshape(residual_BTD.shape)
    if isinstance(old.last_BD, Trail):  # y is the zb of every position: STE(c) is 1
      last_BD = last_valid(y_BTD, valid_BT, old.last_BD)
    y_BTD = (tap(self, "dechunked", y_BTD) + residual_BTD).astype(cfg.dtype)
    y_BTD = nn.with_logical_constraint(y_BTD, ("batch", "seq", "embed_act"))
    y_BTD, decoder = Isotropic(cfg.stack(s, decode, last=s == 0), name="decoder")(
      y_BTD, context, old.decoder
    )
    y_BTD = tap(self, "decoder_out", y_BTD)
    if state is not None:
      state = StageState(
        encoder,
        router_state,
        old.seen_B | jnp.any(valid_BT, axis=1),
        _counted(old.count_B, chosen.boundary_BT, slots.count_B, valid_BT),
        inner_state,
        last_BD,
        decoder,
      )
    return y_BTD[..., :width], (stage_info(decision, slots, valid_BT), *infos), state

  def _recorded(self, collections, enter, run, skip, x_BCD, state):
    """nn.cond(enter, run, skip, inner, x_BCD, state) for an inner network whose taps are recorded:
    where it does not run, its values in `collections` are zero.

    Both branches of nn.cond would have to record the same, so the inner network is applied as a
    function, and what it has recorded is put in its place.
    """
    variables = {
      name: self.get_variable(name, "inner")
      for name in ("params", "edits")
      if self.has_variable(name, "inner")
    }

    def entered(x_BCD, state):
      return nn.apply(run, Stage(self.cfg, self.index + 1, parent=None), mutable=collections)(
        variables, x_BCD, state
      )

    values = jax.eval_shape(entered, x_BCD, state)[1]

    def skipped(x_BCD, state):
      zeros = jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), values)
      return skip(None, x_BCD, state), zeros

    out, found = jax.lax.cond(enter, entered, skipped, x_BCD, state)
    for name, value in found.items():
      self.put_variable(name, "inner", value)
    return out

  def _residual(self, h_BTD):
    """W h + b in float32; W starts at zero, b does not (section 12)."""
    h_BTD = h_BTD.astype(jnp.float32)
    if self.cfg.join.residual == "identity":
      return h_BTD
    w, D = weights(self), h_BTD.shape[-1]

    def uniform(key, shape, dtype):
      return jax.random.uniform(key, shape, dtype, -(D**-0.5), D**-0.5)

    return (
      linear(h_BTD, w("w_residual", (D, D), ("embed", None), init=zeros))
      + w("b_residual", (D,), ("embed",), init=uniform)[None, None]
    )


def _merge_rows(decision, context, h_BTD, rows: int):
  """(decision, context, hidden rows) with `rows` neighbouring rows laid end to end, their segments
  numbered apart.
  """
  B, T = h_BTD.shape[:2]
  if B % rows:
    raise ConfigError(f"join.rows_per_buffer = {rows} does not divide a batch of {B} rows")

  def merge(v):
    return v.reshape(B // rows, rows * T, *v.shape[2:])

  first_B1 = (jnp.arange(B, dtype=jnp.int32) % rows * (T + 1))[:, None]
  segment_ids_BT = jnp.where(context.segment_ids_BT != 0, context.segment_ids_BT + first_B1, 0)
  context = context.replace(
    segment_ids_BT=merge(segment_ids_BT),
    positions_BT=merge(context.positions_BT),
    packed=True,
    embedding_BTD=None,
    shared=None,
    shared_by=None,
  )
  return jax.tree.map(merge, decision), context, merge(h_BTD)


def _counted(old, boundary_BT, count_B, valid_BT):
  """Chunks of each row so far, as the state keeps them."""
  if not isinstance(old, Trail):
    return old + count_B
  started_BT = jnp.cumsum(boundary_BT, axis=1, dtype=jnp.int32)
  return last_valid(latest(old)[:, None] + started_BT, valid_BT, old)


def _lengthened(y_BCD, infos, state, length: int):
  """What a stage returned for its first positions, as for `length` of them, the others not valid."""

  def fill(x):
    return (
      x
      if x.ndim == 1
      else jnp.pad(x, ((0, 0), (0, length - x.shape[1])) + ((0, 0),) * (x.ndim - 2))
    )

  return fill(y_BCD), jax.tree.map(fill, infos), state


def _no_infos(cfg: HNetConfig, s: int, like_BT):
  """Infos of the stages from s on when none of them ran, for one position."""
  no_BT, no_B = jnp.zeros(like_BT.shape, bool), jnp.zeros(like_BT.shape[:1], bool)
  zero_BT = jnp.zeros(like_BT.shape, jnp.float32)
  info = StageInfo(
    zero_BT, zero_BT, no_BT, no_BT, no_BT, jnp.zeros(like_BT.shape[:1], jnp.int32), no_B
  )
  return (info,) * (cfg.num_chunkings - s)


class HNet(nn.Module):
  """logits = head(stage_0(embed(bytes))). Methods: see jaxlm.models.

  capacities: None, or the chunk capacity of every chunking stage, outside in: static. A buffer with
  more chunks loses the last ones, and `overflow_B` of its StageInfo says so; a document without any
  chunk left gets nothing from within.
  boundaries_BT: bool, for the router 'given'.
  """

  cfg: HNetConfig

  def setup(self):
    cfg = self.cfg
    self.embed = cfg.embedding.build(cfg.vocab_size, cfg.d_model, cfg.dtype)
    self.backbone = Stage(cfg, 0)
    self.head = self.embed if cfg.tie_embeddings else Head(cfg.vocab_size, cfg.d_model, cfg.dtype)

  def __call__(
    self,
    tokens_BT,
    segment_ids_BT=None,
    positions_BT=None,
    lexicon=None,
    *,
    capacities=None,
    boundaries_BT=None,
  ):
    """float32 logits (B, T, V). lexicon: see layers.lexinvariant."""
    return self.run(
      tokens_BT,
      segment_ids_BT,
      positions_BT,
      lexicon,
      capacities=capacities,
      boundaries_BT=boundaries_BT,
    ).logits_BTV

  def run(
    self,
    tokens_BT,
    segment_ids_BT=None,
    positions_BT=None,
    lexicon=None,
    *,
    state: HNetState | None = None,
    capacities=None,
    boundaries_BT=None,
  ) -> Outputs:
    """The logits, a StageInfo per chunking stage and the state. state: the rows go on with it, and
    capacities are the whole length.
    """
    if state is not None:
      if segment_ids_BT is None:
        segment_ids_BT = jnp.ones(tokens_BT.shape, jnp.int32)
      positions_BT = state.length_B[:, None] + jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)[None]
    h_BTD, context, infos, state = self._hidden(
      tokens_BT, segment_ids_BT, positions_BT, boundaries_BT, capacities, state, lexicon
    )
    return Outputs(self.head.logits(h_BTD, context), infos, state)

  def score(
    self,
    tokens_BT,
    targets_BT,
    segment_ids_BT=None,
    positions_BT=None,
    lexicon=None,
    *,
    capacities=None,
    boundaries_BT=None,
  ) -> Score:
    """log p(target | bytes up to here) at every position; aux: a StageInfo per chunking stage."""
    h_BTD, context, infos, _ = self._hidden(
      tokens_BT, segment_ids_BT, positions_BT, boundaries_BT, capacities, lexicon=lexicon
    )
    scored = self.head.score(h_BTD, targets_BT, context, chunk=self.cfg.loss_chunk)
    return Score(*scored, infos)

  def extend(
    self, tokens_BT, state: HNetState, segment_ids_BT=None, lexicon=None, *, boundaries_BT=None
  ):
    """(logits_BTV, state) after more bytes of every row; segment id 0 marks right padding."""
    check_rows(tokens_BT, state)
    out = self.run(
      tokens_BT, segment_ids_BT, None, lexicon, state=state, boundaries_BT=boundaries_BT
    )
    return out.logits_BTV, out.state

  def _hidden(
    self,
    tokens_BT,
    segment_ids_BT,
    positions_BT,
    boundaries_BT,
    capacities,
    state=None,
    lexicon=None,
  ):
    if tokens_BT.shape[1] < 1:
      raise ValueError(
        "an empty document: an H-Net needs at least one byte per row; begin it with BOS"
      )
    if capacities is not None and len(capacities) != self.cfg.num_chunkings:
      raise ValueError(f"capacities {capacities}: this model chunks {self.cfg.num_chunkings} times")
    check_packing(self.cfg.embedding, segment_ids_BT, positions_BT)
    packed = segment_ids_BT is not None or positions_BT is not None
    if segment_ids_BT is None:
      segment_ids_BT = jnp.ones(tokens_BT.shape, jnp.int32)
    if positions_BT is None:
      index_1T = jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)[None]
      first_BT = jax.lax.cummax(jnp.where(starts(segment_ids_BT), index_1T, 0), axis=1)
      positions_BT = jnp.broadcast_to(index_1T, tokens_BT.shape) - first_BT
    context = Context(segment_ids_BT, positions_BT, packed=packed)
    embed_context = context.replace(
      lexicon=lexicon, tokens_BT=tokens_BT, streaming=state is not None
    )
    x_BTD = self.embed.encode(tokens_BT, embed_context)
    x_BTD = tap(self, "embedded", nn.with_logical_constraint(x_BTD, ("batch", "seq", "embed_act")))
    y_BTD, infos, stage = self.backbone(
      x_BTD,
      context,
      ByteInputs(tokens_BT, boundaries_BT),
      capacities,
      None if state is None else state.stage,
    )
    if state is not None:
      length_B = state.length_B + jnp.sum(segment_ids_BT != 0, axis=1, dtype=jnp.int32)
      state = HNetState(length_B, stage, state.reach.after(length_B))
    y_BTD = tap(self, "final", y_BTD)
    return y_BTD, embed_context, infos, state
