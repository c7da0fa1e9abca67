r"""Needles in a haystack, in miniature: key-value sentences in prose, found beyond the window or not (spec lact, 13).

  jaxlm train --config=configs/lact/needles.py --workdir=runs/lact-needles         :swa, :gla, ... as in micro.py

Every number is ours. Training asks for all of four keys in rows of 256 bytes; the table asks RULER's questions at more lengths.
"""

import importlib.util
import pathlib

import ml_collections as mlc


def get_config(mixer: str = "lact_muon") -> mlc.ConfigDict:
  spec = importlib.util.spec_from_file_location("lact_micro", pathlib.Path(__file__).parent / "micro.py")
  micro = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(micro)
  c = mlc.ConfigDict(micro.get_config(mixer).to_dict())
  c.data = dict(kind="needles", seq_len=256, batch_size=16, num_keys=4, num_queries=4, haystack="prose", key_chars=3,
                value_chars=3, loss_on="all", rows=256)
  c.train.steps = 4000
  return c.lock()
