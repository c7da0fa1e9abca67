"""One golden file under test: what was read, what was compared, how far off it was."""

import contextlib
import dataclasses
import functools
import json
import pathlib
import zipfile

import numpy as np

RESULTS = ("out", "grad", "grad_in")  # first parts of the keys that a check has to answer for


class DamagedCase(ValueError):
  """A file that is not a golden case. The message says what is wrong with it."""


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
  error: float  # max |got - want|
  ratio: float  # max |got - want| / limit; <= 1 passes
  message: str = ""

  @property
  def passed(self) -> bool:
    return self.ratio <= 1

  @property
  def group(self) -> str:
    return "gradients" if self.key.startswith("grad") else "outputs"


def float64(check=None, *, when=None):
  """Decorates a check that runs in 64 bits: JAX's x64 mode is on while it runs, and off for the
  others.

  when: `when(case) -> bool`, for a kind of which only some cases ask for it; absent = always.
  """
  if check is None:
    return functools.partial(float64, when=when)

  @functools.wraps(check)
  def run(case):
    import jax

    with jax.enable_x64(True) if when is None or when(case) else contextlib.nullcontext():
      check(case)

  return run


class Case:
  """The arrays of one `.npz`, and the record of what a check did with them."""

  def __init__(self, path):
    self.path = pathlib.Path(path)
    self.config = read_config(self.path)
    try:
      with _open(self.path) as data:
        self.arrays = {k: data[k] for k in data.files if k != "config"}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
      raise DamagedCase(f"an array cannot be read: {error}") from error
    self.comparisons: list[Comparison] = []
    self.skipped: dict[str, str] = {}
    self.absent: list[str] = []  # results that the check computes and the file does not hold

  def __contains__(self, key: str) -> bool:
    return key in self.arrays

  def __getitem__(self, key: str) -> np.ndarray:
    if key not in self.arrays:
      from jaxlm.config import nearest

      raise DamagedCase(f"no array {key!r}; {nearest(key, self.arrays)}")
    return self.arrays[key]

  def has(self, key: str) -> bool:
    """Whether a result is stored. One that is not is remembered: the row says so."""
    if key not in self.arrays and key not in self.absent:
      self.absent.append(key)
    return key in self.arrays

  def given(self, key: str, like, needed_for=("grad/", "out/loss")) -> np.ndarray:
    """An input that only some results depend on: stored, or zeros like `like` where none of those
    is stored.
    """
    needy = [name for name in self.arrays if name.startswith(tuple(needed_for))]
    return (
      np.zeros(np.shape(like), np.float32) if key not in self.arrays and not needy else self[key]
    )

  @property
  def torn(self) -> list[str]:
    """Gradients that are not stored although others are."""
    return [key for key in self.absent if key.startswith("grad") and self.group(key.split("/")[0])]

  def group(self, prefix: str) -> dict[str, np.ndarray]:
    """{name: array} of the keys `prefix/name`."""
    return {k[len(prefix) + 1 :]: v for k, v in self.arrays.items() if k.startswith(prefix + "/")}

  def compare(self, key: str, got, tolerance: Tolerance = EXACT, *, where=None) -> None:
    """Compares with the stored array, if there is one. where: bool mask, broadcast on the leading
    axes; the rest is ignored.
    """
    if key.split("/")[0] in RESULTS and not self.has(key):
      return
    self.compare_to(key, got, self[key], tolerance, where=where)

  def compare_to(self, key: str, got, want, tolerance: Tolerance = EXACT, *, where=None) -> None:
    """As `compare`, with the wanted array given: for results that are stored in another form."""
    got, want = np.asarray(got), np.asarray(want)
    if got.shape != want.shape:
      self._record(key, np.inf, np.inf, f"shape {got.shape}, wanted {want.shape}")
      return
    if where is not None:
      where = np.asarray(where, bool)
      got, want = got[where], want[where]
    if tolerance == EXACT and (want.dtype == bool or np.issubdtype(want.dtype, np.integer)):
      wrong = int(np.sum(got != want))
      self._record(
        key,
        float(wrong),
        np.inf if wrong else 0.0,
        f"{wrong} of {want.size} differ" if wrong else "",
      )
      return
    if got.size == 0:
      self._record(key, 0.0, 0.0)
      return
    with np.errstate(invalid="ignore", over="ignore"):  # inf - inf, x / tiny
      error = np.abs(got.astype(np.float64) - want.astype(np.float64))
      error = np.where(got == want, 0.0, error)  # equal infinities
      limit = tolerance.limit(want)
      ratio = np.where(
        error == 0, 0.0, error / np.where(limit > 0, limit, np.finfo(np.float64).tiny)
      )
    if not np.all(np.isfinite(error)):
      bad = int(np.sum(~np.isfinite(error)))
      self._record(
        key, np.inf, np.inf, f"{bad} of {want.size} differ by something that is not finite"
      )
    else:
      self._record(key, float(error.max()), float(ratio.max()))

  def require(self, key: str, condition: bool, message: str) -> None:
    """Records a property that is not a stored array."""
    self._record(
      key, 0.0 if condition else np.inf, 0.0 if condition else np.inf, "" if condition else message
    )

  def skip(self, key: str, why: str) -> None:
    """Leaves a stored result out of the comparison; `verify` counts it, and prints why when asked."""
    self.skipped[key] = why

  def _record(self, key, error, ratio, message=""):
    self.comparisons.append(Comparison(key, error, ratio, message))

  @property
  def unread(self) -> list[str]:
    """Stored results that were neither compared nor skipped with a reason."""
    done = {c.key for c in self.comparisons} | set(self.skipped)
    return [k for k in self.arrays if k.split("/")[0] in RESULTS and k not in done]

  @property
  def passed(self) -> bool:
    return bool(self.comparisons) and all(c.passed for c in self.comparisons)


@contextlib.contextmanager
def _open(path):
  with open(path, "rb") as file:  # np.load leaks a damaged file that it opened itself
    data = np.load(file, allow_pickle=False)
    if not isinstance(data, np.lib.npyio.NpzFile):
      raise DamagedCase("a single array, not an archive of named arrays")
    with data:
      yield data


def read_config(path) -> dict:
  """The `config` of a golden file, without reading its arrays. Raises DamagedCase."""
  try:
    with _open(path) as data:
      if "config" not in data.files:
        raise DamagedCase("no 'config' among its arrays: not a golden case")
      config = json.loads(str(data["config"]))
  except json.JSONDecodeError as error:
    raise DamagedCase(f"its 'config' is not JSON: {error}") from error
  except DamagedCase:
    raise
  except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
    raise DamagedCase(f"not a readable .npz archive: {error}") from error
  if not isinstance(config, dict) or not {"system", "kind"} <= set(config):
    raise DamagedCase("its 'config' names no 'system' and 'kind', so no check can be chosen")
  return config
