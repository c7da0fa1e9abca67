"""Number types of stored weights: floating point only, and never beyond the range of what they are
written as.
"""

import re
from collections.abc import Iterable, Mapping

import numpy as np

from jaxlm.checkpoint.errors import WeightsError

FLOATS = ("float64", "float32", "float16", "bfloat16")
#: Arrays beside quantised weights: scales, zero points, statistics of outliers.
COMPANIONS = re.compile(
  r"\.(qweight|qzeros|scales|g_idx|SCB|weight_scale(_inv)?|input_scale|weight_zero_point|weight_packed|"
  r"weight\.(absmax|quant_map|nested_absmax|quant_state.*))$"
)


def dtype_of(state: Mapping, name: str) -> str:
  """'float32' and so on, without reading the array where the mapping knows better."""
  return state.dtype(name) if hasattr(state, "dtype") else str(np.asarray(state[name]).dtype)


def check_floats(state: Mapping, wanted: Iterable[str]) -> None:
  """Raises WeightsError if a wanted array is no floating-point weight. wanted: names as in `state`."""
  found = [(name, dtype_of(state, name)) for name in wanted if name in state]
  wrong = [(name, dtype) for name, dtype in found if dtype not in FLOATS]
  beside = [name for name in state if COMPANIONS.search(name)]
  if not wrong and not beside:
    return
  what = f"{wrong[0][0]} is {wrong[0][1]}" if wrong else f"it holds {beside[0]}"
  raise WeightsError(
    f"the checkpoint is quantised ({what}; {max(len(wrong), len(beside))} such arrays): integer and float8 "
    f"weights mean nothing without their scales, and only {', '.join(FLOATS)} are read; dequantise it with "
    f"the library that made it and save it again"
  )


def cast(name: str, array, dtype) -> np.ndarray:
  """The array as `dtype` (None: as it is).

  Raises WeightsError where a finite number would become infinite.
  """
  array = np.asarray(array)
  if dtype is None or array.dtype == dtype:
    return array
  with np.errstate(over="ignore"):
    out = array.astype(dtype)
  if np.dtype(dtype) == np.float16 and np.any(np.isinf(out) & np.isfinite(array)):
    raise WeightsError(
      f"{name} holds {float(np.max(np.abs(array.astype(np.float32)))):.3g}, which is beyond the range of "
      f"float16 (65504); choose bfloat16 or float32"
    )
  return out
