"""The Mosaic GPU kernels of attention, interpreted on a CPU, against the definition; one or two
blocks of 128 queries.

The interpreter needs jax 0.12 and takes a quarter of a minute for forward and backward.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gpu
from jaxlm.kernels import mosaic_support
from jaxlm.kernels.attention import BucketBias, CoPE, KeyBias, LinearBias, attention

# Weights and their gradients are rounded to 8 bits, in the kernel before the division and in the
# definition too; the gradient of a number per query or key is a sum of differences of such terms.
BFLOAT16, FLOAT16 = 3e-2, 4e-3


def draw(seed, *shape, dtype=jnp.bfloat16):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def numbers(seed, *shape):
  return draw(seed, *shape, dtype=jnp.float32)


def compare(
  B, T, S, N, K, bias=None, H=64, F=64, dtype=jnp.bfloat16, tolerance=BFLOAT16, **options
):
  """o and the gradients of q, k, v and bias of "pallas_gpu", near those of "reference"."""
  q, k, v, do = (
    draw(i, *s, dtype=dtype)
    for i, s in enumerate([(B, T, N, H), (B, S, K, H), (B, S, K, F), (B, T, N, F)])
  )

  def run(implementation):
    o, pull = jax.vjp(
      lambda q, k, v, bias: attention(q, k, v, bias=bias, implementation=implementation, **options),
      *(q, k, v, bias),
    )
    return o, pull(do)

  with gpu.interpreted():
    got = run("pallas_gpu")
  for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(run("reference")), strict=True):
    assert g.dtype == w.dtype and g.shape == w.shape
    g, w = np.asarray(g, np.float64), np.asarray(w, np.float64)
    np.testing.assert_allclose(g, w, rtol=0, atol=tolerance * max(1.0, np.abs(w).max()))
  return got[0]


@pytest.mark.slow
def test_everything_at_once_with_shared_key_heads():
  ids = jnp.asarray([[1] * 50 + [2] * 40 + [0] * 10])
  bias = (
    BucketBias(numbers(9, 8, 2), False, 60),
    KeyBias(numbers(10, 1, 100, 2), numbers(11, 1, 100, 2)),
    KeyBias(None, numbers(12, 1, 100, 1)),
  )
  compare(
    1, 100, 100, 2, 1, bias, softcap=3.0, window=70, softmax1=True, scale=0.2, q_segment_ids_BT=ids
  )


@pytest.mark.slow
def test_other_numbers_of_keys_hidden_keys_and_a_row_without_any():
  valid = jnp.asarray([[1] * 150 + [0] * 50, [0] * 200], jnp.int32)
  bias = BucketBias(numbers(9, 8, 1), True, 60), KeyBias(None, 30 * jnp.abs(numbers(12, 2, 200, 1)))
  o = compare(2, 64, 200, 1, 1, bias, causal=False, softmax1=True, kv_segment_ids_BS=valid)
  assert not np.any(np.asarray(o[1], np.float32))


@pytest.mark.slow
def test_windows_to_both_sides_skip_tiles():
  compare(1, 300, 300, 1, 1, LinearBias(jnp.full(1, 0.1)), causal=False, window=20)


@pytest.mark.slow
@pytest.mark.parametrize("T", [1, 128, 129])
def test_every_length_around_the_block_in_float16(T):
  compare(1, T, T, 1, 1, dtype=jnp.float16, tolerance=FLOAT16)


@pytest.mark.slow
@pytest.mark.parametrize("F", [64, 128])
def test_wide_heads(F):
  compare(1, 128, 128, 1, 1, LinearBias(jnp.full(1, 0.1)), H=128, F=F)


def test_the_forward_pass():
  q = draw(0, 1, 100, 1, 64)
  with gpu.interpreted():
    got = attention(q, q, q, implementation="pallas_gpu")
  want = attention(q, q, q, implementation="reference")
  np.testing.assert_allclose(
    np.asarray(got, np.float32), np.asarray(want, np.float32), atol=BFLOAT16
  )


H100 = "NVIDIA H100 80GB HBM3"


@pytest.mark.parametrize(
  "kind, dtype, H, bias, said",
  [
    ("NVIDIA A100-SXM4-80GB", jnp.bfloat16, 64, None, "for Hopper GPUs (H100, H200) and this is NVIDIA A100"),
    (H100, jnp.float32, 64, None, "wants one of bfloat16, float16"),
    (H100, jnp.bfloat16, 96, None, "head sizes 96, 96 are not 64 or 128"),
    (H100, jnp.bfloat16, 64, CoPE(jnp.zeros((64, 8))), "CoPE depends on a whole row of keys"),
  ],
)  # fmt: skip
def test_what_is_not_covered_is_refused_with_a_sentence(monkeypatch, kind, dtype, H, bias, said):
  monkeypatch.setattr(mosaic_support, "too_old", lambda: None)
  q = jax.ShapeDtypeStruct((1, 8, 1, H), dtype)
  with gpu.traced_for(kind), pytest.raises(NotImplementedError) as error:
    jax.eval_shape(lambda q: attention(q, q, q, bias=bias, implementation="pallas_gpu"), q)
  assert said in str(error.value)


def test_an_old_jax_is_named_with_the_remedy(monkeypatch):
  monkeypatch.setattr(jax, "__version__", "0.10.2")
  with pytest.raises(
    NotImplementedError, match="jax 0.10.2 is older than 0.12.*install a newer jax"
  ):
    q = jnp.zeros((1, 8, 1, 64), jnp.bfloat16)
    attention(q, q, q, implementation="pallas_gpu")
