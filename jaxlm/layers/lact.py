"""LaCT, the token mixer of "Test-Time Training Done Right" (arXiv 2505.23884): window attention +
fast weights.

Axes: B batch, T time, D d_model, N attention heads, H attention head width, M fast-weight heads, G
their width.
"""

import dataclasses
from typing import Annotated, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.config import ConfigError, checked
from jaxlm.layers.attend import attend
from jaxlm.layers.cache import Keys, KVCache, empty_cache, written_and_seen
from jaxlm.layers.fast_weights import FastWeightConfig, Memory, MemoryState
from jaxlm.layers.mixer import Context, Mixer, given_or_plain
from jaxlm.layers.norms import rms_norm
from jaxlm.layers.positions import POSITIONS, Heads, NoPosition
from jaxlm.layers.positions.rope import RoPE
from jaxlm.layers.rewind import trail
from jaxlm.layers.taps import tap
from jaxlm.layers.weights import ones, weights, zeros
from jaxlm.ranges import Count

EPS = 1e-5  # of q and k norms, of the L2 norm (outside the root) and of the memory's output norm


@dataclasses.dataclass(frozen=True)
@checked
class LaCTConfig(Mixer):
  """num_heads, window: of the attention; a query sees itself and the window - 1 keys before it,
  None = all.

  fast: the memory; its heads are groups of attention heads. With window >= fast.chunk every earlier
  token is seen by
    one of the two.
  position: of the attention, default the model's. rotate_fast: turn the memory's q and k as well
  (RoPE only).
  qk_norm: RMS norm of q and k over the full width. silu: on which of the memory's q, k, v.
  gate: a learned scale silu(x w + b) per token and head on the memory's output; it starts near 0.
  """

  num_heads: Count
  window: Count | None
  fast: FastWeightConfig = FastWeightConfig()
  position: Annotated[object | None, POSITIONS] = None
  rotate_fast: bool = True
  use_bias: bool = False  # of q, k, v
  qk_norm: bool = False
  silu: Literal["qkv", "qk", "none"] = "qkv"
  gate: bool = True
  implementation: Literal["reference", "xla", "cudnn", "splash", "pallas", "pallas_gpu"] | None = (
    None  # of the attention kernel; None = best for the platform
  )

  def __post_init__(self):
    if self.num_heads % self.fast.num_heads:
      raise ConfigError(
        f"fast.num_heads = {self.fast.num_heads} does not divide num_heads = {self.num_heads}: a fast-weight "
        "head is a group of attention heads, which rotate together"
      )
    if self.rotate_fast and not isinstance(self.position, (RoPE, NoPosition, type(None))):
      raise ConfigError(
        f"rotate_fast = True: only rope turns the memory's q and k, not "
        f"{POSITIONS.kind_of(self.position)}; set rotate_fast = False"
      )

  def heads(self, d_model: int) -> Heads:
    if d_model % self.num_heads:
      raise ConfigError(f"d_model = {d_model} is not divisible by num_heads = {self.num_heads}")
    self.fast.widths(d_model)
    heads = Heads(d_model, self.num_heads, self.num_heads, d_model // self.num_heads)
    if self.position is not None:
      self.position.check(heads)
    return heads

  def with_position(self, position):
    return self if self.position is not None else dataclasses.replace(self, position=position)

  def build(self, d_model: int, dtype: str, name=None) -> nn.Module:
    return LaCT(self, d_model, dtype, name=name)

  def init_state(
    self, d_model: int, batch_size: int, max_len: int, dtype, rewindable: int = 0
  ) -> "LaCTState":
    heads, position = self.heads(d_model), self.position or NoPosition()
    return LaCTState(
      empty_cache(heads, position, self.window, batch_size, max_len, dtype, rewindable),
      trail(self.fast.init_state(d_model, batch_size), rewindable),
    )


class LaCTState(NamedTuple):
  cache: KVCache
  memory: MemoryState


class LaCT(nn.Module):
  """y = (softmax attention in a window + gate * norm(f_W(q'))) w_o, with q', k', v' made from the
  same q, k, v.
  """

  cfg: LaCTConfig
  d_model: int
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x_BTD, context: Context | None = None, state: LaCTState | None = None):
    context = given_or_plain(context, x_BTD, state)
    cfg, w, D = self.cfg, weights(self, self.dtype), self.d_model
    heads, position = cfg.heads(D), cfg.position or NoPosition()
    N, H, M = heads.num_heads, heads.head_dim, cfg.fast.num_heads
    per_head = ("heads", "head_dim")

    def project(letter):
      y = jnp.einsum("btd,dnh->btnh", x_BTD, w(f"w_{letter}", (D, N, H), ("embed", *per_head)))
      return y + w(f"b_{letter}", (N, H), per_head, init=zeros)[None, None] if cfg.use_bias else y

    q_BTNH, k_BTNH, v_BTNH = map(project, "qkv")
    if cfg.qk_norm:
      q_BTNH, k_BTNH = (
        self._full_norm(f"scale_{n}_norm", x) for n, x in (("q", q_BTNH), ("k", k_BTNH))
      )

    # The affine is on the memory's side, as in the released models; the paper's text puts it on the
    # attention's.
    def affine(letter, x):
      return (
        x * w(f"scale_{letter}", (N, H), per_head, init=ones)[None, None]
        + w(f"offset_{letter}", (N, H), per_head, init=zeros)[None, None]
      )

    fast_q, fast_k, fast_v = affine("q", q_BTNH), affine("k", k_BTNH), v_BTNH
    if cfg.silu != "none":
      fast_q, fast_k = jax.nn.silu(fast_q), jax.nn.silu(fast_k)
      fast_v = jax.nn.silu(fast_v) if cfg.silu == "qkv" else fast_v
    fast_q, fast_k = _unit_groups(fast_q, M), _unit_groups(fast_k, M)

    shared = context.shared
    if context.shared_by != (position, heads):
      shared, _ = position.prepare(
        self, heads, context, position.init_model_state(heads, x_BTD.shape[0])
      )
    cache = None if state is None else state.cache

    def encode(q, k, old):
      return position.encode(self, heads, q, k, x_BTD, context, shared, old)

    q_BTNH, k_BTNH, info, position_state = encode(
      q_BTNH, k_BTNH, None if cache is None else cache.position
    )
    if cfg.rotate_fast and isinstance(position, RoPE):
      fast_q, fast_k = encode(fast_q, fast_k, None)[:2]
    q_BTNH, k_BTNH, v_BTNH = tap(self, "q", q_BTNH), tap(self, "k", k_BTNH), tap(self, "v", v_BTNH)

    def bias(key_info):
      return position.bias(self, heads, info, key_info, shared)

    o_BTNH, cache = self._attend(
      q_BTNH, k_BTNH, v_BTNH, info, bias, position, position_state, context, cache
    )
    o_BTNH = tap(self, "attended", o_BTNH)

    def grouped(x):
      return jnp.moveaxis(x.reshape(*x.shape[:2], M, D // M), 2, 1)

    t_BMTG, memory = Memory(cfg.fast, D, self.dtype, name="fast")(
      x_BTD,
      grouped(fast_q),
      grouped(fast_k),
      grouped(fast_v),
      context,
      None if state is None else state.memory,
    )
    t_BMTG = tap(self, "remembered", t_BMTG)
    t_BTMG = rms_norm(
      jnp.moveaxis(t_BMTG, 1, 2), weights(self)("scale_fast", (D // M,), (None,), init=ones), EPS
    )
    if cfg.gate:
      gate_BTM = jnp.einsum("btd,dm->btm", x_BTD, w("w_gate", (D, M), ("embed", "heads")))
      gate_BTM = jax.nn.silu(gate_BTM + w("b_gate", (M,), ("heads",), init=zeros)[None, None])
      t_BTMG = t_BTMG * gate_BTM[..., None]
    y_BTNH = o_BTNH.astype(self.dtype) + t_BTMG.reshape(o_BTNH.shape).astype(self.dtype)
    y_BTD = jnp.einsum(
      "btnh,nhd->btd", tap(self, "heads", y_BTNH), w("w_o", (N, H, D), (*per_head, "embed"))
    )
    return y_BTD, None if state is None else LaCTState(cache, memory)

  def _full_norm(self, name, x_BTNH):
    """RMS norm over all heads together."""
    scale_NH = weights(self)(name, x_BTNH.shape[2:], ("heads", "head_dim"), init=ones)
    flat = x_BTNH.reshape(*x_BTNH.shape[:2], -1)
    return rms_norm(flat, scale_NH.reshape(-1), EPS).reshape(x_BTNH.shape)

  def _attend(self, q_BTNH, k_BTNH, v_BTNH, info, bias, position, position_state, context, cache):
    cfg = self.cfg

    def run(k, v, key_info, **mask_inputs):
      rule = dict(window=cfg.window, bias=bias(key_info), **mask_inputs)
      return attend(self, q_BTNH, k, v, implementation=cfg.implementation, **rule)

    if cache is None:
      ids_BT = context.segment_ids_BT if context.packed else None
      return run(k_BTNH, v_BTNH, info, q_segment_ids_BT=ids_BT), None
    index_BT = jnp.where(context.segment_ids_BT != 0, context.positions_BT, -1)
    new = Keys(k_BTNH, v_BTNH, index_BT, info)
    written, keys = written_and_seen(cache, new, cfg.window, position)
    o_BTNH = run(
      keys.k_BSKH, keys.v_BSKH, keys.info, q_index_BT=index_BT, kv_index_BS=keys.index_BS
    )
    return o_BTNH, KVCache(*written, position_state)


def unit(x):
  """x / (|x| + 1e-5) over the last axis, float32 inside."""
  x32 = x.astype(jnp.float32)
  square = jnp.sum(jnp.square(x32), -1, keepdims=True)
  norm = jnp.where(
    square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0
  )  # a zero row has derivative 0
  return (x32 / (norm + EPS)).astype(x.dtype)


def _unit_groups(x_BTNH, num_groups):
  """`unit` of each group of heads together."""
  return unit(x_BTNH.reshape(*x_BTNH.shape[:2], num_groups, -1)).reshape(x_BTNH.shape)
