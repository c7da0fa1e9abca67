"""Name tables: bijections between foreign arrays and our tree, strict about names and shapes."""

import numpy as np
import pytest

from jaxlm.checkpoint.errors import WeightsError
from jaxlm.checkpoint.trees import flatten, unflatten
from jaxlm.interop.huggingface.table import Rule, Table

SIZES = dict(d=6, n=2, h=3, v=5)
TABLE = Table(
  rules=(
    Rule("wte.weight", "embed/embedding", "v d -> v d"),
    Rule(
      "h.{layer}.qkv.weight", ("blocks/w_q", "blocks/w_k", "blocks/w_v"), "d (3 n h) -> 3 d n h"
    ),
    Rule("h.{layer}.out.weight", "blocks/w_o", "d (n h) -> n h d"),
    Rule("norm.weight", "final_norm/scale", "d -> d"),
  ),
  sizes=SIZES,
  num_layers=3,
  ignore=(r"h\.\d+\.mask",),
  aliases=((r"^old_norm\.", "norm."),),
  tied={"head.weight": "wte.weight"},
)


def state(seed=0):
  rng = np.random.default_rng(seed)
  return {
    name: rng.standard_normal(rule.their_shape(SIZES)).astype(np.float32)
    for rule in TABLE.rules
    for name in rule.names(TABLE.num_layers)
  }


def test_a_linear_layer_and_its_split_heads_compute_the_same():
  given = state()
  tree = TABLE.import_params(given)
  x = np.random.default_rng(1).standard_normal(6)
  for layer in range(3):
    q, k, v = np.split(x @ given[f"h.{layer}.qkv.weight"], 3)
    for ours, theirs in (("w_q", q), ("w_k", k), ("w_v", v)):
      np.testing.assert_allclose(
        np.einsum("d,dnh->nh", x, tree["blocks"][ours][layer]), theirs.reshape(2, 3), rtol=1e-6
      )
    np.testing.assert_allclose(
      np.einsum("nh,nhd->d", q.reshape(2, 3), tree["blocks"]["w_o"][layer]),
      given[f"h.{layer}.out.weight"] @ q,
      rtol=1e-5,
    )


def test_interleaved_fused_heads_are_taken_apart():
  rule = Rule("qkv", ("q", "k", "v"), "(n 3 h) d -> 3 d n h")
  fused = np.arange(18 * 6).reshape(18, 6)
  q, k, v = rule.to_ours(fused, SIZES)
  np.testing.assert_array_equal(
    k[:, 1, :].T, fused[9 + 3 : 9 + 6]
  )  # head 1's block starts at 9, its keys at 12
  np.testing.assert_array_equal(rule.to_theirs([q, k, v], SIZES), fused)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_importing_and_exporting_is_the_identity_bit_for_bit(dtype):
  import ml_dtypes

  given = {
    k: v.astype(getattr(ml_dtypes, dtype) if dtype == "bfloat16" else dtype)
    for k, v in state().items()
  }
  back = TABLE.export_params(TABLE.import_params(given))
  assert set(back) == set(given)
  for name in given:
    assert (
      back[name].dtype == given[name].dtype and back[name].tobytes() == given[name].tobytes()
    ), name
  wide = TABLE.export_params(TABLE.import_params(given, np.float32), given["norm.weight"].dtype)
  assert all(wide[name].tobytes() == given[name].tobytes() for name in given)


def test_every_misfit_is_listed_at_once_with_its_nearest_name():
  given = state()
  given["h.1.qkv.wieght"] = given.pop("h.1.qkv.weight")
  given["extra"] = np.zeros(3)
  given["h.2.out.weight"] = given["h.2.out.weight"][:, :5]
  with pytest.raises(WeightsError) as error:
    TABLE.import_params(given)
  text = str(error.value)
  assert "missing h.1.qkv.weight (is it h.1.qkv.wieght?)" in text
  assert "left over extra" in text and "left over h.1.qkv.wieght" in text
  assert "h.2.out.weight has shape (6, 5), wanted (6, 6) = (d 6, n 2 x h 3)" in text


def test_our_side_is_strict_too():
  tree = TABLE.import_params(state())
  flat = flatten(tree)
  flat["blocks/w_oo"] = flat.pop("blocks/w_o")
  flat["blocks/w_q"] = flat["blocks/w_q"][:2]
  with pytest.raises(WeightsError) as error:
    TABLE.export_params(unflatten(flat))
  text = str(error.value)
  assert "missing blocks/w_o" in text and "left over blocks/w_oo" in text
  assert "blocks/w_q has shape (2, 6, 2, 3), wanted (3, 6, 2, 3)" in text


def test_buffers_are_ignored_and_older_spellings_are_understood():
  given = state()
  given["h.0.mask"] = np.zeros((1, 1))
  given["old_norm.weight"] = given.pop("norm.weight")
  assert flatten(TABLE.import_params(given)).keys() == flatten(TABLE.import_params(state())).keys()


def test_a_tied_array_stored_twice_must_be_the_same_array():
  given = state() | {"head.weight": state()["wte.weight"]}
  assert "head" not in TABLE.import_params(given)
  given["head.weight"] = given["head.weight"] + 1
  with pytest.raises(WeightsError, match="head.weight differs from wte.weight"):
    TABLE.import_params(given)


def test_a_rule_that_is_not_a_bijection_is_refused():
  with pytest.raises(ValueError, match="both sides"):
    Rule("a", "b", "d f -> d").to_ours(np.zeros((2, 3)), SIZES)
