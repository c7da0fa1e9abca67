"""CARoPE: rotary phases that every token advances by its own amount (arXiv 2507.23083;
docs/specs/carope.md).

Axes: B batch, T time, N query heads, K kv heads, H head_dim, D d_model, P rotated pairs.
"""

import dataclasses
import math
from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.config import ConfigError, checked
from jaxlm.kernels.phase import carope_rotate, cumulative_phase, rotate, sincos
from jaxlm.layers.positions import Encoded, Position, check_even
from jaxlm.layers.weights import normal, weights, zeros
from jaxlm.parameter import matrix
from jaxlm.ranges import Inside, NonNegative, Range


def log_frequency(a):
  """log f = -log(1 + softplus(a)), f = 1 / (softplus(a) + 1) in (0, 1). Float32."""
  return -jnp.log1p(jax.nn.softplus(a))


def frequency_bias(f: float) -> float:
  """The a with f(a) = f: log(expm1(z)), z = 1/f - 1, in float64."""
  z = 1 / f - 1
  return z + math.log(-math.expm1(-z))  # expm1(z) itself overflows for small f


@dataclasses.dataclass(frozen=True)
@checked
class Ladder:
  """Which powers of f turn the pairs, and how the channels pair up.

  rotary_dim: channels that turn, the first of each head; None = all. start: power of the first
  pair, 0 or 1.
  inclusive: a token's own frequency counts in its phase (the paper); False: it counts from the next
  token on.
  """

  rotary_dim: Annotated[int, Range(2)] | None = None
  layout: Literal["half", "interleaved"] = "half"
  start: Literal[0, 1] = 0
  inclusive: bool = True


@dataclasses.dataclass(frozen=True)
@checked
class CARoPE(Position):
  """q and k turned by phi_i(m) = sum_{t<=m} f(x_t)^i, f(x) = 1 / (softplus(x W + c) + 1), per kv
  head.

  freq_source: x is what q and k are projected from, or the layer-0 token embedding.
  share_across_layers: one W, and phases computed once, for the model (token_embedding only).
  init: "rope" starts as RoPE of base `theta`; "paper_literal" has no c; "constant" starts every
    head at the frequency in `constant`, one number or one per kv head. init_std: of W, default 0.02
    for paper_literal and 0 for the others (the gradient of W is not 0 there).
  learn_kernel: False leaves W at 0, which makes f a learned constant per head.
  mask_increments: padding adds nothing; reset_on_segment: phases restart with each document.
  Neither changes
    a valid output in exact arithmetic; both keep phases small.
  decay_kernel: W receives weight decay (c never does).
  implementation: of the kernel that turns q and k; None = best for the platform.
  """

  freq_source: Literal["attn_input", "token_embedding"] = "attn_input"
  share_across_layers: bool = False
  init: Literal["rope", "paper_literal", "constant"] = "rope"
  theta: Annotated[float, Range(1, open_low=True)] = 10000.0
  constant: tuple[Inside, ...] = ()
  init_std: NonNegative | None = None
  learn_kernel: bool = True
  decay_kernel: bool = True
  mask_increments: bool = True
  reset_on_segment: bool = False
  ladder: Ladder = Ladder()
  implementation: Literal["reference", "xla", "pallas"] | None = None

  def __post_init__(self):
    if self.share_across_layers and self.freq_source != "token_embedding":
      raise ConfigError(
        "share_across_layers needs freq_source = 'token_embedding': the layers' inputs differ, so "
        "their phases cannot be the same"
      )
    if (self.init == "constant") != bool(self.constant):
      raise ConfigError(
        f"init = {self.init!r} with constant = {self.constant}: init 'constant' wants one frequency, "
        "or one per kv head, and the others want none"
      )
    for f in self.constant:
      if not 0 < f < 1:
        raise ConfigError(f"constant = {self.constant}: {f} is not a frequency in (0, 1)")
    if self.init == "paper_literal" and not self.learn_kernel:
      raise ConfigError(
        "init 'paper_literal' has no bias, so that nothing is left to learn with learn_kernel = False"
      )

  def rotary_dim(self, heads) -> int:
    return heads.head_dim if self.ladder.rotary_dim is None else self.ladder.rotary_dim

  def check(self, heads):
    check_even("ladder.rotary_dim", self.rotary_dim(heads), heads.head_dim)
    if len(self.constant) not in (0, 1, heads.num_kv_heads):
      raise ConfigError(
        f"constant has {len(self.constant)} frequencies for num_kv_heads = {heads.num_kv_heads}; "
        "give one, or one per kv head"
      )

  def log_frequency(self, module, heads, x_BTD):
    """log f of every token and kv head, float32 (B, T, K). Declares freq_kernel and freq_bias."""
    w, D, K = weights(module), heads.d_model, heads.num_kv_heads
    a_BTK = jnp.zeros((*x_BTD.shape[:2], K), jnp.float32)
    if self.learn_kernel:
      std = self.init_std if self.init_std is not None else 0.02 * (self.init == "paper_literal")
      kernel_DK = w(
        "freq_kernel",
        (D, K),
        ("embed", "kv_heads"),
        init=normal(std) if std else zeros,
        role=matrix(decays=self.decay_kernel),
      )
      # Float32 throughout: with bfloat16 here, the 31st power would be 6% off.
      a_BTK = jnp.einsum("btd,dk->btk", x_BTD.astype(jnp.float32), kernel_DK)
    if self.init != "paper_literal":
      f = self.constant or (self.theta ** (-2.0 / self.rotary_dim(heads)),)
      start_K = np.broadcast_to(np.asarray([frequency_bias(x) for x in f], np.float32), (K,))
      a_BTK += w("freq_bias", (K,), ("kv_heads",), init=lambda *_: jnp.asarray(start_K))[None, None]
    module.sow("intermediates", "freq_preact", a_BTK)  # read by parity tests only
    return log_frequency(a_BTK)

  def _sum_options(self, context, state):
    return dict(
      ladder_start=self.ladder.start,
      inclusive=self.ladder.inclusive,
      initial_BKP=state,
      increments_mask_BT=(context.segment_ids_BT != 0)
      if self.mask_increments or state is not None
      else None,
      segment_ids_BT=context.segment_ids_BT if self.reset_on_segment and state is None else None,
      spec=nn.logical_to_mesh_axes(("batch", "seq" if state is None else None, "kv_heads")),
    )

  def phases(self, heads, log_f_BTK, context, state=None):
    """(wrapped phases (B, T, K, P), phase after the last valid token (B, K, P)), float32."""
    return cumulative_phase(
      log_f_BTK, self.rotary_dim(heads) // 2, **self._sum_options(context, state)
    )

  def prepare(self, module, heads, context, state):
    if not self.share_across_layers:
      return None, state
    log_f_BTK = self.log_frequency(module, heads, context.embedding_BTD)
    phase_BTKP, state = self.phases(heads, log_f_BTK, context, state)
    return sincos(phase_BTKP), state

  def encode(self, module, heads, q_BTNH, k_BTKH, x_BTD, context, shared, state):
    layout = self.ladder.layout
    if self.share_across_layers:
      sin, cos = shared
      return Encoded(
        rotate(q_BTNH, cos, sin, layout=layout), rotate(k_BTKH, cos, sin, layout=layout)
      )
    source_BTD = x_BTD if self.freq_source == "attn_input" else context.embedding_BTD
    if source_BTD is None:
      raise ConfigError(
        'freq_source = "token_embedding": this part of the model sees chunks, not tokens; use "attn_input"'
      )
    q_BTNH, k_BTKH, state = carope_rotate(
      q_BTNH,
      k_BTKH,
      self.log_frequency(module, heads, source_BTD),
      rotary_dim=self.rotary_dim(heads),
      layout=layout,
      implementation=self.implementation,
      **self._sum_options(context, state),
    )
    return Encoded(q_BTNH, k_BTKH, (), state)

  def _phases(self, heads, batch_size):
    return jnp.zeros((batch_size, heads.num_kv_heads, self.rotary_dim(heads) // 2), jnp.float32)

  def init_state(self, heads, batch_size):
    return () if self.share_across_layers else self._phases(heads, batch_size)

  def init_model_state(self, heads, batch_size):
    return self._phases(heads, batch_size) if self.share_across_layers else ()
