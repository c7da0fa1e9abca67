"""The public softmax over random rows.

Axes: B batch, T time, D d_model, V vocabulary.
"""

import functools
import math

import jax
import jax.numpy as jnp

from jaxlm.kernels.choices import note
from jaxlm.kernels.platform import target_device_kind, target_platform
from jaxlm.kernels.random_head import blocks, pallas_tpu, reference, sharded, xla
from jaxlm.kernels.random_head.reference import effective, segment_seeds
from jaxlm.kernels.random_head.rows import LAWS, keyed_rows, split

CHUNK_BYTES = 32 * 2**20  # rows and logits of one stretch, float32, per device
CPU_CHUNK_BYTES = 4 * 2**20  # of one sequence: what a core's caches hold
MIN_CHUNK = 128


def random_head(
  h_BTD,
  seed_B2,
  targets_BT=None,
  *,
  vocab_size: int,
  law: str = "gaussian",
  segment_ids_BT=None,
  embed_VD=None,
  probability: float = 1.0,
  noise_scale=1.0,
  chunk: int | None = None,
  implementation: str | None = None,
  spec=None,
  vocab_spec=None,
):
  """log_prob = <h, E[y]> - log_z, log_z = logsumexp_v <h, E[v]>, E[v] = keyed_rows(seed, v).
  Float32.

  h_BTD: already scaled; rows are rounded to its dtype, products summed in float32. seed_B2: uint32,
  one table per row;
    with segment_ids_BT one per segment. targets_BT: int32 in [0, V); without them log_z_BT alone is
    returned.
  embed_VD: learned rows; E = m noise_scale N + (1 - m) embed with m keyed by (seed, v) and
  probability (spec 6).
  Gradients: of h, and of embed; random rows, seeds and noise_scale have none.
  chunk: tokens whose rows exist at a time; None: by size. No array is (B, V, D), none is (B, T, V).
  implementation: None, "reference" (holds (B, T, V, D)), "xla", "pallas" (TPU kernel: tiles of rows
  exist on chip
    only). None takes "pallas" where it is supported and blocks.py says that it is faster.
  spec: PartitionSpec of h under the context mesh; vocab_spec: mesh axes that share the vocabulary.
  """
  B, T, D = h_BTD.shape
  if D % 2 or seed_B2.shape != (B, 2) or (targets_BT is not None and targets_BT.shape != (B, T)):
    raise ValueError(
      f"h {h_BTD.shape}, seed {seed_B2.shape}, targets {getattr(targets_BT, 'shape', None)}: want "
      "(B, T, D) with even D, (B, 2), (B, T)"
    )
  if law not in LAWS:
    raise ValueError(f"row law {law!r}: known are {', '.join(LAWS)}")
  if implementation not in (None, "reference", "xla", "pallas"):
    raise NotImplementedError(
      f"random_head implementation {implementation!r} does not exist; known: reference, xla, pallas"
    )
  noise_scale = jax.lax.stop_gradient(jnp.asarray(noise_scale, jnp.float32))
  if implementation == "reference":
    note("random_head", "reference", {"h": h_BTD}, named=True)
    log_z_BT = reference.log_z(
      h_BTD,
      seed_B2,
      segment_ids_BT,
      embed_VD,
      noise_scale,
      vocab_size=vocab_size,
      probability=probability,
      law=law,
    )
  else:
    mesh = jax.sharding.get_abstract_mesh()
    spec = tuple(spec or ()) + (None, None)

    def shared(part):
      return tuple(n for n in sharded.names(part) if mesh.shape.get(n, 1) > 1)

    spec, vocab_axes = (shared(spec[0]) or None, shared(spec[1]) or None), shared(vocab_spec)

    def size(axes):
      return math.prod(mesh.shape[n] for n in axes or ())

    why_not = functools.partial(
      _why_not,
      h_BTD,
      law,
      embed_VD is not None,
      size(spec[0]),
      size(spec[1]),
      bool(vocab_axes),
      mesh,
    )
    by_kernel = implementation == "pallas" or (
      implementation is None
      and blocks.prefers_pallas(target_device_kind(), vocab_size, embed_VD is not None)
      and why_not() is None
    )
    if implementation == "pallas" and why_not() is not None:
      raise NotImplementedError(f"random_head implementation 'pallas': {why_not()}")
    note(
      "random_head",
      "pallas" if by_kernel else "xla",
      {"h": h_BTD},
      named=implementation is not None,
      refused=lambda: {"pallas": why_not()},
    )
    # A CPU multiplies matrices faster than stacks of them, so there sequences follow each other.
    one_by_one = (
      target_platform() == "cpu"
      and not any(spec)
      and not vocab_axes
      and mesh.size <= 1
      and not by_kernel
    )
    rows, length = 1 if one_by_one else max(1, B // size(spec[0])), max(1, T // size(spec[1]))
    room = (CPU_CHUNK_BYTES if one_by_one else CHUNK_BYTES) // (4 * rows * (D + length))
    chunk = chunk or max(MIN_CHUNK, room // MIN_CHUNK * MIN_CHUNK)
    options = (
      ("vocab_size", vocab_size),
      ("chunk", min(chunk, vocab_size)),
      ("law", law),
      ("probability", probability),
      ("kernel", by_kernel),
    )
    static = (spec, vocab_axes, size(vocab_axes), one_by_one, options)
    embed = None if embed_VD is None else split(embed_VD)
    log_z_BT = _log_z(split(h_BTD), seed_B2, segment_ids_BT, embed, noise_scale, static)
  if targets_BT is None:
    return log_z_BT
  seed = seed_B2[:, None] if segment_ids_BT is None else segment_seeds(seed_B2, segment_ids_BT)
  rows_BTD = effective(
    seed,
    targets_BT,
    lambda s, v: keyed_rows(s, v, D, law),
    None if embed_VD is None else jnp.take(embed_VD, targets_BT, axis=0, mode="clip"),
    probability,
    noise_scale,
  ).astype(h_BTD.dtype)
  target_BT = jnp.einsum("btd,btd->bt", h_BTD, rows_BTD, preferred_element_type=jnp.float32)
  return target_BT - log_z_BT, log_z_BT


def _why_not(
  h_BTD, law, with_embed: bool, batch_shards: int, time_shards: int, shared: bool, mesh
) -> str | None:
  """None, or the sentence that says why the TPU kernels cannot be used. shared: the vocabulary is."""
  B, T, D = h_BTD.shape
  if mesh.size > 1 and batch_shards == time_shards == 1 and not shared:
    return f"on a mesh of {mesh.size} devices it needs spec or vocab_spec: kernels are not partitioned by the compiler"
  if B % batch_shards or T % time_shards:
    return f"batch {B} and length {T} are not divisible by {batch_shards} and {time_shards} devices"
  return pallas_tpu.supports(
    T // time_shards, D, h_BTD.dtype, law, with_embed, target_device_kind()
  )


def random_logits(h_BTD, seed_B2, *, vocab_size: int, law: str = "gaussian", segment_ids_BT=None):
  """<h, E[v]> for every v, float32 (B, T, V); arguments as of `random_head`.

  One (B, C, D) stretch of rows at a time.
  """
  (B, T, D) = h_BTD.shape
  vocabulary = xla.Vocabulary(
    start=0,
    count=vocab_size,
    vocab_size=vocab_size,
    law=law,
    chunk=min(vocab_size, max(MIN_CHUNK, CHUNK_BYTES // (4 * B * (D + T)))),
  )
  return xla.logits(split(h_BTD), seed_B2, segment_ids_BT, vocabulary)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _log_z(h_BTD, seed_B2, segment_ids_BT, embed_VD, noise_scale, static):
  return _sums(h_BTD, seed_B2, segment_ids_BT, embed_VD, noise_scale, static, with_rows=False)[0]


def _sums(h_BTD, seed_B2, segment_ids_BT, embed_VD, noise_scale, static, *, with_rows):
  spec, vocab_axes, size, one_by_one, options = static
  if not any(spec) and not vocab_axes:
    vocabulary = xla.Vocabulary(
      start=0,
      count=dict(options)["vocab_size"],
      embed_VD=embed_VD,
      noise_scale=noise_scale,
      **dict(options),
    )
    return sharded.normalise(
      xla.forward(
        h_BTD, seed_B2, segment_ids_BT, vocabulary, with_rows=with_rows, one_by_one=one_by_one
      )
    )
  return sharded.forward(
    h_BTD,
    seed_B2,
    segment_ids_BT,
    embed_VD,
    noise_scale,
    spec=spec,
    vocab_axes=vocab_axes,
    size=size,
    with_rows=with_rows,
    options=dict(options),
  )


def _forward(h_BTD, seed_B2, segment_ids_BT, embed_VD, noise_scale, static):
  log_z_BT, mean_BTD = _sums(
    h_BTD, seed_B2, segment_ids_BT, embed_VD, noise_scale, static, with_rows=True
  )
  # The mean rows are all that h's gradient needs; h itself is kept for learned rows only.
  kept = (
    (h_BTD, seed_B2, segment_ids_BT, embed_VD, noise_scale, log_z_BT)
    if embed_VD is not None
    else None
  )
  return log_z_BT, (mean_BTD.astype(h_BTD.dtype), kept)


def _backward(static, residuals, g_BT):
  mean_BTD, kept = residuals
  dh_BTD = (g_BT[..., None] * mean_BTD).astype(mean_BTD.dtype)
  if kept is None:
    return dh_BTD, None, None, None, None
  h_BTD, seed_B2, segment_ids_BT, embed_VD, noise_scale, log_z_BT = kept
  spec, vocab_axes, size, one_by_one, options = static
  if not any(spec) and not vocab_axes:
    vocabulary = xla.Vocabulary(
      start=0,
      count=dict(options)["vocab_size"],
      embed_VD=embed_VD,
      noise_scale=noise_scale,
      **dict(options),
    )
    d_embed = xla.embed_gradient(
      h_BTD, seed_B2, segment_ids_BT, vocabulary, log_z_BT, g_BT, one_by_one=one_by_one
    )
  else:
    d_embed = sharded.embed_gradient(
      h_BTD,
      seed_B2,
      segment_ids_BT,
      embed_VD,
      noise_scale,
      log_z_BT,
      g_BT,
      spec=spec,
      vocab_axes=vocab_axes,
      size=size,
      options=dict(options),
    )
  return dh_BTD, None, None, d_embed.astype(embed_VD.dtype), None


_log_z.defvjp(_forward, _backward)
