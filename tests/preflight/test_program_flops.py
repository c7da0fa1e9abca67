"""Analytic FLOPs against figures worked out elsewhere or by hand."""

import dataclasses

import pytest

from jaxlm.preflight.flops import (
  Attended,
  attention_flops,
  attention_layers,
  memory_flops,
  model_flops,
)
from jaxlm.training.config import load_config, run_config


def config(path, **overrides):
  return run_config(load_config(path, overrides))


# 6 N tokens + 6 layers (heads x head size) T tokens with N = 123.7 M and 1.236 B: 25.2 and 73.9
# TFLOP a device.
@pytest.mark.parametrize(
  "path, devices, tflop",
  [("configs/decoder/gpt2_small.py:512", 16, 25.2), ("configs/decoder/llama_1b.py", 64, 73.9)],
)
def test_model_flops_of_a_decoder_are_the_formulas(path, devices, tflop):
  assert model_flops(config(path), "train", devices) / 1e12 == pytest.approx(tflop, abs=0.06)


def test_a_causal_square_is_half_seen_and_a_window_leaves_a_band():
  assert Attended(1, 64, 1024, None).pairs == 1024**2 / 2
  assert Attended(1, 64, 1024, 4096).pairs == 1024**2 / 2
  exact = sum(min(t + 1, 128) for t in range(1024))
  assert Attended(1, 64, 1024, 128).pairs == pytest.approx(exact, rel=1e-3)
  assert Attended(1, 64, 512, None).computed == 512**2  # one block: nothing is skipped
  assert Attended(1, 64, 8192, None).computed == 8192**2 / 2 + 8192 * 256
  assert (
    Attended(1, 64, 1152, None).computed == 1152**2 / 2 + 1152 * 64
  )  # 512 and 256 do not divide it
  assert (
    Attended(1, 64, 1024, None, causal=False).pairs
    == Attended(1, 64, 1024, None, causal=False).computed
    == 1024**2
  )
  assert (
    Attended(2, 96, 1024, None).kernel_width == 256
    and Attended(2, 64, 1024, None).kernel_width == 128
  )
  assert Attended(1, 64, 8192, 2048).computed == Attended(1, 64, 8192, 2048).pairs + 8192 * 512


def test_an_hnet_attends_at_every_stages_own_length():
  cfg = config("configs/hnet/paper.py:2stage_XL")
  outer, inner = attention_layers(cfg)
  assert (outer.length, outer.count, outer.window) == (8192 // 3, 2, 1024)
  assert (inner.length, inner.count, inner.width) == (8192 // 9, 27, 2048)
  assert [layer.length for layer in attention_layers(cfg, (4096, 2048))] == [4096, 2048]
  assert attention_flops(cfg, "train", 1, (4096, 2048)) > attention_flops(cfg, "train", 1)
  eval_, train = (model_flops(cfg, program, 256) for program in ("eval", "train"))
  assert train == pytest.approx(3 * eval_)


def test_fast_weights_read_and_learn_with_nine_products_a_matrix_and_share_muon_over_the_chunk():
  cfg = config("configs/lact/lm_760m.py:momentum").model
  H = 1536 // 4
  assert memory_flops(cfg) == 24 * 9 * 2 * 4 * H * H
  muon = config("configs/lact/lm_760m.py").model
  extra = memory_flops(muon) - memory_flops(cfg)
  assert extra == pytest.approx(24 * 3 * 4 * 5 * 6 * H**3 / 2048)
  linear = dataclasses.replace(
    cfg.mixer, fast=dataclasses.replace(cfg.mixer.fast, network="linear", rank=None)
  )
  assert (
    memory_flops(dataclasses.replace(cfg, mixer=linear)) == 24 * 4 * 4 * H * H
  )  # read W q, add v k': one product each
  smaller = dataclasses.replace(muon.mixer, fast=dataclasses.replace(muon.mixer.fast, chunk=512))
  assert memory_flops(dataclasses.replace(muon, mixer=smaller)) - memory_flops(
    cfg
  ) == pytest.approx(4 * extra)
