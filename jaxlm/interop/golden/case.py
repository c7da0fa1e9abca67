"""One golden file under test: what was read, what was compared, how far off it was."""

import dataclasses
import json
import pathlib

import numpy as np


@dataclasses.dataclass(frozen=True)
class Tolerance:
  """Elementwise limit on |got - want|: atol + rtol |want| + rtol_max max|want|."""

  atol: float = 0.0
  rtol: float = 0.0
  rtol_max: float = 0.0

  def limit(self, want: np.ndarray) -> np.ndarray:
    size = np.abs(want.astype(np.float64))
    return self.atol + self.rtol * size + self.rtol_max * (size.max() if size.size else 0.0)


EXACT = Tolerance()


@dataclasses.dataclass(frozen=True)
class Comparison:
  key: str
  error: float    # max |got - want|
  ratio: float    # max |got - want| / limit; <= 1 passes
  message: str = ""

  @property
  def passed(self) -> bool:
    return self.ratio <= 1

  @property
  def group(self) -> str:
    return "gradients" if self.key.startswith("grad") else "outputs"


class Case:
  """The arrays of one `.npz`, and the record of what a check did with them."""

  def __init__(self, path):
    self.path = pathlib.Path(path)
    with np.load(self.path, allow_pickle=False) as data:
      self.arrays = {k: data[k] for k in data.files}
    self.config = json.loads(str(self.arrays.pop("config")))
    self.comparisons: list[Comparison] = []
    self.skipped: dict[str, str] = {}

  def __contains__(self, key: str) -> bool:
    return key in self.arrays

  def __getitem__(self, key: str) -> np.ndarray:
    return self.arrays[key]

  def group(self, prefix: str) -> dict[str, np.ndarray]:
    """{name: array} of the keys `prefix/name`."""
    return {k[len(prefix) + 1:]: v for k, v in self.arrays.items() if k.startswith(prefix + "/")}

  def compare(self, key: str, got, tolerance: Tolerance = EXACT, *, where=None) -> None:
    """Compares with the stored array. where: bool mask, broadcast on the leading axes; the rest is ignored."""
    self.compare_to(key, got, self.arrays[key], tolerance, where=where)

  def compare_to(self, key: str, got, want, tolerance: Tolerance = EXACT, *, where=None) -> None:
    """As `compare`, with the wanted array given: for results that are stored in another form."""
    got, want = np.asarray(got), np.asarray(want)
    if got.shape != want.shape:
      self._record(key, np.inf, np.inf, f"shape {got.shape}, wanted {want.shape}")
      return
    if where is not None:
      where = np.asarray(where, bool)
      got, want = got[where], want[where]
    if want.dtype == bool or np.issubdtype(want.dtype, np.integer):
      wrong = int(np.sum(got != want))
      limit_zero = tolerance == EXACT
      if limit_zero:
        self._record(key, float(wrong), np.inf if wrong else 0.0, f"{wrong} differ" if wrong else "")
        return
    if got.size == 0:
      self._record(key, 0.0, 0.0)
      return
    error = np.abs(got.astype(np.float64) - want.astype(np.float64))
    error = np.where(got == want, 0.0, error)     # equal infinities
    limit = tolerance.limit(want)
    ratio = np.where(error == 0, 0.0, error / np.where(limit > 0, limit, np.finfo(np.float64).tiny))
    if not np.all(np.isfinite(error)):
      self._record(key, np.inf, np.inf, "not finite")
    else:
      self._record(key, float(error.max()), float(ratio.max()))

  def require(self, key: str, condition: bool, message: str) -> None:
    """Records a property that is not a stored array."""
    self._record(key, 0.0 if condition else np.inf, 0.0 if condition else np.inf, "" if condition else message)

  def skip(self, key: str, why: str) -> None:
    self.skipped[key] = why

  def _record(self, key, error, ratio, message=""):
    self.comparisons.append(Comparison(key, error, ratio, message))

  @property
  def unread(self) -> list[str]:
    """Stored results that were neither compared nor skipped with a reason."""
    done = {c.key for c in self.comparisons} | set(self.skipped)
    return [k for k in self.arrays if k.split("/")[0] in ("out", "grad", "grad_in") and k not in done]

  @property
  def passed(self) -> bool:
    return bool(self.comparisons) and all(c.passed for c in self.comparisons)
