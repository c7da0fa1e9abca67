"""LaCT for chunk-autoregressive video: attention inside chunks of frames, fast weights from clean
chunk to clean chunk.

A sequence is [noise_1 x R, clean_1, noise_2 x R, clean_2, ..., noise_K x R]; the last clean chunk
is not needed.

Axes: B batch, T tokens, J chunks (K of the schedule), R noise copies, C tokens of a chunk, D
d_model, N attention heads, H their width, M fast-weight heads, G their width, P rotated pairs of a
head.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.config import ConfigError, checked
from jaxlm.kernels.attention import attention
from jaxlm.kernels.fast_weight_chunk import Rule, fast_weight_chunk, interleaved_video
from jaxlm.kernels.phase import rotate
from jaxlm.layers.fast_weights import PER_HEAD
from jaxlm.layers.lact import unit
from jaxlm.layers.norms import rms_norm
from jaxlm.layers.positions.rope import ladder
from jaxlm.layers.weights import normal, ones, weights, zeros
from jaxlm.ranges import Count, Natural, NonNegative, Positive


@dataclasses.dataclass(frozen=True)
@checked
class VideoLaCTConfig:
  """chunk: tokens of a chunk (3 latent frames of 1,560 in the paper). num_repeats: noise copies of
  each chunk.

  num_cached: tokens of the previous clean chunk that a noise copy attends to; None = all.
  qk_eps: from memory, unverified [M]; docs/specs/lact.md, section 10, does not give it.
  """

  num_heads: Count = 12
  chunk: Count = 4680
  num_repeats: Count = 1
  num_cached: Natural | None = None
  num_fast_heads: Count = 2
  expansion: Positive = 2.0
  base_rate: Positive = 0.001
  qk_eps: NonNegative = 1e-6

  def __post_init__(self):
    if self.num_heads % self.num_fast_heads:
      raise ConfigError(
        f"num_fast_heads = {self.num_fast_heads} does not divide num_heads = {self.num_heads}"
      )
    if self.num_cached is not None and not 0 <= self.num_cached <= self.chunk:
      raise ConfigError(f"num_cached = {self.num_cached}: wanted 0 to chunk = {self.chunk} tokens")

  def build(self, d_model: int, dtype: str, name=None) -> nn.Module:
    if d_model % self.num_heads:
      raise ConfigError(f"d_model = {d_model} is not divisible by num_heads = {self.num_heads}")
    return VideoLaCT(self, d_model, dtype, name=name)


def num_chunks(length: int, chunk: int, num_repeats: int) -> int:
  """K of a sequence of K (R + 1) - 1 chunks; another length is an error."""
  K, left = divmod(length + chunk, chunk * (num_repeats + 1))
  if left or K < 1:
    raise ValueError(
      f"{length} tokens are not K ({num_repeats} + 1) - 1 chunks of {chunk}: the sequence is noise x "
      f"{num_repeats}, clean, ..., noise x {num_repeats}"
    )
  return K


def chunk_attention(
  q_BTNH, k_BTNH, v_BTNH, *, chunk: int, num_repeats: int = 1, num_cached: int | None = None
):
  """Bidirectional softmax within a chunk: clean sees itself, a noise copy sees itself and the clean
  chunk before it.
  """
  B, T, N, H = q_BTNH.shape
  R, cached = num_repeats, chunk if num_cached is None else num_cached
  K = num_chunks(T, chunk, R)

  # The missing last clean chunk is filled with zeros and thrown away.
  def cut(x):
    return jnp.pad(x, ((0, 0), (0, chunk), (0, 0), (0, 0))).reshape(B, K, R + 1, chunk, N, H)

  q, k, v = cut(q_BTNH), cut(k_BTNH), cut(v_BTNH)

  def fold(x):
    return x.reshape(-1, *x.shape[-3:])

  clean = attention(*(fold(x[:, :, R]) for x in (q, k, v)), causal=False).reshape(
    B, K, 1, chunk, N, H
  )

  def with_cache(x):
    before = jnp.pad(
      x[:, :-1, R, chunk - cached :], ((0, 0), (1, 0), (0, 0), (0, 0), (0, 0))
    )  # none before the first
    before = jnp.broadcast_to(before[:, :, None], (B, K, R, cached, N, H))
    return fold(jnp.concatenate([before, x[:, :, :R]], 3))

  seen = jnp.ones((B, K, R, cached + chunk), jnp.int32).at[:, 0, :, :cached].set(0)
  noise = attention(
    fold(q[:, :, :R]),
    with_cache(k),
    with_cache(v),
    causal=False,
    kv_segment_ids_BS=seen.reshape(-1, cached + chunk),
  ).reshape(B, K, R, chunk, N, H)
  return jnp.concatenate([noise, clean], 2).reshape(B, T + chunk, N, H)[:, :T]


def rotation_3d(
  shape: tuple[int, int, int], head_dim: int, *, start_frame: int = 0, theta: float = 10000.0
):
  """(cos, sin) float32 (1, frames * rows * columns, 1, P): pairs shared out to frame, row and
  column as in Wan.

  docs/specs/lact.md, section 10, says "rotary 3-D of Wan" and no more: the split of the pairs,
  their interleaved layout and theta are from memory, unverified [M].
  """
  third = 2 * (head_dim // 6)
  widths = (head_dim - 2 * third, third, third)
  axes = np.meshgrid(
    start_frame + np.arange(shape[0]), np.arange(shape[1]), np.arange(shape[2]), indexing="ij"
  )
  phase = np.concatenate(
    [axis.reshape(-1, 1) * ladder(theta, width)[None] for axis, width in zip(axes, widths)], -1
  )
  return jnp.asarray(np.cos(phase), jnp.float32)[None, :, None], jnp.asarray(
    np.sin(phase), jnp.float32
  )[None, :, None]


class VideoLaCT(nn.Module):
  """y = (chunk attention + gate * norm(f_W(q'))) w_o + b. Starts as pure attention: the gate is
  silu(0) = 0.
  """

  cfg: VideoLaCTConfig
  d_model: int
  dtype: str

  @nn.compact
  def __call__(self, x_BTD, cos_BT1P, sin_BT1P):
    """cos, sin: of every token of the sequence (a noise copy has the positions of its clean chunk)."""
    cfg, w, D = self.cfg, weights(self, self.dtype), self.d_model
    N, M = cfg.num_heads, cfg.num_fast_heads
    H, G = D // N, D // M

    def flat(name):
      return weights(self)(name, (D,), ("embed",), init=ones if name.startswith("scale") else zeros)

    def project(x):
      return (
        jnp.einsum("btd,de->bte", x_BTD, w(f"w_{x}", (D, D), ("embed", "heads")))
        + flat(f"b_{x}")[None, None]
      )

    q_BTD, k_BTD = (rms_norm(project(x), flat(f"scale_{x}_norm"), cfg.qk_eps) for x in "qk")
    v_BTD = project("v")

    def turn(x):
      return rotate(x.reshape(*x.shape[:2], N, H), cos_BT1P, sin_BT1P, layout="interleaved")

    o_BTNH = chunk_attention(
      turn(q_BTD),
      turn(k_BTD),
      v_BTD.reshape(*v_BTD.shape[:2], N, H),
      chunk=cfg.chunk,
      num_repeats=cfg.num_repeats,
      num_cached=cfg.num_cached,
    )

    # Rotary comes before the L2 norm here, and there is no silu.
    def by_head(x):
      return jnp.moveaxis(x.reshape(*x.shape[:2], M, G), 2, 1)

    def affine(x, y):
      return y * flat(f"scale_{x}")[None, None] + flat(f"offset_{x}")[None, None]

    fast_q, fast_k = (unit(by_head(turn(affine(x, y)))) for x, y in (("q", q_BTD), ("k", k_BTD)))
    eta = jnp.einsum(
      "btd,dmj->bmtj", x_BTD, w("w_rate", (D, M, 3), ("embed", "heads", None))
    ).astype(jnp.float32)
    eta += weights(self)("b_rate", (M, 3), ("heads", None), init=zeros)[None, :, None]
    eta = jax.nn.softplus(eta + math.log(math.expm1(cfg.base_rate)))
    F, fast = int(G * cfg.expansion), weights(self)
    initial = tuple(
      jnp.broadcast_to(
        fast(n, s, ("heads", None, "embed"), init=normal(s[-1] ** -0.5), role=PER_HEAD)[None],
        (x_BTD.shape[0], *s),
      )
      for n, s in (("w0", (M, F, G)), ("w1", (M, G, F)), ("w2", (M, F, G)))
    )
    schedule = interleaved_video(
      cfg.chunk, cfg.num_repeats, num_chunks(x_BTD.shape[1], cfg.chunk, cfg.num_repeats)
    )
    low = None if self.dtype == "float32" else self.dtype
    t_BMTG, _ = fast_weight_chunk(
      initial,
      fast_q,
      fast_k,
      by_head(v_BTD),
      tuple(eta[..., j, None] for j in range(3)),
      schedule=schedule,
      rule=Rule(dtype=low),
    )
    t_BTMG = rms_norm(
      jnp.moveaxis(t_BMTG, 1, 2), fast("scale_fast", (G,), (None,), init=ones), 1e-5
    )
    gate_BT1 = jax.nn.silu(
      jnp.einsum("btd,de->bte", x_BTD, w("w_gate", (D, 1), ("embed", None), init=zeros))
      + w("b_gate", (1,), (None,), init=zeros)[None, None]
    )
    y_BTD = o_BTNH.reshape(x_BTD.shape) + (t_BTMG.reshape(x_BTD.shape) * gate_BT1).astype(
      o_BTNH.dtype
    )
    return (
      jnp.einsum("bte,ed->btd", y_BTD, w("w_o", (D, D), ("heads", "embed")))
      + flat("b_o")[None, None]
    )
