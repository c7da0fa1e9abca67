"""A fuzz target per format of untrusted files, a minute each: Hypothesis chooses the edits and
makes failures small.
"""

import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import formats
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

SECONDS = float(os.environ.get("JAXLM_FUZZ_S", 60))
EDITS = st.lists(
  st.tuples(st.floats(0, 1), st.integers(0, 8), st.binary(max_size=8)), min_size=1, max_size=6
)
VALUES = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
  lambda inner: (
    st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
  ),
  max_leaves=8,
)


def edited(data: bytes, edits) -> bytes:
  """Each edit: at this share of the bytes, so many are replaced by these."""
  for share, lost, put in edits:
    at = int(share * len(data))
    data = data[:at] + put + data[at + lost :]
  return data


def exchanged(data: bytes, changes) -> bytes:
  """Each change: the field of this number, counted through the outermost mappings, has this value."""
  value = json.loads(data)
  for number, new in changes:
    inner = (
      [value, *(v for v in value.values() if isinstance(v, dict) and v)]
      if isinstance(value, dict)
      else []
    )
    fields = [(mapping, key) for mapping in inner for key in mapping]
    if fields:
      mapping, key = fields[number % len(fields)]
      mapping[key] = new
  return json.dumps(value).encode()


@pytest.mark.slow
@pytest.mark.timeout(SECONDS * 5 + 120)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", formats.FORMATS)
def test_any_bytes_are_read_or_refused(name):
  form = formats.FORMATS[name]
  good = form.make()
  data = st.sampled_from(good).flatmap(
    lambda whole: st.builds(edited, st.just(whole), EDITS)
  ) | st.binary(max_size=64)
  if "json" in form.name and form.name != "a.jsonl":
    changes = st.lists(st.tuples(st.integers(0, 60), VALUES), min_size=1, max_size=3)
    data |= st.sampled_from(good).flatmap(
      lambda whole: st.builds(exchanged, st.just(whole), changes)
    )
  end, number = time.monotonic() + SECONDS, 0

  def target(data):
    if time.monotonic() > end:
      return
    folder = Path(tempfile.mkdtemp()) / "x"
    folder.mkdir()
    try:
      form.beside(folder)
      formats.read_damaged(form, data, folder)
    finally:
      shutil.rmtree(folder.parent)

  while time.monotonic() < end:
    run = settings(
      max_examples=100, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )(given(data)(target))
    seed(number)(run)()
    number += 1
