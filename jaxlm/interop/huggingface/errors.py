"""Errors of conversions."""


class WeightsError(ValueError):
  """Names, shapes or number types of a checkpoint that do not fit the model. The message lists every one of them."""
