"""Starting costs what it must: programs are kept, layers of the initial model are compiled once,
data are opened once, event files need no package.
"""

import dataclasses
import json
import os
import struct
import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxlm.data.pipeline import batches, example
from jaxlm.layers.attention import AttentionConfig
from jaxlm.models.base import init
from jaxlm.models.decoder import DecoderConfig
from jaxlm.training.compilation_cache import keep_programs
from jaxlm.training.events import EventFile, _checksum

RUN = """
import sys, tiny_run
from jaxlm.training.run import train
train(tiny_run.config(**{"train.steps": 2}), sys.argv[1])
"""


def run(folder, name, **environment):
  """What a new process says that trains for two steps."""
  here = os.path.dirname(__file__)
  env = {
    k: v for k, v in os.environ.items() if not k.startswith(("JAX_COMP", "JAXLM_", "JAX_PERS"))
  }
  env |= {"JAXLM_DATA": str(folder / "data"), "PYTHONPATH": f"{here}:{os.environ['PYTHONPATH']}"}
  done = subprocess.run(
    [sys.executable, "-c", RUN, str(folder / name)],
    env=env | environment,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  return done.stderr


@pytest.mark.slow
def test_a_second_start_compiles_nothing_and_ends_with_the_same_bits(tmp_path, monkeypatch):
  monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", os.getcwd()))
  first, second = run(tmp_path, "one"), run(tmp_path, "two")
  assert "programs in" in first and ": 0 that an earlier run compiled" in first
  assert " 0 compiled and kept there" in second and ": 0 that" not in second
  assert len(list((tmp_path / "data" / "xla").rglob("*-cache"))) > 2

  def numbers(name):
    lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
    return [
      {k: v for k, v in json.loads(x).items() if "_s" not in k and k != "goodput"} for x in lines
    ]

  assert numbers("one") == numbers("two")


@pytest.fixture
def untouched():
  """The settings of JAX that a cache changes, put back."""
  before = jax.config.jax_compilation_cache_dir
  least = jax.config.jax_persistent_cache_min_compile_time_secs
  jax.config.update("jax_compilation_cache_dir", None)
  yield
  jax.config.update("jax_compilation_cache_dir", before)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", least)


def test_a_folder_that_cannot_be_written_to_is_a_warning(tmp_path, monkeypatch, untouched):
  (tmp_path / "file").write_text("in the way")
  monkeypatch.setenv("JAXLM_COMPILATION_CACHE", str(tmp_path / "file" / "xla"))
  cache = keep_programs(tmp_path)
  assert cache.folder is None and cache.warning.startswith(
    "warning: compiled programs are not kept"
  )
  assert jax.config.jax_compilation_cache_dir is None


def test_the_cache_can_be_off_and_jax_s_own_setting_has_precedence(
  tmp_path, monkeypatch, untouched
):
  monkeypatch.setenv("JAXLM_COMPILATION_CACHE", "off")
  assert keep_programs(tmp_path).folder is None and jax.config.jax_compilation_cache_dir is None
  monkeypatch.delenv("JAXLM_COMPILATION_CACHE")
  jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
  assert keep_programs(tmp_path).folder == str(tmp_path / "own")
  assert not (tmp_path / "own").exists()


def test_layers_in_a_loop_start_with_the_values_of_unrolled_ones():
  mixer = AttentionConfig(num_heads=2)
  cfg = DecoderConfig(vocab_size=16, d_model=8, num_layers=2, mixer=mixer, unroll=2)
  assert cfg.rolled().unroll == 1
  one, other = (
    jax.jit(lambda c=c: jax.tree.leaves(init(c, jax.random.key(0))))() for c in (cfg, cfg.rolled())
  )
  for a, b in zip(one, other):
    np.testing.assert_array_equal(a, b)


@dataclasses.dataclass
class Counted:
  """Rows that count how often they were read."""

  reads: int = 0

  def __len__(self):
    return 8

  def __getitem__(self, index):
    self.reads += 1
    return {"tokens": np.full(2, index)}


def test_shapes_are_seen_without_starting_a_reader():
  rows = Counted()
  data = batches(rows, batch_size=4, num_workers=3)
  assert example(data)["tokens"].shape == (4, 2) and rows.reads == 4
  assert batches(rows, batch_size=4, num_workers=3, repeat=False).num_workers == 0


def test_event_files_hold_what_was_written(tmp_path):
  file = EventFile(tmp_path, purge_step=300)
  file.scalar("eval/perplexity@16", 1.5, 1000)
  file.close()
  (path,) = tmp_path.iterdir()
  raw, events = path.read_bytes(), []
  while raw:
    (size,) = struct.unpack("<Q", raw[:8])
    events.append(raw[12 : 12 + size])
    raw = raw[16 + size :]
  assert len(events) == 3 and b"brain.Event:2" in events[0]
  assert events[1][9:] == b"\x10\xac\x02" + b"\x3a\x02\x08\x01"  # step 300, session_log START
  tag = b"eval/perplexity_16"
  value = b"\x0a" + bytes([len(tag)]) + tag + b"\x15" + struct.pack("<f", 1.5)
  inner = b"\x0a" + bytes([len(value)]) + value
  assert events[2][9:] == b"\x10\xe8\x07" + b"\x2a" + bytes([len(inner)]) + inner


def test_checksums_are_those_of_crc_32c():
  crc = 0xE3069283  # of the digits 1 to 9: the check value in the catalogues of CRCs
  masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
  assert _checksum(b"123456789") == struct.pack("<I", masked)
