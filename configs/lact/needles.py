r"""Needles in a haystack, in miniature: key-value sentences in prose, found beyond the window or
not (docs/specs/lact.md, 13).

  jaxlm train --config=configs/lact/needles.py --workdir=runs/lact-needles         :swa, :gla, ... as in micro.py

Every number is ours. Training asks for one value of one digit in rows of 128 bytes; the table asks
RULER's questions at more lengths.
"""

import importlib.util
import pathlib

import ml_collections as mlc


def get_config(mixer: str = "lact_muon") -> mlc.ConfigDict:
  spec = importlib.util.spec_from_file_location(
    "lact_micro", pathlib.Path(__file__).parent / "micro.py"
  )
  micro = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(micro)
  c = mlc.ConfigDict(micro.get_config(mixer).to_dict())
  c.data = dict(
    kind="needles",
    seq_len=128,
    batch_size=24,
    num_keys=1,
    num_queries=1,
    haystack="noise",
    key_chars=1,
    value_chars=1,
    loss_on="answer",
    rows=128,
  )
  c.train.steps = 300
  return c.lock()
