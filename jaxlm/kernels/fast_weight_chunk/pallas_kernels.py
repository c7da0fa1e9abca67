"""The inner gradient of a SwiGLU fast weight and its reading as four TPU kernels.

Axes: G fast weights (rows times heads), S parts of the inner width, C tokens, Q tokens of a tile, F
inner width of a part, H width of a head.

Nothing of size (tokens, inner width) is in memory: the tiles of tokens follow each other on chip
and their sums over tokens stay there. Work arrays are (F, Q), so that rates are rows, sums over
tokens are plain products, and only narrow arrays are turned. Matrices that share an operand are one
stack: rows of [W0; W2], of [W1^T] and, backwards, of their cotangents. A part of the inner width is
a network of its own; what the tokens get (o, and the gradients of k, v, q and eta) has an axis S
and is summed by the caller.

The formulas are those of `xla.py`: `_swiglu_step`, `_backward`, `_swiglu_read`, `_read_backward`.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxlm.kernels import pallas_support
from jaxlm.kernels.fast_weight_chunk.blocks import Tiles, stretch
from jaxlm.kernels.platform import target_platform


def dot(a, b, contract):
  """As `pallas_support.dot`. A CPU, which interprets, has no program for some bfloat16 products into
  float32: there their factors are float32 and hold the same numbers.
  """
  if target_platform() == "cpu":
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
  return pallas_support.dot(a, b, contract)


def _silu(y):
  """silu, its first and its second derivative."""
  s = jax.nn.sigmoid(y)
  return y * s, s * (1 + y * (1 - s)), s * (1 - s) * (2 + y * (1 - 2 * s))


def _stack(ref, *matrices, at=slice(None)):
  """Writes (rows, columns) values under each other into columns `at`, in ref's dtype."""
  row = 0
  for x in matrices:
    ref[row : row + x.shape[0], at] = x.astype(ref.dtype)
    row += x.shape[0]


def _beside(ref, *matrices):
  at = 0
  for x in matrices:
    ref[:, at : at + x.shape[1]] = x.astype(ref.dtype)
    at += x.shape[1]


def _first(run):
  pl.when(pl.program_id(2) == 0)(run)


def _last(run):
  pl.when(pl.program_id(2) == pl.num_programs(2) - 1)(run)


def _by_turns(Q: int, products, use):
  """use(tokens, products(tokens)) for every stretch of a tile, the products of the next stretch
  before: the matrix unit has work while the vector unit computes on this one.
  """
  size = stretch(Q)
  following = products(slice(0, size))
  for start in range(0, Q, size):
    here, found = slice(start, start + size), following
    if start + size < Q:
      following = products(slice(start + size, start + 2 * size))
    use(here, found)


def _zero(*refs):
  for ref in refs:
    ref[...] = jnp.zeros(ref.shape, ref.dtype)


def _step_kernel(
  w0_ref,
  w1_ref,
  w2_ref,
  k_ref,
  v_ref,
  eta_ref,
  d0_ref,
  d1_ref,
  d2_ref,
  by_k,
  by_v,
  sum_ref,
  of_k,
  of_v,
):
  F, low, Q = w0_ref.shape[1], by_k.dtype, k_ref.shape[1]

  @_first
  def _():
    _stack(by_k, w0_ref[0], w2_ref[0])
    by_v[...] = w1_ref[0].T.astype(low)
    _zero(d0_ref, d2_ref, sum_ref)

  def products(at):
    k_QH, v_QH = k_ref[0, at].astype(low), v_ref[0, at].astype(low)
    return dot(by_k[...], k_QH, (1, 1)), dot(by_v[...], v_QH, (1, 1))

  def use(at, found):
    y_FQ, g_FQ = found
    y0_FQ, y2_FQ = y_FQ[:F], y_FQ[F:]
    silu_FQ, slope_FQ, _ = _silu(y0_FQ)
    e0_1Q, e1_1Q, e2_1Q = (eta_ref[0, i : i + 1, at] for i in range(3))
    _stack(of_k, g_FQ * y2_FQ * slope_FQ * e0_1Q, g_FQ * silu_FQ * e2_1Q, at=at)
    _stack(of_v, silu_FQ * y2_FQ * e1_1Q, at=at)

  _by_turns(Q, products, use)
  k_QH, v_QH = k_ref[0].astype(low), v_ref[0].astype(low)
  d0_ref[0] += dot(of_k[:F, :], k_QH, (1, 0))
  d2_ref[0] += dot(of_k[F:, :], k_QH, (1, 0))
  sum_ref[...] += dot(of_v[...], v_QH, (1, 0))

  @_last
  def _():
    d1_ref[0] = sum_ref[...].T


def _read_kernel(w0_ref, w1_ref, w2_ref, q_ref, o_ref, by_q, w1_low):
  F, low = w0_ref.shape[1], by_q.dtype

  @_first
  def _():
    _stack(by_q, w0_ref[0], w2_ref[0])
    w1_low[...] = w1_ref[0].astype(low)

  def products(at):
    return dot(q_ref[0, at].astype(low), by_q[...], (1, 1))

  def use(at, y_QF):
    y0_QF, y2_QF = y_QF[:, :F], y_QF[:, F:]
    hid_QF = y0_QF * jax.nn.sigmoid(y0_QF) * y2_QF
    o_ref[0, 0, at] = dot(hid_QF.astype(low), w1_low[...], (1, 1)).astype(o_ref.dtype)

  _by_turns(q_ref.shape[1], products, use)


def _read_back_kernel(
  w0_ref,
  w1_ref,
  w2_ref,
  q_ref,
  ct_ref,
  w0bar_ref,
  w1bar_ref,
  w2bar_ref,
  qbar_ref,
  by_q,
  by_q_turned,
  w1_turned,
  sum_ref,
  ybar_ref,
  hid_ref,
):
  F, low = w0_ref.shape[1], by_q.dtype

  @_first
  def _():
    _stack(by_q, w0_ref[0], w2_ref[0])
    _beside(by_q_turned, w0_ref[0].T, w2_ref[0].T)
    w1_turned[...] = w1_ref[0].T.astype(low)
    _zero(w0bar_ref, w2bar_ref, sum_ref)

  def products(at):
    q_QH, ct_QH = q_ref[0, at].astype(low), ct_ref[0, at].astype(low)
    return dot(by_q[...], q_QH, (1, 1)), dot(w1_turned[...], ct_QH, (1, 1))

  def use(at, found):
    y_FQ, hidbar_FQ = found
    y0_FQ, y2_FQ = y_FQ[:F], y_FQ[F:]
    silu_FQ, slope_FQ, _ = _silu(y0_FQ)
    _stack(ybar_ref, hidbar_FQ * y2_FQ * slope_FQ, hidbar_FQ * silu_FQ, at=at)
    _stack(hid_ref, silu_FQ * y2_FQ, at=at)

  _by_turns(q_ref.shape[1], products, use)
  q_QH, ct_QH = q_ref[0].astype(low), ct_ref[0].astype(low)
  w0bar_ref[0] += dot(ybar_ref[:F, :], q_QH, (1, 0))
  w2bar_ref[0] += dot(ybar_ref[F:, :], q_QH, (1, 0))
  sum_ref[...] += dot(hid_ref[...], ct_QH, (1, 0))
  qbar_ref[0, 0] = dot(by_q_turned[...], ybar_ref[...], (1, 0)).T.astype(qbar_ref.dtype)

  @_last
  def _():
    w1bar_ref[0] = sum_ref[...].T


def _step_back_kernel(
  w0_ref,
  w1_ref,
  w2_ref,
  c0_ref,
  c1_ref,
  c2_ref,
  k_ref,
  v_ref,
  eta_ref,
  w0bar_ref,
  w1bar_ref,
  w2bar_ref,
  kbar_ref,
  vbar_ref,
  etabar_ref,
  by_k,
  by_v,
  by_k_turned,
  by_v_turned,
  sum_ref,
  of_k,
  of_v,
):
  F, low = w0_ref.shape[1], by_k.dtype

  @_first
  def _():
    _stack(by_k, w0_ref[0], w2_ref[0], c0_ref[0], c2_ref[0])
    _stack(by_v, w1_ref[0].T, c1_ref[0].T)
    _beside(by_k_turned, w0_ref[0].T, w2_ref[0].T, c0_ref[0].T, c2_ref[0].T)
    _beside(by_v_turned, w1_ref[0], c1_ref[0])
    _zero(w0bar_ref, w2bar_ref, sum_ref)

  def products(at):
    k_QH, v_QH = k_ref[0, at].astype(low), v_ref[0, at].astype(low)
    return dot(by_k[...], k_QH, (1, 1)), dot(by_v[...], v_QH, (1, 1))

  def use(at, found):
    y0_FQ, y2_FQ, raw0_FQ, raw2_FQ = (found[0][i * F : (i + 1) * F] for i in range(4))
    g_FQ, raw1_FQ = found[1][:F], found[1][F:]
    silu_FQ, slope_FQ, curve_FQ = _silu(y0_FQ)
    e0_1Q, e1_1Q, e2_1Q = (eta_ref[0, i : i + 1, at] for i in range(3))
    p0_FQ, p1_FQ, p2_FQ = raw0_FQ * e0_1Q, raw1_FQ * e1_1Q, raw2_FQ * e2_1Q
    dy0_FQ, dy2_FQ, hid_FQ = g_FQ * y2_FQ * slope_FQ, g_FQ * silu_FQ, silu_FQ * y2_FQ
    of_g_FQ = p0_FQ * y2_FQ * slope_FQ + p2_FQ * silu_FQ
    of_y2_FQ = p0_FQ * g_FQ * slope_FQ + p1_FQ * silu_FQ
    of_y0_FQ = (p2_FQ * g_FQ + p1_FQ * y2_FQ) * slope_FQ + p0_FQ * g_FQ * y2_FQ * curve_FQ
    for i, rows in enumerate((raw0_FQ * dy0_FQ, raw1_FQ * hid_FQ, raw2_FQ * dy2_FQ)):
      etabar_ref[0, 0, i : i + 1, at] = jnp.sum(rows, 0, keepdims=True)
    _stack(of_k, of_y0_FQ, of_y2_FQ, dy0_FQ * e0_1Q, dy2_FQ * e2_1Q, at=at)
    _stack(of_v, of_g_FQ, hid_FQ * e1_1Q, at=at)

  _by_turns(k_ref.shape[1], products, use)
  k_QH, v_QH = k_ref[0].astype(low), v_ref[0].astype(low)
  w0bar_ref[0] += dot(of_k[:F, :], k_QH, (1, 0))
  w2bar_ref[0] += dot(of_k[F : 2 * F, :], k_QH, (1, 0))
  sum_ref[...] += dot(of_v[:F, :], v_QH, (1, 0))
  kbar_ref[0, 0] = dot(by_k_turned[...], of_k[...], (1, 0)).T.astype(kbar_ref.dtype)
  vbar_ref[0, 0] = dot(by_v_turned[...], of_v[...], (1, 0)).T.astype(vbar_ref.dtype)

  @_last
  def _():
    w1bar_ref[0] = sum_ref[...].T


def cost(products: int, G: int, C: int, F: int, H: int, size: int, tiles: Tiles, wide: int):
  """products: of (C, H) and (H, F). wide: arrays of tokens. Bytes: matrices once, tokens once per
  part of the inner width.
  """
  matrices = {6: 6, 3: 3, 15: 9, 8: 6}[products]
  return pl.CostEstimate(
    flops=2 * products * G * C * F * H,
    transcendentals=G * C * F,
    bytes_accessed=G * (4 * matrices * F * H + wide * size * tiles.parts * C * H),
  )


def _call(kernel, name, weights, tokens, eta, outs, scratch, tiles: Tiles, products: int):
  """weights: of (G, F, H) or (G, H, F) alike (W0, W1, W2 order). tokens: (G, C, H). outs: in order,
  'w' three matrices, 'e' rates, else the dtype of an array of tokens.
  """
  (G, F, H), (_, C, _) = weights[0].shape, tokens[0].shape
  part, Q = F // tiles.parts, tiles.tokens
  tall = pl.BlockSpec((1, part, H), lambda g, s, t: (g, s, 0))
  wide = pl.BlockSpec((1, H, part), lambda g, s, t: (g, 0, s))
  matrices = [tall, wide, tall]
  in_specs = matrices * (len(weights) // 3)
  in_specs += [pl.BlockSpec((1, Q, H), lambda g, s, t: (g, t, 0))] * len(tokens)
  in_specs += [pl.BlockSpec((1, 3, Q), lambda g, s, t: (g, 0, t))] * len(eta)
  out_specs, out_shape = [], []
  for out in outs:
    if out == "w":
      out_specs += matrices
      out_shape += [jax.ShapeDtypeStruct(w.shape, jnp.float32) for w in weights[:3]]
    elif out == "e":
      out_specs.append(pl.BlockSpec((1, 1, 3, Q), lambda g, s, t: (s, g, 0, t)))
      out_shape.append(jax.ShapeDtypeStruct((tiles.parts, G, 3, C), jnp.float32))
    else:
      dtype = out if tiles.parts == 1 else jnp.float32
      out_specs.append(pl.BlockSpec((1, 1, Q, H), lambda g, s, t: (s, g, t, 0)))
      out_shape.append(jax.ShapeDtypeStruct((tiles.parts, G, C, H), dtype))
  size = tokens[0].dtype.itemsize
  return pl.pallas_call(
    kernel,
    out_shape=out_shape,
    grid=(G, tiles.parts, C // Q),
    in_specs=in_specs,
    out_specs=out_specs,
    scratch_shapes=scratch,
    name=name,
    cost_estimate=cost(products, G, C, F, H, size, tiles, len(tokens) + len(outs) - ("w" in outs)),
    **pallas_support.on_tpu("parallel", "parallel", "arbitrary"),
  )(*weights, *tokens, *eta)


def _sum(x_S, dtype):
  return x_S[0] if x_S.shape[0] == 1 else jnp.sum(x_S, 0).astype(dtype)


def _low(low, *shapes):
  return [pltpu.VMEM(shape, low) for shape in shapes]


def step(weights, k_GCH, v_GCH, eta_G3C, *, low, tiles: Tiles):
  """The three sums over tokens, float32. weights: (w0_GFH, w1_GHF, w2_GFH) float32."""
  _, F, H = weights[0].shape
  F, Q = F // tiles.parts, tiles.tokens
  scratch = _low(low, (2 * F, H), (F, H)) + [pltpu.VMEM((F, H), jnp.float32)]
  scratch += _low(low, (2 * F, Q), (F, Q))
  args = ([*weights], [k_GCH, v_GCH], [eta_G3C])
  return tuple(_call(_step_kernel, "fast_weight_step", *args, ["w"], scratch, tiles, 6))


def step_back(weights, cotangents, k_GCH, v_GCH, eta_G3C, *, low, tiles: Tiles):
  """(gradients of the weights, of k, of v, of eta) for the cotangents of `step`'s sums."""
  _, F, H = weights[0].shape
  F, Q = F // tiles.parts, tiles.tokens
  scratch = _low(low, (4 * F, H), (2 * F, H), (H, 4 * F), (H, 2 * F))
  scratch += [pltpu.VMEM((F, H), jnp.float32), *_low(low, (4 * F, Q), (2 * F, Q))]
  *wbar, kbar, vbar, etabar = _call(
    _step_back_kernel,
    "fast_weight_step_backward",
    [*weights, *cotangents],
    [k_GCH, v_GCH],
    [eta_G3C],
    ["w", k_GCH.dtype, v_GCH.dtype, "e"],
    scratch,
    tiles,
    15,
  )
  return tuple(wbar), _sum(kbar, k_GCH.dtype), _sum(vbar, v_GCH.dtype), _sum(etabar, jnp.float32)


def read(weights, q_GCH, *, low, tiles: Tiles):
  """f_W(q) in q's dtype."""
  _, F, H = weights[0].shape
  F //= tiles.parts
  scratch = _low(low, (2 * F, H), (H, F))
  (o,) = _call(
    _read_kernel, "fast_weight_read", [*weights], [q_GCH], [], [q_GCH.dtype], scratch, tiles, 3
  )
  return _sum(o, q_GCH.dtype)


def read_back(weights, q_GCH, ct_GCH, *, low, tiles: Tiles):
  """(gradients of the weights, of q) for the cotangent of `read`."""
  _, F, H = weights[0].shape
  F, Q = F // tiles.parts, tiles.tokens
  scratch = _low(low, (2 * F, H), (H, 2 * F), (F, H)) + [pltpu.VMEM((F, H), jnp.float32)]
  scratch += _low(low, (2 * F, Q), (F, Q))
  *wbar, qbar = _call(
    _read_back_kernel,
    "fast_weight_read_backward",
    [*weights],
    [q_GCH, ct_GCH],
    [],
    ["w", q_GCH.dtype],
    scratch,
    tiles,
    8,
  )
  return tuple(wbar), _sum(qbar, q_GCH.dtype)
