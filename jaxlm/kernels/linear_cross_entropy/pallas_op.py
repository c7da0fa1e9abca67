"""The TPU kernels as one differentiable op, on one device or on a mesh.

On a mesh each device works on its own rows and, where w_spec shares the vocabulary, on its own
words: partitions are joined by a maximum and two sums of one number per row, dh by one sum. w's
columns are gathered and dw scattered once, as in sharded.py.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxlm.kernels.linear_cross_entropy import pallas_tpu, sharded
from jaxlm.kernels.linear_cross_entropy.blocks import Tiles


def supports(h, w, device_kind: str, tiles: Tiles, spec=None, w_spec=None) -> str | None:
  """None, or the sentence that says why not. h (B, T, D), w (V, D): anything with shape and dtype."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.size > 1:
    if spec is None:
      return f"on a mesh of {mesh.size} devices it needs spec: kernels are not partitioned by the compiler"
    words = _words(w_spec)
    if set(words) & sharded.row_axes(spec):
      return f"spec {spec} and w_spec {w_spec} share rows and words over the same mesh axes"
    for axis, size, axes in (
      ("batch", h.shape[0], sharded.names(spec[0])),
      ("length", h.shape[1], sharded.names(spec[1])),
      ("vocabulary", w.shape[0], words),
    ):
      if size % sharded.num_devices(axes):
        return f"{axis} {size} is not divisible by the {sharded.num_devices(axes)} devices of mesh axes {', '.join(axes)}"
  return pallas_tpu.supports(h.dtype, w.dtype, h.shape[-1], device_kind, tiles)


def _words(w_spec) -> tuple[str, ...]:
  return tuple(
    name
    for name in sharded.names((tuple(w_spec or ()) + (None,))[0])
    if jax.sharding.get_abstract_mesh().shape[name] > 1
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7, 8))
def _op(h_BTD, w_VD, bias_V, targets_BT, count, softcap, tiles, spec, w_spec):
  return _run(
    h_BTD, w_VD, bias_V, targets_BT, count, softcap, tiles, spec, w_spec, with_rest=False
  )[0]


def _forward(h_BTD, w_VD, bias_V, targets_BT, count, softcap, tiles, spec, w_spec):
  out, rest_BTD = _run(
    h_BTD, w_VD, bias_V, targets_BT, count, softcap, tiles, spec, w_spec, with_rest=True
  )
  return out, (h_BTD, w_VD, bias_V, targets_BT, count, out, rest_BTD)


def _mapped(local, spec, w_spec, w_VD, out_specs):
  """local(h, w, bias, targets, count, ...) under shard_map; out_specs(rows, hidden, weights, bias)."""
  if spec is None:
    return lambda *args: local(*args, words=(), columns=())
  columns, words = sharded.column_axes(spec, w_spec, w_VD), _words(w_spec)
  rows, hidden, weights, bias = (
    P(*spec[:2]),
    P(*spec[:2], None),
    P(words or None, columns or None),
    P(words or None),
  )
  in_specs = (
    hidden,
    weights,
    bias,
    rows,
    P(),
    rows,
    hidden if not words else P(*spec[:2], words),
    rows,
  )
  fn = functools.partial(local, words=words, columns=columns)

  def run(*args):
    return jax.shard_map(
      fn,
      in_specs=in_specs[: len(args)],
      out_specs=out_specs(rows, in_specs[6], hidden, weights, bias),
      check_vma=False,
    )(*args)

  return run


def _flat(x_BT):
  return None if x_BT is None else x_BT.reshape(-1, *x_BT.shape[2:])


def _counted(x_N, count):
  return x_N if count is None else jnp.where(jnp.arange(x_N.shape[0]) < count, x_N, 0.0)


def _run(h_BTD, w_VD, bias_V, targets_BT, count, softcap, tiles, spec, w_spec, *, with_rest: bool):
  """((log_prob_BT or None, log_z_BT), rest_BTD or None)"""

  def local(h_BTD, w_VD, bias_V, targets_BT, count, *, words, columns):
    w_VD = sharded.gathered(w_VD, columns)
    start = jax.lax.axis_index(words) * w_VD.shape[0] if words else 0
    targets_N = None if targets_BT is None else _flat(targets_BT) - start
    log_z_N, picked_N, rest_ND = pallas_tpu.forward(
      _flat(h_BTD),
      w_VD,
      bias_V,
      targets_N,
      count,
      softcap=softcap,
      tiles=tiles,
      with_rest=with_rest,
    )
    if words:
      most_N = jax.lax.pmax(log_z_N, words)
      whole_N = most_N + jnp.log(jax.lax.psum(jnp.exp(log_z_N - most_N), words))
      picked_N = None if picked_N is None else jax.lax.psum(picked_N, words)
      if with_rest:
        rest_ND = (rest_ND * jnp.exp(log_z_N - whole_N)[:, None]).astype(rest_ND.dtype)
      log_z_N = whole_N

    def fold(x_N):
      return _counted(x_N, count).reshape(h_BTD.shape[:2])

    log_prob_BT = None if picked_N is None else fold(picked_N - log_z_N)
    return (log_prob_BT, fold(log_z_N)), rest_ND.reshape(h_BTD.shape) if with_rest else None

  run = _mapped(local, spec, w_spec, w_VD, lambda rows, rest, *_: (rows, rest))
  return run(h_BTD, w_VD, bias_V, targets_BT, count)


def _backward(softcap, tiles, spec, w_spec, residuals, gradients):
  h_BTD, w_VD, bias_V, targets_BT, count, out, rest_BTD = residuals

  def local(h_BTD, w_VD, bias_V, targets_BT, count, out, rest_BTD, gradients, *, words, columns):
    w_VD, D = sharded.gathered(w_VD, columns), h_BTD.shape[-1]
    V = w_VD.shape[0]
    log_prob_N, log_z_N, g_N, z_N = map(_flat, (*out, *gradients))
    targets_N = None
    if targets_BT is None:
      of_p_N, of_y_N = z_N, jnp.zeros_like(z_N)
    else:
      targets_N = _flat(targets_BT) - (jax.lax.axis_index(words) * V if words else 0)
      of_p_N, of_y_N = z_N - g_N, z_N * jnp.exp(log_prob_N) - g_N * jnp.expm1(log_prob_N)
    of_p_N, of_y_N = _counted(of_p_N, count), _counted(of_y_N, count)
    dw_VD, dbias_V = pallas_tpu.backward_w(
      _flat(h_BTD),
      w_VD,
      bias_V,
      targets_N,
      log_z_N,
      of_p_N,
      of_y_N,
      count,
      softcap=softcap,
      tiles=tiles,
      dtype=w_VD.dtype,
    )
    dh_ND = of_p_N[:, None] * rest_BTD.reshape(-1, D).astype(jnp.float32)
    if targets_N is not None:
      slope_N = 1.0 if softcap is None else 1 - jnp.square((log_prob_N + log_z_N) / softcap)
      of_target_N = jnp.where((targets_N >= 0) & (targets_N < V), slope_N * of_y_N, 0.0)
      dh_ND += of_target_N[:, None] * jnp.take(w_VD, targets_N, axis=0, mode="clip").astype(
        jnp.float32
      )
    dh_ND = jax.lax.psum(dh_ND, words) if words else dh_ND
    dh_BTD = dh_ND.astype(h_BTD.dtype).reshape(h_BTD.shape)
    if spec is not None:
      if columns:
        dw_VD = sharded.scattered(dw_VD, columns, whole=not words)
      rest = tuple(sorted(sharded.row_axes(spec) - set(columns)))
      dw_VD = jax.lax.psum(dw_VD, rest) if rest else dw_VD
      dbias_V = (
        None if dbias_V is None else jax.lax.psum(dbias_V, tuple(sorted(sharded.row_axes(spec))))
      )
    return dh_BTD, dw_VD, dbias_V

  run = _mapped(
    local, spec, w_spec, w_VD, lambda rows, rest, hidden, weights, bias: (hidden, weights, bias)
  )
  dh, dw, dbias = run(h_BTD, w_VD, bias_V, targets_BT, count, out, rest_BTD, gradients)
  return dh, dw, None if bias_V is None else dbias.astype(bias_V.dtype), None, None


_op.defvjp(_forward, _backward)


def linear_cross_entropy(
  h_BTD, w_VD, bias_V, targets_BT, *, softcap, tiles: Tiles, count=None, spec=None, w_spec=None
):
  """(log_prob_BT or None, log_z_BT). count: int32, rows of the flattened (B, T) that count, the
  others are 0; not on a mesh.

  spec: of h (B, T, D); w_spec: of w (V, D); only where the context mesh has several devices.
  """
  if jax.sharding.get_abstract_mesh().size <= 1:
    spec = None
  return _op(
    h_BTD,
    w_VD,
    bias_V,
    targets_BT,
    count,
    softcap,
    tiles,
    None if spec is None else P(*spec),
    None if w_spec is None else P(*w_spec),
  )
