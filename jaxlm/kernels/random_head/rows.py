"""Keyed rows E[v] = G(seed, v): any device, chunk or restart generates the same bits
(docs/specs/lexinvariant.md, 5).

Axes: ... any, D d_model, P pairs of channels. Seeds are uint32 (..., 2), (high, low) words.
"""

import math

import jax.numpy as jnp

from jaxlm.kernels.phase import sincos

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA
LAWS = ("gaussian", "rademacher")

# Second counter words that no row uses: rows count from 0, these from the top.
MASK, SEGMENT, TABLE = 0xFFFFFFFF, 0xFFFFFFFE, 0xFFFFFFFD


def threefry(k0, k1, c0, c1):
  """Threefry-2x32-20 of uint32 key and counter words, broadcast together."""
  keys = (k0, k1, k0 ^ k1 ^ jnp.uint32(PARITY))
  x0, x1 = c0 + k0, c1 + k1
  for i in range(5):
    for r in ROTATIONS[i % 2]:
      x0 = x0 + x1
      x1 = x0 ^ ((x1 << r) | (x1 >> (32 - r)))
    x0 = x0 + keys[(i + 1) % 3]
    x1 = x1 + (keys[(i + 2) % 3] + jnp.uint32(i + 1))  # two numbers first, not two passes over x1
  return x0, x1


def bits(seed, token, second):
  """The two uint32 words of counter (token, second). seed: (..., 2); token and second: ints that
  broadcast with seed's leading axes."""

  def to_u32(x):
    return jnp.asarray(x).astype(jnp.uint32)

  seed, token, second = to_u32(seed), to_u32(token), to_u32(second)
  return threefry(seed[..., 0], seed[..., 1], token, second)


def fold_in(seed, number, domain: int):
  """A new seed for each number: (..., 2). Domains SEGMENT and TABLE keep them apart from rows;
  number 0 is the seed itself."""
  number = jnp.asarray(number).astype(jnp.uint32)
  new = jnp.stack(jnp.broadcast_arrays(*bits(seed, number, jnp.uint32(domain))), axis=-1)
  return jnp.where((number == 0)[..., None], seed.astype(jnp.uint32), new)


def gaussian_pairs(r0, r1):
  """(r cos a, r sin a) of two uint32 words, r = sqrt(-2 ln u1), a = 2 pi u2: two independent normal
  numbers, float32.
  """

  # By way of int32: kernel compilers know no other conversion, and at most 24 bits are left.
  def to_float(bits):
    return bits.astype(jnp.int32).astype(jnp.float32)

  # 23 bits and a half: exact in float32, never 0 or 1.
  u1 = (to_float(r0 >> 9) + 0.5) * 2.0**-23
  u2 = to_float(r1 >> 8) * 2.0**-24
  radius = jnp.sqrt(-2.0 * jnp.log(u1))
  sin, cos = sincos((2 * math.pi) * jnp.where(u2 > 0.5, u2 - 1.0, u2))
  return radius * cos, radius * sin


def halves(seed, token, d_model: int, law: str = "gaussian"):
  """Rows with even channels first, then odd: float32 (..., D).

  Nothing is interleaved, so that nothing is copied.
  """
  seed, token = seed[..., None, :], jnp.asarray(token)[..., None]
  if law == "gaussian":
    pair_P = jnp.arange(d_model // 2, dtype=jnp.uint32)
    r0, r1 = bits(seed, token, pair_P.reshape((1,) * (token.ndim - 1) + (-1,)))
    return jnp.concatenate(gaussian_pairs(r0, r1), axis=-1)
  word_W = jnp.arange(-(-d_model // 64), dtype=jnp.uint32)
  words = jnp.stack(bits(seed, token, word_W.reshape((1,) * (token.ndim - 1) + (-1,))), axis=-1)
  shift = jnp.arange(32, dtype=jnp.uint32).reshape((1,) * words.ndim + (-1,))
  sign = 1.0 - 2.0 * ((words[..., None] >> shift) & 1).astype(jnp.float32)
  return split(sign.reshape(*sign.shape[:-3], -1)[..., :d_model])


def split(x):
  """Even channels first, then odd: the order of `halves`."""
  return jnp.concatenate([x[..., 0::2], x[..., 1::2]], axis=-1)


def join(x):
  """The inverse of `split`."""
  half = x.shape[-1] // 2
  return jnp.stack([x[..., :half], x[..., half:]], axis=-1).reshape(x.shape)


def keyed_rows(seed, token, d_model: int, law: str = "gaussian"):
  """E[2j] = r_j cos a_j, E[2j+1] = r_j sin a_j, r = sqrt(-2 ln u1), a = 2 pi u2; or +-1 (law
  "rademacher").

  seed: uint32 (..., 2); token: int (...), broadcast against seed's leading axes. float32 (..., D),
  variance 1.
  """
  if law not in LAWS:
    raise ValueError(f"row law {law!r}: known are {', '.join(LAWS)}")
  if d_model % 2:
    raise ValueError(f"d_model = {d_model}: rows are made of pairs, so it must be even")
  token = jnp.broadcast_to(
    jnp.asarray(token), jnp.broadcast_shapes(jnp.shape(token), seed.shape[:-1])
  )
  return join(halves(seed, token, d_model, law))


def random_mask(seed, token, probability: float):
  """True with `probability`, one draw per (seed, token): which types have a random row (spec 6)."""
  r0, _ = bits(seed, token, jnp.uint32(MASK))
  return (r0 >> 8).astype(jnp.float32) * 2.0**-24 < probability
