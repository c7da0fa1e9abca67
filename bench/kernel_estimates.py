r"""The compiler's estimate of each Pallas TPU kernel against the XLA form of its op, for chips that
are not there.

  python bench/kernel_estimates.py [--op linear_cross_entropy] [--chips v5e,v5p] [--forms
  pallas,xla] [--shapes gpt2_small] python bench/kernel_estimates.py --write        only the tables of jaxlm/kernels/README.md, from bench/kernel_estimates.json

Needs libtpu (extra `preflight`), no TPU. A figure is max(simulated cycles / clock, HBM bytes /
bandwidth) of forward and backward. Cycles: libtpu's static profile of the final bundles, of kernels
and of XLA's fusions alike, times the loops around them. Bytes: of kernels from their cost estimate,
which counts a block as often as it is fetched; of XLA's programs as preflight counts them. Both lie
below the truth: no contention, no launch, and reads and writes each get the whole bandwidth in the
simulation. Simulated shapes are cut down along axes on which work is linear and scaled up again
("simulated").

Every estimate is a process of its own: a profile that fails aborts it, and the flags are read when
libtpu loads. What the simulator cannot follow would distort a figure: kernels are estimated without
a count of rows that is only known at run time.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from jaxlm import json_text

RESULTS = Path(__file__).with_suffix(".json")
README = Path(__file__).parents[1] / "jaxlm" / "kernels" / "README.md"
CHIPS = {"v5e": "v5e:1x1", "v5p": "v5p:2x2x1", "v6e": "v6e:1x1"}
WORTH = 1.3


class Program:
  """fn of ShapeDtypeStructs, to be compiled alone. scale: of its time to the whole op's. bytes: by
  hand, None to count them.
  """

  def __init__(self, fn, args, scale=1.0, bytes=None):
    self.fn, self.args, self.scale, self.bytes = fn, args, scale, bytes


def linear_cross_entropy(form, shape, struct, chip):
  """shape: B, T, V, D of a device; stretches: of time, that are simulated of the XLA form; V_xla:
  of the words.
  """
  import jax
  import jax.numpy as jnp

  from jaxlm.kernels.linear_cross_entropy import blocks, pallas_tpu
  from jaxlm.kernels.linear_cross_entropy import linear_cross_entropy as op
  from jaxlm.kernels.pallas_support import vmem_bytes

  B, T, V, D = (shape[k] for k in "BTVD")
  bf16, kind = jnp.bfloat16, chip.device_kind
  if form == "pallas":
    tiles = blocks.tiles(kind, D, 2, vmem_bytes(kind))
    N, W = 2048, 4096
    h, w, target, row = (
      struct((N, D), bf16),
      struct((W, D), bf16),
      struct((N,), jnp.int32),
      struct((N,), jnp.float32),
    )
    scale = B * T * V / (N * W)

    def forward(h, w, target):
      return pallas_tpu.forward(h, w, None, target, None, softcap=None, tiles=tiles, with_rest=True)

    def backward(h, w, target, log_z, p, y):
      return pallas_tpu.backward_w(
        h, w, None, target, log_z, p, y, None, softcap=None, tiles=tiles, dtype=bf16
      )

    cost = (
      pallas_tpu.forward_cost(B * T, V, D, 2, tiles, None, True),
      pallas_tpu.backward_cost(B * T, V, D, 2, tiles, None),
    )
    return [
      Program(forward, (h, w, target), scale, cost[0].bytes_accessed),
      Program(backward, (h, w, target, row, row, row), scale, cost[1].bytes_accessed),
      Program(None, (), 1.0, 3 * 2 * B * T * D),
    ]  # dh from r and the targets' words: its profile aborts
  chunk = blocks.chunk_length(B, T, V)
  stretches, W = -(-T // chunk), shape.get("V_xla", V)
  kept = blocks.num_kept(B, chunk, V, 2, stretches, blocks.keep_bytes(kind))
  few = min(stretches, shape["stretches"])
  few_kept = round(few * kept / stretches)
  keep_bytes = few_kept * B * chunk * W * 2
  keep_bytes = keep_bytes if few_kept == few else keep_bytes * 8 // 5 + 8

  def fn(h, w, target):
    def loss(h, w):
      return -jnp.mean(
        op(h, w, target, implementation="xla", chunk=chunk, keep_bytes=keep_bytes)[0]
      )

    return jax.value_and_grad(loss, (0, 1))(h, w)

  args = (
    struct((B, few * chunk, D), bf16),
    struct((W, D), bf16),
    struct((B, few * chunk), jnp.int32),
  )
  return [Program(fn, args, T * V / (few * chunk * W))]


def random_head(form, shape, struct, chip):
  """shape: B, T, V, D of a device; V_sim: words that are simulated. Partition and h's gradient; the
  targets' rows are the same.
  """
  import jax
  import jax.numpy as jnp

  from jaxlm.kernels.random_head import api, pallas_tpu, xla

  B, T, V, D = (shape[k] for k in "BTVD")
  W, b = min(V, shape["V_sim"]), min(B, 2)
  args = struct((b, T, D), jnp.bfloat16), struct((b, 2), jnp.uint32)
  if form == "pallas":
    words = xla.Vocabulary(start=0, count=W, vocab_size=W, chunk=W, law="gaussian")

    # Constants: the simulator aborts on the transfer of numbers that the program computes.
    def fn(h):
      return pallas_tpu.forward(h, jnp.ones((b, 2), jnp.uint32), words, with_rows=True)

    return [
      Program(
        fn,
        args[:1],
        B * V / (b * W),
        pallas_tpu.forward_cost(B, T, V, D, 2, True, False).bytes_accessed,
      )
    ]
  room = api.CHUNK_BYTES // (4 * B * (D + T))  # as the op chooses it for all of B
  chunk = min(V, max(api.MIN_CHUNK, room // api.MIN_CHUNK * api.MIN_CHUNK))
  W = min(V, -(-W // chunk) * chunk)

  def loss(h, seed):
    return jnp.sum(api.random_head(h, seed, vocab_size=W, chunk=chunk, implementation="xla"))

  return [Program(jax.value_and_grad(loss), args, B * V / (b * W))]


def phase(form, shape, struct, chip):
  """shape: B, T, N, K, H of a device; rows: sequences that are simulated, heads: of one, of the XLA form. Rotation
  of q and k, and the gradients of q, k and log f."""
  import jax
  import jax.numpy as jnp

  from jaxlm.kernels.phase import carope_rotate

  B, T, N, K, H = (shape[k] for k in "BTNKH")
  b = min(B, shape["rows"] if form == "pallas" else 1)
  q, k = struct((b, T, N, H), jnp.bfloat16), struct((b, T, K, H), jnp.bfloat16)
  if form == "pallas":
    return _phase_kernels(q, k, struct, chip, B, b)

  few = shape["heads"]
  q = k = struct((b, T, few, H), jnp.bfloat16)

  def fn(q, k, log_f, dq, dk):
    def turn(q, k, log_f):
      return carope_rotate(q, k, log_f, rotary_dim=H, implementation="xla")[:2]

    out, pull = jax.vjp(turn, q, k, log_f)
    return out, pull((dq, dk))

  return [Program(fn, (q, k, struct((b, T, few), jnp.float32), q, k), B * K / (b * few))]


def _phase_kernels(q, k, struct, chip, B, b):
  import jax.numpy as jnp

  from jaxlm.kernels.pallas_support import vmem_bytes
  from jaxlm.kernels.phase import blocks, pallas_kernels

  (_, T, N, H), K, kind = q.shape, k.shape[2], chip.device_kind
  tokens = blocks.tokens(kind, T, N, K, H, 2, vmem_bytes(kind))
  channels = pallas_kernels.Channels(N, K, H, 0, True, tokens)
  wide = [struct((b, heads * H, T), jnp.bfloat16) for heads in (N, K)]
  rows = struct((b, K + 1, 1, T), jnp.float32)
  end, carries = (
    struct((b, 1, K * H // 2), jnp.float32),
    struct((b, T // tokens, 1, K * H // 2), jnp.float32),
  )

  def forward(q, k, rows, initial):
    return pallas_kernels.forward(channels, q, k, rows, None, initial)

  def backward(q, k, rows, carries, dq, dk, end):
    return pallas_kernels.backward(channels, q, k, rows, None, carries, dq, dk, end)

  def bytes_of(backward):
    return pallas_kernels.cost(channels, B, T, 2, backward).bytes_accessed

  return [
    Program(forward, (*wide, rows, end), B / b, bytes_of(False)),
    Program(backward, (*wide, rows, carries, *wide, end), B / b, bytes_of(True)),
  ]


def ssd(form, shape, struct, chip):
  """shape: B, T, N, H, K, E of a device. One row of N_sim heads and two chunks of the XLA form is
  simulated; states, resets and the skip included.
  """
  import jax
  import jax.numpy as jnp

  from jaxlm.kernels import chunked_recurrence
  from jaxlm.kernels.ssd import blocks, pallas_tpu
  from jaxlm.kernels.ssd import ssd as op

  B, T, N, H, K, E = (shape[k] for k in "BTNHKE")
  t, n = 512, shape["N_sim"]
  bf16, f32 = jnp.bfloat16, jnp.float32
  # The two cores of a v5p share the rows: two of them are simulated, and take the time of one.
  b = min(B, 2) if chip.name == "v5p" else 1
  scale = B * T * N / (b * t * n)
  if form == "pallas":
    found = blocks.pallas_blocks(chip.device_kind)
    G = found.heads(n, K, H)
    call = pallas_tpu.call(G, n // G, K, H, E, found.chunk)
    operands = (
      struct((b, t, n * H), bf16),
      struct((b, n // G, G, t), f32),
      struct((b, n // G, G, t), f32),
      struct((b, t, K * E), bf16),
      struct((b, t, K * E), bf16),
      struct((n // G, G, 1), f32),
    )
    state = struct((b, n * H, E), f32)
    starts = struct((b, t // found.chunk, n * H, E), f32)

    def forward(operands, state):
      return chunked_recurrence.forward(call, operands, state, with_starts=True)

    def backward(operands, starts, dy, d_state):
      return chunked_recurrence.backward(call, operands, starts, dy, d_state)

    return [
      Program(forward, (operands, state), scale),
      Program(backward, (operands, starts, operands[0], state), scale),
    ]

  def fn(x, dt, a, b_, c, d, state, reset):
    def loss(*args):
      *rest, d, state = args
      y, state = op(*rest, d_N=d, initial_state_BNHE=state, reset_BT=reset, implementation="xla")
      return jnp.sum(y.astype(f32)) + jnp.sum(state)

    return jax.value_and_grad(loss, range(7))(x, dt, a, b_, c, d, state)

  args = (
    struct((b, t, n, H), bf16),
    struct((b, t, n), f32),
    struct((n,), f32),
    struct((b, t, K, E), bf16),
    struct((b, t, K, E), bf16),
    struct((n,), f32),
    struct((b, n, H, E), f32),
    struct((b, t), jnp.bool_),
  )
  return [Program(fn, args, scale)]


def linear_recurrence(form, shape, struct, chip):
  """shape: B, T, N, H, E of a device; gated: a delta rule with decays, None: gla. One row of a block
  of heads, or N_sim heads of the XLA form, is simulated, from and to states, with segments.
  """
  import jax
  import jax.numpy as jnp

  from jaxlm.kernels import chunked_recurrence
  from jaxlm.kernels.delta_rule import blocks as delta_blocks
  from jaxlm.kernels.delta_rule import delta_rule
  from jaxlm.kernels.delta_rule import pallas_tpu as delta_pallas
  from jaxlm.kernels.gla import blocks, gla, pallas_tpu

  B, T, N, H, E = (shape[k] for k in "BTNHE")
  t, gated = 256, shape.get("gated")
  found = (blocks if gated is None else delta_blocks).pallas_blocks(chip.device_kind)
  n = found.heads(N, H, E) if form == "pallas" else shape["N_sim"]
  bf16, f32 = jnp.bfloat16, jnp.float32
  b = 2 if chip.name == "v5p" else 1  # its two cores share the rows
  scale = B * T * N / (b * t * n)
  q, v, row, per_head, state = (
    struct(s, d)
    for s, d in (
      ((b, t, n, H), bf16),
      ((b, t, n, E), bf16),
      ((b, t, n, H), f32),
      ((b, t, n), f32),
      ((b, n, H, E), f32),
    )
  )
  if form == "pallas":
    G = n
    call = (pallas_tpu if gated is None else delta_pallas).call(
      G, n // G, H, E, found.chunk, H**-0.5
    )

    def flat(x):
      return struct((b, t, n * x.shape[3]), x.dtype)

    rows = struct((b, n // G, G, t), f32)
    operands = (flat(q), flat(q), flat(v)) + ((flat(row),) if gated is None else (rows, rows))
    flat_state = struct((b, n * H, E), f32)
    starts = struct((b, t // found.chunk, n * H, E), f32)

    def forward(operands, state):
      return chunked_recurrence.forward(call, operands, state, with_starts=True)

    def backward(operands, starts, do, d_state):
      return chunked_recurrence.backward(call, operands, starts, do, d_state)

    return [
      Program(forward, (operands, flat_state), scale),
      Program(backward, (operands, starts, flat(v), flat_state), scale),
    ]

  def fn(state, ids, *args):
    def loss(state, *args):
      op = gla if gated is None else delta_rule
      o, state = op(*args, initial_state_BNHE=state, segment_ids_BT=ids, implementation="xla")
      return jnp.sum(o.astype(f32)) + jnp.sum(state)

    return jax.value_and_grad(loss, range(len(args) + 1))(state, *args)

  numbers = (row,) if gated is None else (per_head, per_head) if gated else (per_head,)
  return [Program(fn, (state, struct((b, t), jnp.int32), q, q, v, *numbers), scale)]


def newton_schulz(form, shape, struct, chip):
  """shape: L matrices (M, N) of a device; L_sim: of them that are simulated."""
  import jax
  import jax.numpy as jnp

  from jaxlm.kernels.newton_schulz import LANGUAGE, VIEWS, pallas_tpu
  from jaxlm.kernels.newton_schulz import newton_schulz as op

  L, M, N = (shape[k] for k in "LMN")
  steps = (VIEWS,) * 5 if shape["kind"] == "views" else LANGUAGE
  g = struct((shape["L_sim"], M, N), jnp.bfloat16)

  def forward(g):
    return op(g, steps, implementation=form)

  def backward(g, ct):
    return jax.vjp(forward, g)[1](ct)

  bytes = [None, None]
  if form == "pallas":
    bytes = [pallas_tpu.cost(L, M, N, 2, 5, back).bytes_accessed for back in (False, True)]
  scale = L / shape["L_sim"]
  return [Program(forward, (g,), scale, bytes[0]), Program(backward, (g, g), scale, bytes[1])]


def fast_weight_chunk(form, shape, struct, chip):
  """shape: B, N, H, F, C of a device and one chunk; G_sim, C_sim: of the B N fast weights and of the
  tokens those that are simulated; loading and turning a weight counts too often in both forms.

  The inner gradient and the reading, forward and backward; what surrounds them (momentum, Newton-Schulz,
  the rescaled rows) is the same in both forms.
  """
  import jax.numpy as jnp

  from jaxlm.kernels.fast_weight_chunk import blocks, pallas_kernels, xla
  from jaxlm.kernels.pallas_support import vmem_bytes

  B, N, H, F, C = (shape[k] for k in "BNHFC")
  G, few, bf16, kind = (
    shape["G_sim"],
    shape["C_sim"],
    jnp.bfloat16,
    chip.device_kind,
  )
  scale = B * N * C / (G * few)
  sizes = [(F, H), (H, F), (F, H)]
  if form == "pallas":
    tiles = blocks.tiles(kind, C, F, H, 2, vmem_bytes(kind))
    how = dict(low=jnp.dtype(bf16), tiles=tiles)
    w = tuple(struct((G, *size), jnp.float32) for size in sizes)
    x, eta = struct((G, few, H), bf16), struct((G, 3, few), jnp.float32)

    def bytes(products, arrays):
      return pallas_kernels.cost(products, B * N, C, F, H, 2, tiles, arrays).bytes_accessed

    return [
      Program(lambda *a: pallas_kernels.step(*a, **how), (w, x, x, eta), scale, bytes(6, 2)),
      Program(lambda *a: pallas_kernels.read(*a, **how), (w, x), scale, bytes(3, 2)),
      Program(
        lambda *a: pallas_kernels.step_back(*a, **how), (w, w, x, x, eta), scale, bytes(15, 4)
      ),
      Program(lambda *a: pallas_kernels.read_back(*a, **how), (w, x, x), scale, bytes(8, 3)),
    ]
  w = tuple(struct((1, G, *size), jnp.float32) for size in sizes)
  x, eta = struct((1, G, few, H), bf16), (struct((1, G, few, 1), jnp.float32),) * 3

  def step_back(w, ct, k, v, eta):
    return xla.step_backward("bfloat16", (w, k, v, eta), ct)

  def read_back(w, q, ct):
    return xla.read_backward("bfloat16", (w, q), ct.astype(jnp.float32))

  return [
    Program(lambda *a: xla._swiglu_step("bfloat16", *a), (w, x, x, eta), scale),
    Program(lambda *a: xla._swiglu_read("bfloat16", *a).astype(bf16), (w, x), scale),
    Program(step_back, (w, w, x, x, eta), scale),
    Program(read_back, (w, x, x), scale),
  ]


def _every_few(T, C):
  """(Compaction, path through the tiles) as constants: every T / C-th position begins a chunk.

  The simulator aborts on the transfer of numbers that the program computes.
  """
  import numpy as np

  from jaxlm.kernels.compact import Compaction
  from jaxlm.kernels.compact.blocks import POSITIONS, SLOTS
  from jaxlm.kernels.compact.paths import path

  rank = (np.arange(T) * C // T)[None].astype(np.int32)
  keep = np.diff(rank, prepend=-1) > 0
  source, count = np.flatnonzero(keep[0])[None].astype(np.int32), np.array([C], np.int32)
  slots = Compaction(source, np.ones((1, C), bool), rank, keep, count, count > C)
  return slots, path(rank, POSITIONS, SLOTS, C // SLOTS, np)


def ema_upsample(form, shape, struct, chip):
  """shape: B, T, C, D of a device; T_sim, C_sim: of what is simulated, one row. Both directions."""
  import jax.numpy as jnp

  from jaxlm.kernels.compact.blocks import channels
  from jaxlm.kernels.ema_upsample import pallas_tpu as kernels
  from jaxlm.kernels.ema_upsample import xla

  B, T, C, D = (shape[k] for k in "BTCD")
  t, c = shape["T_sim"], shape["C_sim"]
  (slots, path), scale, f32 = _every_few(t, c), B * T / t, jnp.float32
  x, dy, edge = struct((1, c, D), jnp.bfloat16), struct((1, t, D), f32), struct((1, 1, D), f32)
  if form == "pallas":
    sizes = kernels.Sizes(1, t, c, D, channels(D))
    scalars = dict(zip(("position", "slot"), (p.reshape(-1) for p in path)))
    number, carries = struct((1, 8, c), f32), struct((1, sizes.tiles[1], 1, D), f32)

    def forward(x, number, initial):
      return kernels.forward(sizes, scalars, x, number, slots.rank_BT[:, None], initial)

    def backward(x, number, carries, dy, d_last):
      return kernels.backward(
        sizes, scalars, x, number, slots.rank_BT[:, None], carries, dy, d_last
      )

    whole = kernels.Sizes(B, T, C, D, channels(D))
    moved = [kernels.cost(whole, 2, back).bytes_accessed for back in (False, True)]
    return [
      Program(forward, (x, number, edge), scale, moved[0]),
      Program(backward, (x, number, carries, dy, edge), scale, moved[1]),
    ]

  # The profile of its gathers aborts: they are counted as what they read and write, below the truth.
  row, numbers = struct((1, D), f32), struct((1, c), f32)

  def smooth(x, p, decay, initial):
    return xla.recur(decay, p[..., None] * x.astype(f32), initial)

  def pull(decay, dy, last):
    return xla.recur_transpose(decay, dy, last)

  def sums(x, p, h, before):
    return (p[..., None] * h).astype(x.dtype), jnp.sum(h * x, -1), jnp.sum(h * before, -1)

  chunks = struct((1, c, D), f32)
  return [
    Program(smooth, (x, numbers, numbers, row), scale),
    Program(pull, (struct((1, t), f32), dy, row), scale),
    Program(sums, (x, numbers, chunks, chunks), scale),
    Program(None, (), 1.0, 4 * B * D * (C + T) + 4 * B * D * 2 * C),
  ]


def compact(form, shape, struct, chip):
  """shape: as of ema_upsample. gather and its gradient, which is scatter."""
  import jax.numpy as jnp
  import numpy as np

  from jaxlm.kernels.compact import pallas_tpu
  from jaxlm.kernels.compact.blocks import channels

  B, T, C, D = (shape[k] for k in "BTCD")
  t, c = shape["T_sim"], shape["C_sim"]
  (slots, path), scale = _every_few(t, c), B * T / t
  x, dy = struct((1, t, D), jnp.bfloat16), struct((1, c, D), jnp.bfloat16)
  if form == "pallas":
    sizes, here = (
      pallas_tpu.Sizes(1, t, c, D, channels(D)),
      np.where(slots.kept_BT, slots.rank_BT, -1)[:, None],
    )
    moved = pallas_tpu.cost(pallas_tpu.Sizes(B, T, C, D, channels(D)), 2).bytes_accessed
    return [
      Program(lambda x: pallas_tpu.move(sizes, x, here, path, True), (x,), scale, moved),
      Program(lambda y: pallas_tpu.move(sizes, y, here, path, False), (dy,), scale, moved),
    ]

  raise SystemExit("no estimate: the profile of XLA's gathers aborts")


def route(form, shape, struct, chip):
  """shape: B, T, D of a device; T_sim: rows that are simulated. Both directions, from the row before."""
  import jax
  import jax.numpy as jnp

  from jaxlm.kernels.pallas_support import vmem_bytes
  from jaxlm.kernels.route import blocks, pallas_tpu, xla

  B, T, D, t = (shape[k] for k in ("B", "T", "D", "T_sim"))
  x, w, first = (
    struct((1, t, D), jnp.bfloat16),
    struct((D, D), jnp.bfloat16),
    struct((1, D), jnp.bfloat16),
  )
  g, scale = struct((1, t), jnp.float32), B * T / t

  def both(cosine):
    def run(first, x, w_q, w_k, g):
      cos, pull = jax.vjp(cosine, first, x, w_q, w_k)
      return cos, pull(g)

    return run

  if form == "xla":
    return [Program(both(xla.cosine), (first, x, w, w, g), scale)]
  rows, columns = blocks.tiles(T, D, vmem_bytes(chip.device_kind), D, 2)

  def sizes(B, T):
    return pallas_tpu.Sizes(B, T, D, D, rows, columns)

  row, sums = struct((1, 1, D), jnp.float32), struct((1, pallas_tpu.SUMS, t), jnp.float32)
  carries = struct((1, sizes(1, t).grid[1], 1, D), jnp.float32)
  moved = [pallas_tpu.cost(sizes(B, T), 2, back).bytes_accessed for back in (False, True)]

  def weights(x, dq, dk):
    return [jnp.einsum("btd,bte->de", x, d, preferred_element_type=jnp.float32) for d in (dq, dk)]

  return [
    Program(lambda *a: pallas_tpu.forward(sizes(1, t), *a), (x, w, w, row), scale, moved[0]),
    Program(
      lambda *a: pallas_tpu.backward(sizes(1, t), *a), (x, w, w, carries, sums), scale, moved[1]
    ),
    Program(weights, (x, x, x), scale),
  ]


#: Ops without products, whose floor is the bytes that they must read and write.
MOVES = ("phase", "ema_upsample", "compact")

OPS = {
  "linear_cross_entropy": (
    linear_cross_entropy,
    {
      "gpt2_small": dict(B=64, T=512, V=50_304, D=768, stretches=2, V_xla=6_288),
      "gpt2_small, rows of 8,192": dict(B=1, T=8192, V=50_304, D=768, stretches=2, V_xla=6_288),
      "llama_1b": dict(B=1, T=8192, V=128_256, D=2048, stretches=2, V_xla=4_008),
      "llama_8b": dict(B=1, T=8192, V=128_256, D=4096, stretches=2, V_xla=4_008),
    },
    3,
  ),
  "random_head": (
    random_head,
    {
      "characters": dict(B=8, T=512, V=257, D=1024, V_sim=257),
      "32,768 words": dict(B=8, T=512, V=32_768, D=1024, V_sim=1024),
    },
    2,
  ),
  "phase": (
    phase,
    {
      "CARoPE Small": dict(B=32, T=512, N=12, K=12, H=64, rows=4, heads=12),
      "CARoPE Small, rows of 8,192": dict(B=2, T=8192, N=12, K=12, H=64, rows=1, heads=12),
    },
    lambda s: 5 * 2 * s["B"] * s["T"] * (s["N"] + s["K"]) * s["H"],
  ),
  "ema_upsample": (
    ema_upsample,
    {
      "H-Net, 1 stage": dict(B=1, T=8192, C=3072, D=1024, T_sim=1024, C_sim=384),
      "H-Net, inner stage": dict(B=1, T=3072, C=1024, D=1536, T_sim=768, C_sim=256),
    },
    lambda s: s["B"] * s["D"] * (8 * s["T"] + 6 * s["C"]),
  ),
  "compact": (
    compact,
    {
      "H-Net, 1 stage": dict(B=1, T=8192, C=3072, D=1024, T_sim=1024, C_sim=384),
      "H-Net, inner stage": dict(B=1, T=3072, C=1024, D=1536, T_sim=768, C_sim=256),
    },
    lambda s: s["B"] * s["D"] * 4 * (s["T"] + s["C"]),
  ),
  "route": (
    route,
    {
      "H-Net, 1 stage": dict(B=1, T=8192, D=1024, T_sim=2048),
      "H-Net, inner stage": dict(B=1, T=3072, D=1536, T_sim=1536),
    },
    lambda s: 2 * 3 * s["B"] * s["T"] * 2 * s["D"] ** 2,
  ),
  "ssd": (
    ssd,
    {
      "hnet_1stage_L encoder": dict(B=1, T=8192, N=32, H=64, K=1, E=128, N_sim=8),
      "hnet_2stage_XL stage 1 encoder": dict(B=1, T=6144, N=48, H=64, K=1, E=128, N_sim=8),
    },
    lambda s: 2 * 3 * s["B"] * s["T"] * s["N"] * s["H"] * (2 * s["E"] + 256),
  ),
  "gla": (
    linear_recurrence,
    {"lact_760m": dict(B=1, T=32_768, N=4, H=384, E=384, N_sim=1)},
    lambda s: 2 * 3 * s["B"] * s["T"] * s["N"] * (2 * s["H"] * s["E"] + 64 * (s["H"] + s["E"])),
  ),
  "delta_rule": (
    linear_recurrence,
    {
      "lact_760m": dict(B=1, T=32_768, N=12, H=128, E=128, N_sim=2, gated=False),
      "lact_760m, gated": dict(B=1, T=32_768, N=12, H=128, E=128, N_sim=2, gated=True),
    },
    lambda s: (
      2 * 3 * s["B"] * s["T"] * s["N"] * (3 * s["H"] * s["E"] + 64 * (2 * s["H"] + 2 * s["E"]))
    ),
  ),
  "newton_schulz": (
    newton_schulz,
    {
      "lact_760m, a chunk": dict(L=12, M=384, N=384, kind="language", L_sim=2),
      "lact_3b, a chunk": dict(L=12, M=768, N=768, kind="language", L_sim=2),
      "view synthesis": dict(L=24, M=768, N=1536, kind="views", L_sim=1),
    },
    lambda s: 2 * 5 * s["L"] * s["M"] ** 2 * (5 * s["N"] + 2 * s["M"]),
  ),
  "fast_weight_chunk": (
    fast_weight_chunk,
    {
      "lact_760m": dict(B=1, N=4, H=384, F=384, C=2048, G_sim=2, C_sim=1024),
      "lact_3b": dict(B=1, N=4, H=768, F=768, C=4096, G_sim=2, C_sim=1024),
      "view synthesis": dict(B=8, N=1, H=768, F=1536, C=8192, G_sim=2, C_sim=1024),
    },
    lambda s: 32 * 2 * s["B"] * s["N"] * s["C"] * s["F"] * s["H"],
  ),
}


def estimate(op: str, shape: str, chip_name: str, form: str) -> dict:
  """In a process of its own."""
  folder = tempfile.TemporaryDirectory()
  os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "LIBTPU_INIT_ARGS": f"--xla_jf_dump_static_llo_profile_to={folder.name} --xla_tpu_check_llo_types=false",
  }
  import jax
  import numpy as np
  from jax.experimental import topologies
  from jax.sharding import AxisType, Mesh, NamedSharding
  from jax.sharding import PartitionSpec as P

  from jaxlm.preflight.chips import CHIPS as ALL

  chip = ALL[chip_name]
  devices = topologies.get_topology_desc(platform="tpu", topology_name=CHIPS[chip_name]).devices
  mesh = Mesh(np.array(devices[:1]), ("device",), axis_types=(AxisType.Auto,))

  def struct(shape, dtype):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P()))

  build, shapes, _ = OPS[op]
  cycles = total_bytes = seconds = 0.0
  unknown = []
  with jax.set_mesh(mesh):
    for program in build(form, shapes[shape], struct, chip):
      simulated, counted = 0, 0
      if program.fn is not None:
        for path in Path(folder.name).iterdir():
          path.unlink()
        text = jax.jit(program.fn).lower(*program.args).compile().as_text()
        simulated, counted, missing = simulate(text, Path(folder.name))
        unknown += missing
      simulated *= program.scale
      counted = counted * program.scale if program.bytes is None else program.bytes
      cycles, total_bytes = cycles + simulated, total_bytes + counted
      seconds += max(simulated / chip.clock_hz, counted / chip.hbm_bandwidth)
  return dict(seconds=seconds, cycles=round(cycles), bytes=round(total_bytes), unknown=unknown)


def simulate(text: str, folder: Path):
  """(cycles, bytes, instructions of more than 1 MB without a profile) of one compiled program."""
  from jaxlm.preflight.cost import cost
  from jaxlm.preflight.hlo import parse
  from jaxlm.preflight.loops import Loops

  known, classes = {}, {}
  for path in folder.glob("*.textproto"):
    for name, cycles, same in re.findall(
      r'hlo_op_name: "([^"]+)"\s+estimated_cycles: (\d+)(?:(?:(?!hlo_op_name).)*?num_equivalent_hlos: (\d+))?',
      path.read_text(),
      re.S,
    ):
      known[name] = int(cycles)
      classes[name] = int(same or 1)
  if not known:
    raise SystemExit("no profile was written: is this libtpu 0.0.52?")
  work = cost(Loops(parse(text))).work
  like = {
    (w.op_class, w.bytes, w.cycles): known[w.name] for w in work if classes.get(w.name, 1) > 1
  }
  cycles, missing = 0, []
  for w in work:
    found = known.get(w.name, like.get((w.op_class, w.bytes, w.cycles)))
    cycles += (found or 0) * w.count
    if found is None and w.bytes > 1e6:
      missing.append(w.name)
  return cycles, sum(w.bytes * w.count for w in work), missing


def floor(op: str, shape: str, chip) -> float:
  """Seconds of the products alone at the chip's peak; where the op has none, of what it must read
  and write."""
  _, shapes, products = OPS[op]
  s = shapes[shape]
  if op in MOVES:  # bytes
    return products(s) / chip.hbm_bandwidth
  flops = products(s) if callable(products) else products * 2 * s["B"] * s["T"] * s["V"] * s["D"]
  return flops / chip.peak_flops


def table(op: str, results: dict) -> str:
  from jaxlm.preflight.chips import CHIPS as ALL

  lines = [
    "| shape | chip | XLA, ms | Pallas, ms | XLA / Pallas | floor, ms | revision |",
    "| --- | --- | ---: | ---: | ---: | ---: | --- |",
  ]
  for shape, values in OPS[op][1].items():
    for chip in CHIPS:
      rows = [results.get(f"{op} | {shape} | {chip} | {form}", {}) for form in ("xla", "pallas")]
      xla, pallas = (row.get("seconds") for row in rows)
      made = ", ".join(sorted({row["revision"] for row in rows if "revision" in row}))
      if xla is None and pallas is None:
        continue

      def ms(s):
        return "-" if s is None else f"{1e3 * s:.2f}"

      ratio = "-" if None in (xla, pallas) else f"{xla / pallas:.2f}"
      sizes = ", ".join(f"{k} {v:,}" for k, v in values.items() if len(k) == 1)
      lines.append(
        f"| {shape} ({sizes}) | {chip} | {ms(xla)} | {ms(pallas)} | {ratio} | {ms(floor(op, shape, ALL[chip]))} | {made} |"
      )
  return "\n".join(lines)


def write(op: str, script: str, table: str):
  """Puts the table of an op between its marks in jaxlm/kernels/README.md."""
  begin, end = f"<!-- {op}: bench/{script} -->", f"<!-- end of {op} -->"
  text = re.sub(
    re.escape(begin) + ".*?" + re.escape(end),
    lambda _: f"{begin}\n{table}\n{end}",
    README.read_text(),
    flags=re.S,
  )
  README.write_text(text)


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--op", default=",".join(OPS))
  parser.add_argument("--chips", default=",".join(CHIPS))
  parser.add_argument("--forms", default="pallas,xla")
  parser.add_argument("--shapes", default=None, help="separated by ';'; default: all")
  parser.add_argument("--write", action="store_true", help="compile nothing, write the tables")
  parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.one:
    print("RESULT " + json_text.dumps(estimate(*args.one)))
    return
  from jaxlm.training.provenance import revision

  results, at = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}, revision()
  cases = (
    []
    if args.write
    else [
      (op, shape, chip, form)
      for op in args.op.split(",")
      for shape in OPS[op][1]
      for chip in args.chips.split(",")
      for form in args.forms.split(",")
      if args.shapes is None or shape in args.shapes.split(";")
    ]
  )
  for case in cases:
    out = subprocess.run([sys.executable, __file__, "--one", *case], capture_output=True, text=True)
    found = [line for line in out.stdout.splitlines() if line.startswith("RESULT ")]
    if not found:
      print(" | ".join(case), "failed:", out.stderr[-2000:], flush=True)
      continue
    results[" | ".join(case)] = json.loads(found[0].removeprefix("RESULT ")) | {"revision": at}
    print(" | ".join(case), found[0], flush=True)
    RESULTS.write_text(json_text.dumps(dict(sorted(results.items())), indent=1) + "\n")
  for op in OPS:
    write(op, "kernel_estimates.py", table(op, results))


if __name__ == "__main__":
  main()
