"""Golden files that hold less than the check computes: compared on what they have, and the row says
what is missing.
"""

import json
import pathlib

import numpy as np
import pytest

from jaxlm.interop import verify

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def shortened(tmp_path, name, *, without):
  """A copy of a golden file without the arrays whose names begin with one of `without`."""
  with np.load(GOLDEN / f"{name}.npz") as data:
    np.savez(
      tmp_path / "x.npz", **{k: data[k] for k in data.files if not k.startswith(tuple(without))}
    )
  return tmp_path / "x.npz"


FAST = [
  "decoder/llama",
  "hnet/mamba2",
  "hnet/ssd_scan",
  "hnet/routing",
  "carope/attn_gqa",
  "carope/long_phase",
  "mixers/gated_delta_rule",
  "mrt5/softmax1",
]
SLOW = [
  "decoder/mamba2_two_groups",
  "hnet/chunk_dechunk",
  "hnet/lm_1stage_packed",
  "carope/neighbours",
  "carope/lm_attn_input",
  "ilm/ilm_loss_only",
  "ilm/ilm_stopping_prefix_constraint",
  "lact/op_momentum_f64",
  "lact/lm_momentum",
  "lact/nvs_op_two_updates",
  "lexinvariant/lm_given_tables_t5",
  "mixers/delta_rule_state",
  "mrt5/hf_t5_v1_1",
  "mrt5/mrt5_hard",
  "mrt5/bpt5",
]


@pytest.mark.parametrize("name", [*FAST, *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)])
def test_a_case_without_gradients_and_their_cotangents_passes_and_says_so(tmp_path, name, capsys):
  path = shortened(
    tmp_path, name, without=("grad", "in/G", "in/cotangent", "in/w_", "out/loss", "out/cope_loss")
  )
  if name.startswith("mrt5/softmax1"):
    path = shortened(tmp_path, name, without=("grad",))
  row = verify.verify(path)
  assert row.passed, (row.message, [c for c in row.comparisons if not c.passed])
  assert any(key.startswith("grad") for key in row.absent) and not row.unread
  verify.print_row(
    __import__("rich.console").console.Console(width=200), row, "x.npz", (20, 20), False
  )
  assert "not stored, so not compared: gradients" in capsys.readouterr().out


@pytest.mark.parametrize(
  "without",
  [
    ("out/hidden", "out/loss", "in/labels", "grad/"),
    ("out/greedy_top2_gap",),
    ("out/greedy",),
    ("in/prompt", "out/greedy", "out/logits"),
    ("in/attention_mask", "out/", "grad/", "in/lab"),
  ],
  ids=str,
)
def test_other_optional_results_of_a_decoder_may_be_missing_too(tmp_path, without):
  path = shortened(tmp_path, "decoder/llama", without=without)
  row = verify.verify(path)
  if "out/" in without:
    assert not row.passed and row.message == "the check compared nothing"
    return
  assert row.passed, (row.message, [c for c in row.comparisons if not c.passed])


@pytest.mark.parametrize(
  "without, said",
  [
    (("in/input_ids",), "no array 'in/input_ids'"),
    (("param/model.norm",), "missing model.norm.weight"),
    (("in/labels",), "no array 'in/labels'"),
    (("grad/model.norm",), "grad/model.norm.weight is not stored, although other"),
  ],
  ids=str,
)
def test_what_a_result_depends_on_must_be_there(tmp_path, without, said):
  row = verify.verify(shortened(tmp_path, "decoder/llama", without=without))
  assert not row.passed and said in row.message


def test_the_report_lists_what_is_not_stored(tmp_path, capsys):
  path = shortened(tmp_path, "mixers/gated_delta_rule", without=("grad/",))
  assert verify.main([str(path), "--json"]) == 0
  assert "grad/q" in json.loads(capsys.readouterr().out)["rows"][0]["absent"]
