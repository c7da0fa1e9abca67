"""Where prepared corpora and token caches live: $JAXLM_DATA, else ~/.cache/jaxlm."""

import os
import pathlib


def data_dir(given: str | os.PathLike | None = None) -> pathlib.Path:
  """The data folder; it need not exist yet."""
  chosen = given or os.environ.get("JAXLM_DATA") or pathlib.Path("~/.cache/jaxlm")
  return pathlib.Path(chosen).expanduser().absolute()
