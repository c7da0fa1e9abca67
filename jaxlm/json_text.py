"""JSON as the standard has it: a number that is not finite is written as one of the texts "nan",
"inf", "-inf".

loads(dumps({"loss": math.nan}))  ->  {"loss": "nan"};    number("nan")  ->  nan
"""

import json
import math
from collections.abc import Mapping
from typing import Any

NOT_FINITE = ("nan", "inf", "-inf")


def dumps(value: Any, **options) -> str:
  """`json.dumps` without bare NaN and Infinity, which readers of other languages refuse. options:
  of json.dumps.
  """
  return json.dumps(_plain(value), allow_nan=False, **options)


def number(value: Any) -> Any:
  """A value of a field that holds numbers, as it was before `dumps`; lists and mappings of them
  too.
  """
  if isinstance(value, Mapping):
    return {key: number(item) for key, item in value.items()}
  if isinstance(value, list):
    return [number(item) for item in value]
  return float(value) if isinstance(value, str) and value in NOT_FINITE else value


def _plain(value: Any) -> Any:
  if isinstance(value, float) and not math.isfinite(value):
    return str(float(value))
  if isinstance(value, Mapping):
    return {key: _plain(item) for key, item in value.items()}
  return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
