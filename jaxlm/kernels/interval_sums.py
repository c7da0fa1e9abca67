"""Sums of logarithms of decays over intervals, without subtracting one running sum from another.

Axes: Q, R two positions of one chunk, t a position between them; X any axes in front.

The decay from R to Q is exp(sum of log a over R < t <= Q). As a difference of running sums s_Q -
s_R it loses all its digits once one token before R forgets strongly: s is then large, and the
difference small. Here every interval is added up from its own terms, all of one sign: within blocks
of BLOCK positions by a product with a constant mask, and across blocks as the rest of R's block +
whole blocks + the part of Q's block. Work per position stays linear in the chunk. The gradient, the
sum of pairs that span t (R < t <= Q), is made of the same pieces: a pair that does not span t never
enters.
"""

import jax
import jax.numpy as jnp
import numpy as np

BLOCK = 32
#: exp of it is 0 in float32 (below -104), and so is exp of a sum with it in it. Finite, so that 0 x
#: FLOOR is 0.
FLOOR = -1000.0


def padded(chunk: int) -> int:
  """The smallest chunk of at least `chunk` positions that these functions take."""
  return chunk if chunk <= BLOCK else -(-chunk // BLOCK) * BLOCK


def _product(v, mask):
  return jnp.einsum(
    "...a,ab->...b", v, jnp.asarray(mask, jnp.float32), precision=jax.lax.Precision.HIGHEST
  )


def prefix_sums(v_XQ):
  """sum_{t <= Q} v_t."""
  return _product(v_XQ, np.tri(v_XQ.shape[-1]).T)


def exclusive_prefix_sums(v_XQ):
  """sum_{t < Q} v_t."""
  return _product(v_XQ, np.tri(v_XQ.shape[-1], k=-1).T)


def suffix_sums(v_XQ, *, inclusive: bool):
  """sum_{t >= Q} v_t, or of t > Q."""
  return _product(v_XQ, np.tri(v_XQ.shape[-1], k=0 if inclusive else -1))


def _spans(size: int, transposed: bool) -> np.ndarray:
  """(t, Q, R), or (t, R, Q): 1 where R < t <= Q."""
  t, q, r = np.ogrid[:size, :size, :size]
  spans = ((r < t) & (t <= q)).astype(np.float32)
  return spans.swapaxes(1, 2) if transposed else spans


def _whole_blocks(n: int, transposed: bool) -> np.ndarray:
  """(m, Q's, R's), or (m, R's, Q's): 1 for the blocks m between those of R and Q."""
  m, q, r = np.ogrid[:n, :n, :n]
  whole = ((r < m) & (m < q)).astype(np.float32)
  return whole.swapaxes(1, 2) if transposed else whole


def pair_sums(v_XQ, *, transposed: bool = False):
  """sum_{R < t <= Q} v_t as (X, Q, R), 0 where Q <= R. transposed: as (X, R, Q)."""
  *X, size = v_XQ.shape
  s = min(size, BLOCK)
  n = size // s
  v_XNS = v_XQ.reshape(*X, n, s)
  same = _product(v_XNS, _spans(s, transposed).reshape(s, -1)).reshape(*X, n, s, s)
  if n == 1:
    return same.reshape(*X, size, size)
  between = _product(jnp.sum(v_XNS, -1), _whole_blocks(n, transposed).reshape(n, -1)).reshape(
    *X, n, 1, n, 1
  )
  later, earlier = prefix_sums(v_XNS), suffix_sums(v_XNS, inclusive=False)
  first, second = (earlier, later) if transposed else (later, earlier)
  across = first[..., None, None] + between + second[..., None, None, :, :]
  order = np.sign(np.arange(n)[:, None] - np.arange(n)).reshape(n, 1, n, 1) * (
    -1 if transposed else 1
  )
  return jnp.where(order > 0, across, jnp.where(order == 0, same[..., None, :], 0.0)).reshape(
    *X, size, size
  )


def spanning_sums(w_XQR, *, transposed: bool = False):
  """sum_{R < t <= Q} w_{Q,R} as (X, t): the transpose of `pair_sums`. transposed: w is (X, R, Q)."""
  *X, size, _ = w_XQR.shape
  s = min(size, BLOCK)
  n = size // s
  spans = _spans(s, transposed).reshape(s, -1).T
  if n == 1:
    return _product(w_XQR.reshape(*X, s * s), spans)
  w = w_XQR.reshape(*X, n, s, n, s)
  out = _product(
    jnp.stack([w[..., i, :, i, :] for i in range(n)], axis=-3).reshape(*X, n, s * s), spans
  )
  rows, columns = (
    jnp.sum(w, -1),
    jnp.sum(w, -3),
  )  # (X, n, s, n) and (X, n, n, s): over the other's block
  below = np.tri(n, k=-1, dtype=np.float32)  # the first index's block is the later one
  of_rows = jnp.einsum("...asb,ab->...as", rows, below.T if transposed else below)
  of_columns = jnp.einsum("...abs,ab->...bs", columns, below.T if transposed else below)
  later, earlier = (of_columns, of_rows) if transposed else (of_rows, of_columns)
  whole = _product(
    jnp.sum(rows, -2).reshape(*X, n * n), _whole_blocks(n, transposed).reshape(n, -1).T
  )
  out += suffix_sums(later, inclusive=True) + exclusive_prefix_sums(earlier) + whole[..., None]
  return out.reshape(*X, size)
