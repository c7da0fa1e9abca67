"""Keyed rows and the softmax over them, on small arrays. Axes: B batch, T time, D d_model, V
vocabulary.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxlm.kernels.random_head import bits, keyed_rows, random_head, random_mask

B, T, D, V = 4, 6, 16, 77


def seeds(n=B, start=0):
  return jnp.asarray(np.stack([np.full(n, 7), np.arange(start, start + n)], 1), jnp.uint32)


def hidden():
  return jax.random.normal(jax.random.key(1), (B, T, D)) * 0.5


def targets():
  return jax.random.randint(jax.random.key(2), (B, T), 0, V)


SEGMENTS = jnp.asarray(
  np.array([[1, 1, 2, 2, 3, 3], [1] * 6, [1, 1, 1, 2, 2, 0], [1, 2, 3, 3, 3, 3]]), jnp.int32
)


def value_and_grads(segments, learned, **options):
  embed = jax.random.normal(jax.random.key(3), (V, D)) if learned else None
  kwargs = dict(
    vocab_size=V,
    segment_ids_BT=segments,
    probability=0.4 if learned else 1.0,
    noise_scale=1.5,
    **options,
  )

  def f(h, embed):
    log_prob, log_z = random_head(h, seeds(), targets(), embed_VD=embed, **kwargs)
    return jnp.sum(log_prob * jnp.arange(T)[None] + 0.1 * log_z**2), (log_prob, log_z)

  argnums = (0, 1) if learned else (0,)
  (_, out), grads = jax.jit(jax.value_and_grad(f, argnums, has_aux=True))(hidden(), embed)
  return (*out, *grads)


@pytest.mark.parametrize("learned", [False, True], ids=["random", "semi"])
@pytest.mark.parametrize("segments", [None, SEGMENTS], ids=["whole", "packed"])
def test_the_streaming_softmax_is_the_definition_with_its_gradients(segments, learned):
  want = value_and_grads(segments, learned, implementation="reference")
  got = value_and_grads(segments, learned, chunk=20)
  for a, b in zip(got, want):
    np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("learned", [False, True], ids=["random", "semi"])
def test_a_vocabulary_shared_by_devices_gives_the_same_softmax_and_gradients(learned):
  want = value_and_grads(SEGMENTS, learned, chunk=20)
  with jax.set_mesh(
    jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
  ):
    got = value_and_grads(SEGMENTS, learned, chunk=8, spec=P("data", None), vocab_spec="tensor")
  for a, b in zip(got, want):
    np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("law", ["gaussian", "rademacher"])
def test_rows_are_bitwise_the_same_however_they_are_cut_or_sharded(law):
  rows = jax.jit(lambda s, v: keyed_rows(s[:, None], v[None], D, law))
  whole = np.asarray(rows(seeds(8), jnp.arange(64)))
  for chunk in (1, 7, 13):
    parts = [
      np.asarray(rows(seeds(8), jnp.arange(a, min(a + chunk, 64)))) for a in range(0, 64, chunk)[:3]
    ]
    got = np.concatenate(parts, 1)
    np.testing.assert_array_equal(got, whole[:, : got.shape[1]])
  for shape, spec in (
    ((8, 1), P("data")),
    ((1, 8), P(None, "tensor")),
    ((2, 4), P("data", "tensor")),
  ):
    mesh = jax.make_mesh(shape, ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    shardings = [jax.sharding.NamedSharding(mesh, p) for p in (P(spec[0]), P(*spec[1:]), spec)]
    with jax.set_mesh(mesh):
      args = jax.device_put(
        (np.asarray(seeds(8)), np.arange(64, dtype=np.int32)), tuple(shardings[:2])
      )
      got = jax.jit(
        lambda s, v: keyed_rows(s[:, None], v[None], D, law), out_shardings=shardings[2]
      )(*args)
    np.testing.assert_array_equal(np.asarray(got), whole)


def test_bits_are_random123s_and_jaxs_own():
  assert [int(x) for x in bits(jnp.zeros(2, jnp.uint32), 0, 0)] == [0x6B200159, 0x99BA4EFE]
  seed = jnp.asarray([0x13198A2E, 0x03707344], jnp.uint32)
  assert [int(x) for x in bits(seed, jnp.uint32(0x243F6A88), jnp.uint32(0x85A308D3))] == [
    0xC4923A9C,
    0x483DF7A0,
  ]
  from jax.extend.random import threefry_2x32

  mine = jnp.stack(bits(seed, jnp.arange(3), jnp.arange(3)))
  np.testing.assert_array_equal(
    mine.reshape(-1), threefry_2x32(seed, jnp.tile(jnp.arange(3, dtype=jnp.uint32), 2))
  )


@pytest.mark.parametrize("law, kurtosis", [("gaussian", 3.0), ("rademacher", 1.0)])
def test_rows_have_their_law_and_neighbours_are_uncorrelated(law, kurtosis):
  rows = np.asarray(
    jax.jit(lambda: keyed_rows(seeds(8)[:, None], jnp.arange(2048)[None], 64, law))(), np.float64
  )
  n = rows.size  # 2^20 values
  assert abs(rows.mean()) < 4 / n**0.5
  assert abs(rows.var() - 1) < 4 * 2**0.5 / n**0.5
  assert abs((rows**4).mean() - kurtosis) < 0.05
  assert abs((rows**2).sum(-1).mean() - 64) < 4 * (2 * 64 / (n / 64)) ** 0.5
  for a, b in ((rows[1:], rows[:-1]), (rows[:, 1:], rows[:, :-1]), (rows[..., 1:], rows[..., :-1])):
    assert abs((a * b).mean()) < 4 / a.size**0.5  # seeds, ids, channels


def test_the_mask_has_its_probability_and_is_not_a_rows_number():
  mask = np.asarray(random_mask(seeds(50)[:, None], jnp.arange(2000)[None], 0.2))
  assert abs(mask.mean() - 0.2) < 4 * (0.16 / mask.size) ** 0.5
  rows = np.asarray(keyed_rows(seeds(50)[:, None], jnp.arange(2000)[None], 2))
  assert abs(np.corrcoef(mask.ravel(), rows[..., 0].ravel())[0, 1]) < 4 / mask.size**0.5


def test_nothing_of_the_tables_size_is_allocated():
  big, chunk = 4096, 128

  def f(h):
    return jnp.sum(random_head(h, seeds(), targets(), vocab_size=big, chunk=chunk)[0])

  compiled = jax.jit(jax.grad(f)).lower(hidden()).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < 4 * B * big * D / 4


def test_wrong_shapes_and_names_are_refused():
  with pytest.raises(ValueError, match="even D"):
    random_head(hidden()[..., :3], seeds(), vocab_size=V)
  with pytest.raises(ValueError, match="uniform"):
    random_head(hidden(), seeds(), vocab_size=V, law="uniform")
  with pytest.raises(NotImplementedError, match="cuda"):
    random_head(hidden(), seeds(), vocab_size=V, implementation="cuda")
