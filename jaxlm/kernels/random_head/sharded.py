"""log z on a mesh: each device generates its own range of the vocabulary for its own sequences.

Three small collectives join the ranges: a maximum, the sums, and (under a gradient) the mean rows
(B, T, D).
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxlm.kernels.random_head import xla


def names(part) -> tuple[str, ...]:
  return () if part is None else (part,) if isinstance(part, str) else tuple(part)


def _local(spec, vocab_axes, size, options):
  """(tokens per device, options of shard_map)."""
  count = -(-options["vocab_size"] // size)
  axes = {n for part in spec[:2] for n in names(part)} | set(vocab_axes)
  # A kernel is not partitioned by the compiler: every axis of the mesh is ours then.
  return count, {"check_vma": False} | ({} if options["kernel"] else {"axis_names": axes})


def _vocabulary(count, vocab_axes, embed_VD, noise_scale, options):
  start = jax.lax.axis_index(vocab_axes) * count if vocab_axes else jnp.zeros((), jnp.int32)
  return xla.Vocabulary(
    start=start,
    count=count,
    embed_VD=embed_VD,
    noise_scale=noise_scale,
    **options | {"chunk": min(options["chunk"], count)},
  )


def _whole(embed_VD, count: int, size: int):
  missing = count * size - (0 if embed_VD is None else embed_VD.shape[0])
  return embed_VD if embed_VD is None or not missing else jnp.pad(embed_VD, ((0, missing), (0, 0)))


def _specs(spec, vocab_axes, embed_VD, segment_ids_BT):
  rows = P(*spec[:2])
  return rows, (
    P(*spec[:2], None),
    P(spec[0], None),
    None if segment_ids_BT is None else rows,
    None if embed_VD is None else P(vocab_axes or None, None),
    P(),
  )


def forward(
  h_BTD,
  seed_B2,
  segment_ids_BT,
  embed_VD,
  noise_scale,
  *,
  spec,
  vocab_axes,
  size,
  with_rows,
  options,
):
  """xla.forward over all ranges, normalised: (log_z_BT, mean_BTD or None)."""
  count, mapped = _local(spec, vocab_axes, size, options)
  rows, in_specs = _specs(spec, vocab_axes, embed_VD, segment_ids_BT)

  def local(h_BTD, seed_B2, segment_ids_BT, embed_VD, noise_scale):
    sums = xla.forward(
      h_BTD,
      seed_B2,
      segment_ids_BT,
      _vocabulary(count, vocab_axes, embed_VD, noise_scale, options),
      with_rows=with_rows,
    )
    if not vocab_axes:
      return normalise(sums)
    max_BT = jax.lax.pmax(sums.max_BT, vocab_axes)
    weight_BT = jnp.exp(sums.max_BT - max_BT)

    def add(x):
      return jax.lax.psum(x, vocab_axes)

    return normalise(
      xla.Sums(
        max_BT,
        add(sums.sum_BT * weight_BT),
        add(sums.rows_BTD * weight_BT[..., None]) if with_rows else None,
      )
    )

  out_specs = (rows, P(*spec[:2], None) if with_rows else None)
  return jax.shard_map(local, in_specs=in_specs, out_specs=out_specs, **mapped)(
    h_BTD, seed_B2, segment_ids_BT, _whole(embed_VD, count, size), noise_scale
  )


def embed_gradient(
  h_BTD,
  seed_B2,
  segment_ids_BT,
  embed_VD,
  noise_scale,
  log_z_BT,
  g_BT,
  *,
  spec,
  vocab_axes,
  size,
  options,
):
  """xla.embed_gradient of each range, summed over the sequences' devices."""
  count, mapped = _local(spec, vocab_axes, size, options)
  rows, in_specs = _specs(spec, vocab_axes, embed_VD, segment_ids_BT)
  batch_axes = tuple(n for part in spec[:2] for n in names(part))

  def local(h_BTD, seed_B2, segment_ids_BT, embed_VD, noise_scale, log_z_BT, g_BT):
    new_VD = xla.embed_gradient(
      h_BTD,
      seed_B2,
      segment_ids_BT,
      _vocabulary(count, vocab_axes, embed_VD, noise_scale, options),
      log_z_BT,
      g_BT,
    )
    return jax.lax.psum(new_VD, batch_axes) if batch_axes else new_VD

  new_VD = jax.shard_map(
    local, in_specs=(*in_specs, rows, rows), out_specs=P(vocab_axes or None, None), **mapped
  )(h_BTD, seed_B2, segment_ids_BT, _whole(embed_VD, count, size), noise_scale, log_z_BT, g_BT)
  return new_VD[: embed_VD.shape[0]]


def normalise(sums: xla.Sums):
  """(log_z_BT, mean_BTD)."""
  mean_BTD = None if sums.rows_BTD is None else sums.rows_BTD / sums.sum_BT[..., None]
  return sums.max_BT + jnp.log(sums.sum_BT), mean_BTD
