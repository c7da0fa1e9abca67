"""Approximate orthogonalisation of a batch of matrices, the update rule of Muon."""

import jax.numpy as jnp

from jaxlm.kernels.choices import choose
from jaxlm.kernels.newton_schulz import blocks, pallas_tpu, reference, xla
from jaxlm.kernels.platform import target_device_kind

# Five distinct steps: the language model and the bidirectional example.
LANGUAGE = (
  (4.0848, -6.8946, 2.9270),
  (3.9505, -6.3029, 2.6377),
  (3.7418, -5.5913, 2.3037),
  (2.8769, -3.1427, 1.2046),
  (2.8366, -3.0525, 1.2012),
)
# One step, repeated: view synthesis and video, and the only one that the paper prints.
VIEWS = (3.4445, -4.7750, 2.0315)

EPS = 1e-7
IMPLEMENTATIONS = ("xla", "reference", "pallas")


def coefficients(kind: str, num_steps: int = 5) -> tuple[tuple[float, float, float], ...]:
  """`num_steps` triples (a, b, c).

  Past its fifth step the 'language' sequence repeats the last one.
  """
  if num_steps < 0:
    raise ValueError(
      f"num_steps = {num_steps} of Newton-Schulz is negative; 0 divides by the Frobenius norm only"
    )
  if kind == "language":
    return (LANGUAGE + LANGUAGE[-1:] * max(0, num_steps - len(LANGUAGE)))[:num_steps]
  if kind == "views":
    return (VIEWS,) * num_steps
  raise ValueError(f"Newton-Schulz coefficients {kind!r} are unknown; use 'language' or 'views'")


def newton_schulz(g_MN, coefficients=LANGUAGE, *, dtype=None, implementation=None, spec=None):
  """X <- a X + (b A + c A^2) X with A = X X^T, from X = G / (|G|_F + 1e-7), once per triple (a, b,
  c).

  g_MN: (..., M, N), any leading axes. Generic singular values end in about 0.85-1.06 with LANGUAGE;
  zeros stay zero. An empty `coefficients` still divides by the norm, which is not plain gradient
  descent.
  dtype: in which the whole iteration runs (bfloat16 officially); None keeps G's. The result has G's
  dtype. Differentiable; the gradient at G = 0 is finite (and large: the slope of G / eps).
  implementation: None, "xla", "reference", "pallas" (TPU kernels: a matrix stays on chip through all
  steps). None takes "pallas" where it is supported and blocks.py says that it is faster.
  spec: PartitionSpec of the leading axes under the context mesh; only "pallas" needs it.
  """
  if g_MN.ndim < 2:
    raise ValueError(f"newton_schulz wants matrices (..., M, N), got shape {g_MN.shape}")
  g, steps = g_MN.astype(dtype or g_MN.dtype), tuple(map(tuple, coefficients))
  name = choose(
    "newton_schulz",
    implementation,
    IMPLEMENTATIONS,
    {"g": g_MN},
    preferred=target_device_kind() in blocks.PREFERRED,
    reason=lambda: pallas_tpu.supports(g.shape, g.dtype, len(steps), spec),
  )
  if name == "reference":
    x_MN = reference.newton_schulz(g, steps, EPS)
  elif name == "pallas":
    x_MN = pallas_tpu.newton_schulz(g, steps, EPS, spec)
  else:
    x_MN = xla.newton_schulz(g, steps, EPS)
  return x_MN.astype(jnp.result_type(g_MN))
