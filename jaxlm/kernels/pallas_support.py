"""What every Pallas TPU kernel shares: where it may run, how it is interpreted, its precision and
its memory.

A kernel's package has `pallas_tpu.py` with the kernel and `supports(...) -> None | sentence`. The
name "pallas" is refused with that sentence where it is not supported; `None` picks the kernel where
it is supported and its table in `blocks.py` says that it is faster than the XLA form.
"""

import contextlib
import contextvars

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from jaxlm.kernels.platform import target_device_kind, target_platform

LANES = 128

#: On-chip bytes that a kernel was seen to use over those of its blocks and tiles, for what the
#: compiler spills: at most 1.18.
SPILLS = 1.2

_interpret = contextvars.ContextVar("interpret", default=False)

#: Bytes of on-chip memory that a kernel may use, by device kind: of a core's 128, 64 and 128 MiB
#: some are left to the compiler, which keeps other arrays there.
VMEM_BYTES = {
  "TPU v5 lite": 64 * 2**20,
  "TPU v5": 48 * 2**20,
  "TPU v6 lite": 64 * 2**20,
  "": 14 * 2**20,
}


@contextlib.contextmanager
def interpreted(parameters: bool | pltpu.InterpretParams = True):
  """Within it Pallas TPU kernels are traced for JAX's interpreter, so that they run on any
  platform, slowly.

  parameters: True (plain) or pltpu.InterpretParams (TPU memory, transfers and races). Not part of
  the key of jax.jit's cache: a function that was traced outside keeps its trace.
  """
  token = _interpret.set(parameters)
  try:
    yield
  finally:
    _interpret.reset(token)


def why_not_here() -> str | None:
  """None, or the sentence that says why a TPU kernel cannot run where the current trace will."""
  if target_platform() == "tpu" or interpreting():
    return None
  return (
    f'the trace is for {target_platform()} and the kernel needs a TPU; use implementation="xla"'
  )


def dot(a, b, contract: tuple[int, int]):
  """Product of two matrices over axis contract[0] of a and contract[1] of b, float32. bfloat16 is
  multiplied as it is, whatever jax_default_matmul_precision says: the kernel compiler refuses
  anything else."""
  precision = (
    None if jnp.promote_types(a.dtype, b.dtype) == jnp.float32 else jax.lax.Precision.DEFAULT
  )
  return jax.lax.dot_general(
    a,
    b,
    (((contract[0],), (contract[1],)), ((), ())),
    precision=precision,
    preferred_element_type=jnp.float32,
  )


def on_tpu(*semantics: str) -> dict:
  """Compiler parameters and interpretation of a pallas_call. semantics: "parallel" or "arbitrary",
  of each grid axis.
  """
  limit = vmem_bytes(target_device_kind())
  return {
    "compiler_params": pltpu.CompilerParams(dimension_semantics=semantics, vmem_limit_bytes=limit),
    "interpret": _interpret.get(),
  }


def interpreting() -> bool:
  return _interpret.get() is not False


def vmem_bytes(device_kind: str) -> int:
  return VMEM_BYTES.get(device_kind, VMEM_BYTES[""])


def round_up(x: int, to: int) -> int:
  return -(-x // to) * to
