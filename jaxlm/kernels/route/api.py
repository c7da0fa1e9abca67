"""p_t = (1 - cos(W_q x_{t-1}, W_k x_t)) / 2,  b_t = [p_t > 1/2].

Axes: B batch, T time, D d_model, E the projections' width (= D).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.kernels.choices import choose
from jaxlm.kernels.platform import target_device_kind
from jaxlm.kernels.route import blocks, pallas_tpu, reference, sharded, xla


class Route(NamedTuple):
  """p_BT: float32 in [0, 1]; boundary_BT: bool, at valid positions only; confidence_BT: max(p, 1 -
  p), float32.
  """

  p_BT: jax.Array
  boundary_BT: jax.Array
  confidence_BT: jax.Array


def route(
  x_BTD,
  w_q_DE,
  w_k_DE,
  *,
  first_BT,
  valid_BT,
  previous_BD=None,
  implementation: str | None = None,
  spec=None,
) -> Route:
  """p_t = clip((1 - cos(x_{t-1} W_q, x_t W_k)) / 2, 0, 1), b_t = [p_t > 1/2] (strict), c_t =
  max(p_t, 1 - p_t).

  first_BT: bool, p_t = 1 as a constant (a document's first token). previous_BD: x_{-1}, for a row
  that goes on. W_q meets the *previous* row and W_k the current one, as in the released checkpoints
  (the paper's eq. 4 prints the reverse). Products in x's dtype, sums and the cosine in float32.
  Norms below 1e-12 count as 1e-12, so rows of zeros give cos = 0, b = 0 and finite gradients.
  Differentiable in x, W_q, W_k, previous. `docs/specs/hnet.md` section 7.
  implementation: None, "reference", "xla", "pallas" (TPU kernels). spec: PartitionSpec of x under the
  context mesh; the kernels need it there, with time and channels whole.
  """
  if previous_BD is None:
    previous_BD = jnp.zeros_like(x_BTD[:, 0])
  previous_BD = previous_BD.astype(x_BTD.dtype)
  name = choose(
    "route",
    implementation,
    ("reference", "xla", "pallas"),
    {"x": x_BTD},
    preferred=blocks.prefers_pallas(target_device_kind(), *x_BTD.shape[1:]),
    reason=lambda: pallas_tpu.supports(x_BTD, spec),
  )
  if name == "xla":
    cos_BT = xla.cosine(previous_BD, x_BTD, w_q_DE, w_k_DE)
  elif name == "pallas":
    cos_BT = sharded.over_rows(pallas_tpu.cosine, spec, (previous_BD, x_BTD), (w_q_DE, w_k_DE))
  else:
    cos_BT = reference.cosine(
      jnp.concatenate([previous_BD[:, None], x_BTD[:, :-1]], 1), x_BTD, w_q_DE, w_k_DE
    )
  half_BT = (1 - cos_BT) / 2
  # Not jnp.clip: its derivative at the ends is zero, the official clamp's is one.
  p_BT = jnp.where(
    (half_BT >= 0) & (half_BT <= 1), half_BT, jax.lax.stop_gradient(jnp.clip(half_BT, 0, 1))
  )
  p_BT = jnp.where(first_BT, 1.0, p_BT)
  decision_BT = p_BT > 0.5
  return Route(p_BT, decision_BT & valid_BT, jnp.where(decision_BT, p_BT, 1 - p_BT))
