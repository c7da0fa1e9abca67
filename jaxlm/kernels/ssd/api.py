"""S_t = exp(a dt_t) S_{t-1} + dt_t x_t (x) B_t,  y_t = S_t C_t + D x_t.

Axes: B batch, T time, N heads, H head_dim, K groups of heads that share B and C, E state size.
"""

import jax.numpy as jnp

from jaxlm.kernels.choices import choose
from jaxlm.kernels.platform import target_device_kind, target_platform
from jaxlm.kernels.ssd import blocks, pallas_gpu, pallas_tpu, reference, xla

IMPLEMENTATIONS = ("reference", "xla", "pallas", "pallas_gpu")


def ssd(
  x_BTNH,
  dt_BTN,
  a_N,
  b_BTKE,
  c_BTKE,
  *,
  d_N=None,
  initial_state_BNHE=None,
  reset_BT=None,
  chunk: int | None = None,
  implementation: str | None = None,
  spec=None,
):
  """S_t = exp(a dt_t) S_{t-1} + dt_t x_t (x) B_t;  y_t = S_t C_t + d x_t. Returns (y_BTNH, S_T).

  x, b, c: one dtype, that of the matrix products; dt, a, state float32; y has x's dtype, the state
  is float32.
  dt: >= 0, after softplus and bias; a token with dt = 0 leaves the state as it was. a: < 0.
  Head n reads group n // (N / K). initial_state: (B, N, H, E), zero if absent.
  reset_BT: bool, the state is zeroed *before* token t (the first token of a document).
  chunk: tokens per block of the XLA form; the result does not depend on it. T: any; it must not be
  sharded. Differentiable in all but reset. Mamba-2 (arXiv 2405.21060); `docs/specs/hnet.md` section
  5.
  implementation: None, "reference", "xla", "pallas" (TPU kernels), "pallas_gpu" (a Hopper kernel
  forward, XLA backward; never run on a device, hence never the default). None takes "pallas" where
  it is supported and blocks.py says that it is faster.
  spec: PartitionSpec of x under the context mesh (batch, None, heads, None), for the kernels, which
  the compiler does not partition.
  Raises NotImplementedError where the named implementation does not cover the case.
  """
  batch, _, heads, head_dim = x_BTNH.shape
  groups, state_dim = b_BTKE.shape[2:]
  if heads % groups:
    raise ValueError(
      f"{heads} heads do not divide into {groups} groups; give a multiple of {groups} heads"
    )
  if initial_state_BNHE is None:
    initial_state_BNHE = jnp.zeros((batch, heads, head_dim, state_dim), jnp.float32)
  dt_BTN = dt_BTN.astype(jnp.float32)
  a_N = jnp.maximum(
    a_N.astype(jnp.float32), jnp.finfo(jnp.float32).min
  )  # -inf: 0 x a must be 0, the token that is not there
  arguments = x_BTNH, dt_BTN * a_N[None, None], dt_BTN, b_BTKE, c_BTKE, initial_state_BNHE, reset_BT
  kind = target_device_kind()
  tiles = blocks.pallas_blocks(kind)

  name = choose(
    "ssd",
    implementation,
    IMPLEMENTATIONS,
    {"x": x_BTNH, "b": b_BTKE},
    preferred=blocks.prefers_pallas(kind),
    reason=lambda: pallas_tpu.supports(x_BTNH, b_BTKE, c_BTKE, kind, tiles, spec),
    gpu_reason=lambda: pallas_gpu.supports(x_BTNH, b_BTKE, c_BTKE, spec),
  )
  chunk = chunk or blocks.chunk_length(target_platform(), head_dim, state_dim)
  if name == "pallas_gpu":
    return pallas_gpu.ssd(*arguments, d_N, chunk=chunk, spec=spec)
  if name == "pallas":
    return pallas_tpu.ssd(*arguments, d_N, blocks=tiles, spec=spec)
  if name == "reference":
    y_BTNH, state_BNHE = reference.ssd(*arguments)
  else:
    y_BTNH, state_BNHE = xla.ssd(*arguments, chunk=chunk)
  if d_N is not None:
    y_BTNH += d_N[None, None, :, None] * x_BTNH.astype(jnp.float32)
  return y_BTNH.astype(x_BTNH.dtype), state_BNHE
