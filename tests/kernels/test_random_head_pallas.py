"""The TPU kernels of random_head, interpreted: rows against the generator, results against the
definition in float64.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interpreter import every_detector
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxlm.kernels import pallas_support
from jaxlm.kernels.random_head import (
  blocks,
  keyed_rows,
  pallas_tpu,
  random_head,
  random_mask,
  segment_seeds,
)

D = 256
SEEDS = jnp.asarray([[1, 2], [4_000_000_000, 3]], jnp.uint32)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
  monkeypatch.setitem(blocks.TILES, "", blocks.Tiles(words=128, step=64, positions=128))


def inputs(T, V, dtype=jnp.float32):
  rng = np.random.default_rng(0)

  def draw(*shape):
    return rng.normal(size=shape)

  return (
    jnp.asarray(draw(2, T, D) / D**0.5, dtype),
    jnp.asarray(draw(V, D), dtype),
    jnp.asarray(rng.integers(0, V, (2, T)), jnp.int32),
    jnp.asarray(draw(2, T), jnp.float32),
  )


def definition(h, embed, targets, g, V, segments=None, probability=1.0, scale=1.0):
  """(log_prob, log_z, dh, dembed) of sum g log_prob + log_z / 10, in float64 from the float32 rows
  rounded to h's dtype.
  """
  B, T = targets.shape
  seed = (
    jnp.broadcast_to(SEEDS[:, None], (B, T, 2))
    if segments is None
    else segment_seeds(SEEDS, segments)
  )
  rows = np.asarray(
    keyed_rows(seed[:, :, None], jnp.arange(V)[None, None], D).astype(h.dtype), np.float64
  )
  mask = np.ones((B, T, V, 1), bool)
  if embed is not None:
    mask = np.asarray(random_mask(seed[:, :, None], jnp.arange(V)[None, None], probability))[
      ..., None
    ]
    rows = np.where(mask, scale * rows, np.asarray(embed, np.float64)[None, None])
  h, g = np.asarray(h, np.float64), np.asarray(g, np.float64)
  z = np.einsum("btd,btvd->btv", h, rows)
  log_z = np.log(np.exp(z - z.max(-1, keepdims=True)).sum(-1)) + z.max(-1)
  log_prob = np.take_along_axis(z, np.asarray(targets)[..., None], -1)[..., 0] - log_z
  dz = (0.1 - g)[..., None] * np.exp(z - log_z[..., None])
  dz += g[..., None] * (np.asarray(targets)[..., None] == np.arange(V))
  dembed = np.einsum("btv,btd->vd", np.where(mask[..., 0], 0, dz), h)
  return [log_prob, log_z, np.einsum("btv,btvd->btd", dz, rows)] + (
    [] if embed is None else [dembed]
  )


def by_kernel(h, embed, targets, g, V, segments=None, probability=1.0, scale=1.0, **options):
  def loss(h, embed):
    log_prob, log_z = random_head(
      h,
      SEEDS,
      targets,
      vocab_size=V,
      embed_VD=embed,
      segment_ids_BT=segments,
      probability=probability,
      noise_scale=scale,
      implementation="pallas",
      **options,
    )
    return jnp.sum(g * log_prob) + 0.1 * jnp.sum(log_z), (log_prob, log_z)

  (_, out), grads = jax.jit(
    jax.value_and_grad(loss, (0,) if embed is None else (0, 1), has_aux=True)
  )(h, embed)
  return [*out, *grads]


def check(got, want, tolerance):
  for g, w in zip(got, want, strict=True):
    np.testing.assert_allclose(
      np.asarray(g, np.float64), w, atol=tolerance * max(1.0, np.abs(w).max())
    )


# Positions and words beside a tile of 128: one of each, a tile less, one and more; an odd and an
# even number of tiles.
@pytest.mark.parametrize(
  "T,V,learned,packed", [(1, 1, False, False), (127, 129, False, True), (130, 257, True, False)]
)
def test_the_kernels_are_the_definition_with_their_gradients(T, V, learned, packed):
  h, embed, targets, g = inputs(T, V)
  options = dict(probability=0.4, scale=1.5) if learned else {}
  if packed:
    options["segments"] = jnp.asarray(
      [[1] * 25 + [2] * (T - 25), [1] * 30 + [0] * (T - 30)], jnp.int32
    )
  with pallas_support.interpreted():
    got = by_kernel(h, embed if learned else None, targets, g, V, **options)
  # Float32: 256 products of size 1 / 16, their exponentials over 257 words; rows differ by 2^-22
  # between compilers.
  check(got, definition(h, embed if learned else None, targets, g, V, **options), 2e-5)


def test_rows_of_a_tile_are_the_generators():
  h = jnp.tile(jnp.eye(D)[:, :], (2, 1, 1))[:, :128]  # logits are channels of the rows
  with pallas_support.interpreted():
    log_z = random_head(h, SEEDS, vocab_size=1, implementation="pallas")
  want = keyed_rows(SEEDS, jnp.zeros(2, jnp.int32), D)[:, :128]
  np.testing.assert_allclose(log_z, want, atol=1e-6)  # one word: its logit is the partition


def test_bfloat16_rows_are_rounded_as_the_definition_rounds_them():
  h, _, targets, g = inputs(130, 200, jnp.bfloat16)
  with pallas_support.interpreted():
    log_prob, log_z, dh = by_kernel(h, None, targets, g, 200)
  want = definition(h, None, targets, g, 200)
  assert (log_z.dtype, dh.dtype) == (jnp.float32, jnp.bfloat16)
  # A row's element that lies between two bfloat16 numbers may go either way: 2^-9 of one product in
  # 256.
  check([log_prob, log_z], want[:2], 1e-4)
  check([dh], want[2:], 2**-7)


@pytest.mark.slow
def test_two_cores_neither_race_nor_read_what_is_not_there():
  h, embed, targets, g = inputs(40, 150)
  with every_detector():
    got = by_kernel(h, embed, targets, g, 150, None, 0.4, 1.5)
    jax.block_until_ready(got)
  check(got, definition(h, embed, targets, g, 150, None, 0.4, 1.5), 2e-5)


def test_on_a_mesh_the_vocabulary_may_be_shared():
  h, embed, targets, g = inputs(6, 150)
  with jax.set_mesh(
    jax.make_mesh((2, 2, 2), ("data", "tensor", "idle"), axis_types=(AxisType.Auto,) * 3)
  ):
    with pallas_support.interpreted():
      got = by_kernel(
        h, embed, targets, g, 150, None, 0.4, 1.5, spec=P("data", None), vocab_spec="tensor"
      )
  check(got, definition(h, embed, targets, g, 150, None, 0.4, 1.5), 2e-5)


def test_what_is_not_supported_is_refused_with_the_reason():
  h, _, _, _ = inputs(4, 9)

  def run(h=h, **options):
    return random_head(h, SEEDS, vocab_size=9, implementation="pallas", **options)

  with pytest.raises(
    NotImplementedError,
    match='trace is for cpu and the kernel needs a TPU; use implementation="xla"',
  ):
    run()
  with pallas_support.interpreted():
    with pytest.raises(NotImplementedError, match="law 'rademacher'"):
      run(law="rademacher")
    with pytest.raises(NotImplementedError, match="d_model 96 is not a multiple of 256"):
      run(h[..., :96])
    with jax.set_mesh(jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))):
      with pytest.raises(NotImplementedError, match="mesh of 8 devices it needs spec"):
        run()
      with pytest.raises(
        NotImplementedError, match="batch 2 and length 4 are not divisible by 8 and 1"
      ):
        run(spec=P("data", None))
    assert "needs" in pallas_tpu.supports(
      2**20, 1024, jnp.dtype(jnp.bfloat16), "gaussian", False, "TPU v5"
    )
