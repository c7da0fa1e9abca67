"""Where prepared corpora and token caches live: $JAXLM_DATA, else ~/.cache/jaxlm."""

import os
import pathlib

from jaxlm.config import ConfigError
from jaxlm.data.errors import DataError
from jaxlm.paths import expand


def data_dir(given: str | os.PathLike | None = None) -> pathlib.Path:
  """The data folder; it need not exist yet."""
  chosen = given or os.environ.get("JAXLM_DATA")
  if chosen:
    return pathlib.Path(expand(chosen)).absolute()
  try:
    return pathlib.Path(expand("~/.cache/jaxlm")).absolute()
  except ConfigError:
    raise DataError(
      "there is no folder for prepared corpora and tokens: HOME is not set; set JAXLM_DATA to a folder"
    ) from None
