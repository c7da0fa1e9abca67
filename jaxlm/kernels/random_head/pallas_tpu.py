"""log z over keyed rows as TPU kernels: a tile of rows is generated on chip and used there.

Axes: B batch, T time, Q positions at a time, W words of a tile, D d_model (even channels first), P
pairs of channels.

The forward kernel is `xla.forward` for one table per sequence: maximum, sum and (for h's gradient)
the weighted rows. Rows come from the same counters and the same formulas as `rows.halves`, which do
not depend on how words are cut into tiles.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxlm.kernels import pallas_support
from jaxlm.kernels.pallas_support import LANES, dot, round_up
from jaxlm.kernels.platform import target_device_kind
from jaxlm.kernels.random_head.blocks import Tiles, tiles
from jaxlm.kernels.random_head.rows import MASK, gaussian_pairs, threefry

LOWEST = -1e30  # in place of -inf, whose difference from itself is not a number


def supports(T: int, D: int, dtype, law: str, with_embed: bool, device_kind: str) -> str | None:
  """None, or the sentence that says why not. T: positions of one device."""
  reason = pallas_support.why_not_here()
  if reason is not None:
    return reason
  if law != "gaussian":
    return f'row law {law!r}: the kernel generates gaussian rows only; use implementation="xla"'
  if D % (2 * LANES):
    return f'd_model {D} is not a multiple of 256, the pairs of two whole registers; use implementation="xla"'
  if dtype not in (jnp.float32, jnp.bfloat16):
    return f"h is {dtype}; its products take float32 or bfloat16"
  size, room = jnp.dtype(dtype).itemsize, pallas_support.vmem_bytes(device_kind)
  needed = tiles(device_kind, D).bytes(round_up(T, LANES), D, size, with_embed)
  if needed > room:
    return (
      f"length {T} of d_model {D} needs {needed >> 20} MiB on chip, {device_kind} gives {room >> 20}; "
      'use implementation="xla"'
    )
  return None


def _rows(at, count: int, k0, k1, first, rows_ref, embed_ref, noise_1, probability: float, inside):
  """Rows of words first + at ... first + at + count - 1 of a tile, written at `at` into rows_ref
  (W, D).

  inside: how many words of the tile exist; the others' learned rows may be anything and become 0.
  """
  D, here = rows_ref.shape[1], pl.ds(at, count)

  def word():
    return (first + at + jax.lax.broadcasted_iota(jnp.int32, (count, LANES), 0)).astype(jnp.uint32)

  random_W1 = exists_W1 = None
  if embed_ref is not None:
    exists_W1 = at + jax.lax.broadcasted_iota(jnp.int32, (count, 1), 0) < inside
    r0, _ = threefry(k0, k1, word(), jnp.full((count, LANES), MASK, jnp.uint32))
    random_W1 = ((r0 >> 8).astype(jnp.int32).astype(jnp.float32) * 2.0**-24 < probability)[:, :1]
  for start in range(0, D // 2, LANES):
    pair = (start + jax.lax.broadcasted_iota(jnp.int32, (count, LANES), 1)).astype(jnp.uint32)
    halves = gaussian_pairs(*threefry(k0, k1, word(), pair))
    for lane, x in zip((start, D // 2 + start), halves):
      lanes = pl.ds(lane, LANES)
      if embed_ref is not None:
        learned = jnp.where(exists_W1, embed_ref[here, lanes].astype(jnp.float32), 0.0)
        x = jnp.where(random_W1, noise_1[0] * x, learned)
      rows_ref[here, lanes] = x.astype(rows_ref.dtype)


def _generate(step: int, *args):
  """All rows of a tile; args: of _rows behind count."""
  W = args[3].shape[0]
  jax.lax.fori_loop(
    0, W // step, lambda i, _: _rows(pl.multiple_of(i * step, step), step, *args), None
  )


def _seed(seeds_ref, b):
  return seeds_ref[2 * b].astype(jnp.uint32), seeds_ref[2 * b + 1].astype(jnp.uint32)


def _forward_kernel(
  seeds_ref,
  noise_1,
  *refs,
  count: int,
  vocab_size: int,
  probability: float,
  with_embed: bool,
  with_rows: bool,
  tiles: Tiles,
):
  refs = list(refs)
  h_ref = refs.pop(0)
  embed_first_ref, embed_next_ref = (refs.pop(0), refs.pop(0)) if with_embed else (None, None)
  max_out, sum_out = refs.pop(0), refs.pop(0)
  total_ref = refs.pop(0) if with_rows else None
  even_ref, odd_ref, max_ref, sum_ref = refs
  T, W = h_ref.shape[1], even_ref.shape[0]
  b, j, last = pl.program_id(0), pl.program_id(1), pl.num_programs(1) - 1
  start = seeds_ref[2 * pl.num_programs(0)]
  # Words from here on that exist: of this device's range, and of the vocabulary.
  inside = jnp.minimum(count, vocab_size - start) - j * W
  key = _seed(seeds_ref, b)

  @pl.when(j == 0)
  def _():
    max_ref[...] = jnp.full(max_ref.shape, LOWEST, jnp.float32)
    sum_ref[...] = jnp.zeros(sum_ref.shape, jnp.float32)
    if with_rows:
      total_ref[...] = jnp.zeros(total_ref.shape, jnp.float32)

    _generate(tiles.step, *key, start, even_ref, embed_first_ref, noise_1, probability, inside)

  def use(rows_ref, next_ref):
    """Adds one tile. In between the next one is generated: by vector units, while the matrix unit
    is busy.
    """
    rows_WD = rows_ref[...]

    def logits(at):
      return dot(h_ref[0, pl.ds(at, tiles.positions), :], rows_WD, (1, 1))

    following_QW = logits(0)
    left = list(range(0, W, tiles.step)) if next_ref is not None else []
    for at in range(0, T, tiles.positions):
      here, z_QW = pl.ds(at, tiles.positions), following_QW
      if at + tiles.positions < T:
        following_QW = logits(at + tiles.positions)
      z_QW = jnp.where(jax.lax.broadcasted_iota(jnp.int32, z_QW.shape, 1) < inside, z_QW, LOWEST)
      old_QL = max_ref[here, :]
      new_QL = jnp.maximum(old_QL, jnp.max(z_QW, 1, keepdims=True))
      keep_QL = jnp.exp(old_QL - new_QL)
      e_QW = jnp.exp(z_QW - new_QL[:, :1])
      max_ref[here, :] = new_QL
      sum_ref[here, :] = sum_ref[here, :] * keep_QL + sum(
        e_QW[:, k : k + LANES] for k in range(0, W, LANES)
      )
      if with_rows:
        total_ref[0, here, :] = total_ref[0, here, :] * keep_QL[:, :1] + dot(
          e_QW.astype(rows_WD.dtype), rows_WD, (1, 0)
        )
      for word in left[at * len(left) // T : (at + tiles.positions) * len(left) // T]:
        _rows(
          word,
          tiles.step,
          *key,
          start + (j + 1) * W,
          next_ref,
          embed_next_ref,
          noise_1,
          probability,
          inside - W,
        )

  even = jax.lax.rem(j, 2) == 0
  for parity, here_ref, next_ref in (
    (even, even_ref, odd_ref),
    (jnp.logical_not(even), odd_ref, even_ref),
  ):
    pl.when(parity & (j < last))(functools.partial(use, here_ref, next_ref))
    pl.when(parity & (j == last))(functools.partial(use, here_ref, None))

  @pl.when(j == last)
  def _():
    max_out[0] = max_ref[...].T[:1]
    sum_out[0] = jnp.sum(sum_ref[...].T, 0, keepdims=True)


def _scalars(seed_B2, vocabulary):
  """What index maps and kernels read as numbers: every seed's two words and the first token; the
  noise's scale.
  """
  as_int = jax.lax.bitcast_convert_type(seed_B2.astype(jnp.uint32), jnp.int32)
  start = jnp.reshape(jnp.asarray(vocabulary.start, jnp.int32), 1)
  return jnp.concatenate([as_int.reshape(-1), start]), jnp.reshape(
    jnp.asarray(vocabulary.noise_scale, jnp.float32), 1
  )


def _positions(x_BT):
  """Padded to whole registers of positions."""
  return jnp.pad(x_BT, ((0, 0), (0, -x_BT.shape[1] % LANES)) + ((0, 0),) * (x_BT.ndim - 2))


def _fitted(h_BTD, vocabulary):
  found = tiles(target_device_kind(), h_BTD.shape[2])
  return found.fitted(h_BTD.shape[1], vocabulary.count)


def forward(h_BTD, seed_B2, vocabulary, *, with_rows: bool):
  """(max_BT, sum_BT, rows_BTD or None) as of xla.Sums: over the words of `vocabulary`, one table
  per sequence.
  """
  T_whole, embed_VD = h_BTD.shape[1], vocabulary.embed_VD
  h_BTD = _positions(h_BTD)
  B, T, D = h_BTD.shape
  t = _fitted(h_BTD, vocabulary)
  W, num = t.words, pl.cdiv(vocabulary.count, t.words)
  of_row = jax.ShapeDtypeStruct((B, 1, T), jnp.float32)
  row = pl.BlockSpec((1, 1, T), lambda b, j, *_: (b, 0, 0))
  whole = pl.BlockSpec((1, T, D), lambda b, j, *_: (b, 0, 0))
  kernel = functools.partial(
    _forward_kernel,
    count=vocabulary.count,
    vocab_size=vocabulary.vocab_size,
    probability=vocabulary.probability,
    with_embed=embed_VD is not None,
    with_rows=with_rows,
    tiles=t,
  )
  out = pl.pallas_call(
    kernel,
    name="random_head_forward",
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=2,
      grid=(B, num),
      in_specs=[whole]
      + (
        []
        if embed_VD is None
        else [
          pl.BlockSpec((W, D), lambda b, j, *_: (0, 0)),
          pl.BlockSpec((W, D), lambda b, j, *_: (jnp.minimum(j + 1, num - 1), 0)),
        ]
      ),
      out_specs=[row, row] + [whole] * with_rows,
      scratch_shapes=[pltpu.VMEM((W, D), h_BTD.dtype)] * 2
      + [pltpu.VMEM((T, LANES), jnp.float32)] * 2,
    ),
    out_shape=[of_row, of_row] + [jax.ShapeDtypeStruct((B, T, D), jnp.float32)] * with_rows,
    cost_estimate=forward_cost(
      B, T, vocabulary.count, D, h_BTD.dtype.itemsize, with_rows, embed_VD is not None
    ),
    **pallas_support.on_tpu("parallel", "arbitrary"),
  )(*_scalars(seed_B2, vocabulary), h_BTD, *([] if embed_VD is None else [embed_VD] * 2))
  max_BT, sum_BT = (x[:, 0, :T_whole] for x in out[:2])
  return max_BT, sum_BT, out[2][:, :T_whole] if with_rows else None


def forward_cost(
  B: int, T: int, V: int, D: int, itemsize: int, with_rows: bool, with_embed: bool
) -> pl.CostEstimate:
  return pl.CostEstimate(
    flops=(4 if with_rows else 2) * B * T * V * D,
    transcendentals=B * V * (T + D),
    bytes_accessed=B * D * (T * (itemsize + 4 * with_rows) + V * itemsize * with_embed),
  )


def _gradient_kernel(
  seeds_ref,
  noise_1,
  h_ref,
  row_ref,
  embed_ref,
  out_ref,
  rows_ref,
  *,
  count: int,
  vocab_size: int,
  probability: float,
  tiles: Tiles,
):
  W = rows_ref.shape[0]
  j, b = pl.program_id(0), pl.program_id(1)
  start = seeds_ref[2 * pl.num_programs(1)]
  inside = jnp.minimum(count, vocab_size - start) - j * W

  @pl.when(b == 0)
  def _():
    out_ref[...] = jnp.zeros(out_ref.shape, jnp.float32)

  key = _seed(seeds_ref, b)
  _generate(tiles.step, *key, start + j * W, rows_ref, embed_ref, noise_1, probability, inside)
  h_TD, log_z_1T, g_1T = h_ref[0], row_ref[0, 0:1], row_ref[0, 1:2]
  for at in range(0, W, tiles.step):
    here = pl.ds(at, tiles.step)
    local = at + jax.lax.broadcasted_iota(jnp.int32, (tiles.step, LANES), 0)
    r0, _ = threefry(
      *key, (start + j * W + local).astype(jnp.uint32), jnp.full(local.shape, MASK, jnp.uint32)
    )
    random = (r0 >> 8).astype(jnp.int32).astype(jnp.float32) * 2.0**-24 < probability
    learned_W1 = jnp.where(random | (local >= inside), 0.0, 1.0)[:, :1]
    z_WT = dot(rows_ref[here, :], h_TD, (1, 1))
    dz_WT = learned_W1 * (g_1T * jnp.exp(z_WT - log_z_1T))
    out_ref[here, :] += dot(dz_WT.astype(h_TD.dtype), h_TD, (1, 0))


def embed_gradient(h_BTD, seed_B2, vocabulary, log_z_BT, g_BT):
  """float32 (count, D): as xla.embed_gradient, one table per sequence; g_BT: 0 where a position is
  of another table.
  """
  h_BTD, embed_VD = _positions(h_BTD), vocabulary.embed_VD
  B, T, D = h_BTD.shape
  # exp of what belongs to another table may be anything: +inf makes it 0.
  row_B2T = _positions(jnp.stack([jnp.where(g_BT == 0, jnp.inf, log_z_BT), g_BT], 2)).swapaxes(1, 2)
  row_B2T = row_B2T.at[:, 0, g_BT.shape[1] :].set(jnp.inf)
  t = _fitted(h_BTD, vocabulary)
  W = t.words
  word = pl.BlockSpec((W, D), lambda j, b, *_: (j, 0))
  kernel = functools.partial(
    _gradient_kernel,
    count=vocabulary.count,
    vocab_size=vocabulary.vocab_size,
    probability=vocabulary.probability,
    tiles=t,
  )
  V, size = vocabulary.count, h_BTD.dtype.itemsize
  return pl.pallas_call(
    kernel,
    name="random_head_embed_gradient",
    out_shape=jax.ShapeDtypeStruct((V, D), jnp.float32),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=2,
      grid=(pl.cdiv(V, W), B),
      in_specs=[
        pl.BlockSpec((1, T, D), lambda j, b, *_: (b, 0, 0)),
        pl.BlockSpec((1, 2, T), lambda j, b, *_: (b, 0, 0)),
        word,
      ],
      out_specs=word,
      scratch_shapes=[pltpu.VMEM((W, D), h_BTD.dtype)],
    ),
    cost_estimate=pl.CostEstimate(
      flops=4 * B * T * V * D,
      transcendentals=B * V * (T + D),
      bytes_accessed=D * (B * T * size * pl.cdiv(V, W) + V * (size + 4)),
    ),
    **pallas_support.on_tpu("parallel", "arbitrary"),
  )(*_scalars(seed_B2, vocabulary), h_BTD, row_B2T, embed_VD)
