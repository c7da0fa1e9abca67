"""Golden checks of the encodings that CARoPE is compared with: scaled RoPE, ALiBi, CoPE, sinusoids.

Axes: B batch, T time, N query heads, H head_dim. Tolerances: README of the golden folder.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.interop.golden.carope import GRADIENT, LOSS, OUTPUT, PHASE
from jaxlm.interop.golden.case import EXACT, Tolerance
from jaxlm.kernels import attention as op
from jaxlm.kernels.attention.bias import Block
from jaxlm.layers.attention import AttentionConfig
from jaxlm.layers.positions.additive import sinusoids
from jaxlm.layers.positions.alibi import ALiBi, alibi_slopes
from jaxlm.layers.positions.rope import NTK, Interpolation, YaRN, ladder


def neighbours(case):
  """The other encodings of the table: slopes, frequencies, sinusoids; CoPE, ALiBi and NoPE
  attention.
  """
  config = case.config
  dim, base = config["dim"], config["base"]
  yarn = YaRN(config["scale"], config["orig_len"], config["beta_fast"], config["beta_slow"])
  low, high = yarn.bounds(base, dim)
  frequencies, factor = yarn(base, dim)
  exact = Tolerance(rtol=1e-6)
  case.compare("out/theta", ladder(base, dim), exact)
  case.compare("out/pi_inv_freq", Interpolation(config["scale"])(base, dim)[0], exact)
  case.compare("out/ntk_inv_freq", NTK(config["scale"])(base, dim)[0], exact)
  case.compare("out/yarn_inv_freq", frequencies, exact)
  case.compare("out/yarn_attention_factor", factor, exact)
  case.compare("out/yarn_low", low, EXACT)
  case.compare("out/yarn_high", high, exact)
  for count in config["alibi_heads"]:
    case.compare(f"out/alibi_slopes_{count}", alibi_slopes(count), exact)
  table = sinusoids(jnp.arange(config["sin_len"]), config["sin_dim"], base)
  case.compare("out/sinusoid_table", table, PHASE)

  def time_first(x):
    return jnp.asarray(x).swapaxes(1, 2)  # stored (B, N, T, H)

  q, k, v = (time_first(case[f"in/{name}"]) for name in "qkv")

  def cope(q, k, v, table_HP):
    out = op.attention(q, k, v, bias=op.CoPE(table_HP))
    return jnp.sum(
      out * time_first(case.given("in/cotangent", time_first(out), ("grad/", "out/cope_loss")))
    ), out

  grad = jax.value_and_grad(cope, argnums=(0, 1, 2, 3), has_aux=True)
  (value, out), grads = grad(q, k, v, jnp.asarray(case["in/cope_pos_emb"]))
  case.compare("out/cope_out", time_first(out), OUTPUT)
  case.compare("out/cope_loss", value, LOSS)
  for name, g in zip("qkv", grads):
    case.compare(f"grad/cope_{name}", time_first(g), GRADIENT)
  case.compare("grad/cope_pos_emb", grads[3], GRADIENT)
  compare_cope_positions(case, q, k, config["cope"]["npos"])

  alibi = ALiBi().bias(
    None, AttentionConfig(q.shape[2]).heads(q.shape[2] * q.shape[3]), (), (), None
  )
  case.compare("out/alibi_out", time_first(op.attention(q, k, v, bias=alibi)), OUTPUT)
  case.compare("out/nope_out", time_first(op.attention(q, k, v)), OUTPUT)


def compare_cope_positions(case, q_BTNH, k_BTNH, num_positions: int):
  """Positions read through the bias itself: with z = 0, 1, 2 ... the bias is the position, and its
  differences along the keys, when nothing is clamped, are the gates."""
  B, T, N, H = q_BTNH.shape
  index_1T = jnp.arange(T)[None]
  seen = (index_1T[:, :, None] >= index_1T[:, None])[:, None]
  s_BNTT = jnp.einsum("btnh,bsnh->bnts", q_BTNH, k_BTNH) / np.sqrt(H)
  block = Block(jnp.ones((B, N, T, 1)), index_1T, index_1T, seen, True)

  def read(count):
    return np.asarray(
      op.CoPE(jnp.arange(count, dtype=jnp.float32)[None]).add(s_BNTT, block) - s_BNTT
    )

  lower = np.asarray(seen)
  case.compare("out/cope_pos", np.where(lower, read(num_positions), 0), OUTPUT)
  unclamped = np.where(lower, read(T + 2), 0)
  case.compare(
    "out/cope_gates", unclamped - np.pad(unclamped, [(0, 0)] * 3 + [(0, 1)])[..., 1:], OUTPUT
  )
