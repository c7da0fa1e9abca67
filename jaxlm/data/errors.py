"""What is wrong with data, said so that it can be put right."""

from jaxlm.config import ConfigError


class DataError(ConfigError):
  """Data that is missing, empty or damaged.

  The message names the file or data set and the remedy.
  """
