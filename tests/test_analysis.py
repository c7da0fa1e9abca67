"""Taps record what a pass computes and edits change it, layer by layer, in every family; unused
they cost nothing.
"""

import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_params import random_params

from jaxlm.analysis import Edit, edits, intervene, observe, record, sites
from jaxlm.checkpoint.opening import Opened
from jaxlm.config import ConfigError
from jaxlm.kernels.attention import KeyBias, LinearBias, attention, attention_weights
from jaxlm.layers.attention_statistics import attention_statistics
from jaxlm.models import MODELS
from jaxlm.training.config import load_config, run_config

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
PATTERN = {
  "model.num_layers": 4,
  "model.d_model": 32,
  "model.mixer": dict(
    kind="pattern",
    order=(0, 0, 1),
    members=(dict(kind="attention", num_heads=2, window=4), dict(kind="attention", num_heads=2)),
  ),
}
SMALL = {"model.num_layers": 3, "model.d_model": 32, "model.mixer.num_heads": 2}
SKIPPING = {
  "model.kind": "skip_decoder",
  "model.schedule": dict(min_layers=2, max_layers=3, length=8),
}
FILES = {
  "decoder": ("carope/tiny.py", SMALL),
  "pattern": ("carope/tiny.py", PATTERN),
  "remat": ("carope/tiny.py", SMALL | {"model.remat": "full"}),
  "skipping": ("carope/tiny.py", SMALL | SKIPPING),
  "lact": ("lact/micro.py", {}),
  "hnet": ("hnet/tiny.py", {}),
  "mrt5": ("mrt5/smoke.py", {}),
  "insertion": ("ilm/star_easy.py", SMALL),
  "masked_diffusion": (
    "ilm/star_easy.py:masked_diffusion",
    {"model.num_layers": 2, "model.d_model": 32, "model.num_heads": 2},
  ),
  "views": ("lact/nvs_toy.py", {"model.num_layers": 2}),
}
WAVE = np.sin(np.arange(256)).astype(np.float32)  # not constant: a layer norm would remove that
# A residual stream of each family, by its full name.
STREAM = {"hnet": "main/resid", "mrt5": "decoder/resid"}


@functools.cache
def given(name):
  file, overrides = FILES[name]
  cfg = run_config(load_config(f"{CONFIGS}/{file}", overrides)).model
  rng = np.random.default_rng(0)

  def draw(x):
    return (
      rng.integers(4, 20, (2, *x.shape[1:])).astype(np.int32)
      if x.dtype == jnp.int32
      else rng.random((2, *x.shape[1:]), np.float32)
    )

  batch = jax.tree.map(draw, cfg.example(12) if name != "views" else cfg.example())
  batch = batch | ({"decoder_tokens": batch["tokens"]} if name == "mrt5" else {})
  return cfg, random_params(cfg), batch


def output(cfg, params, batch, tree=None):
  variables = {"params": params} | ({"edits": tree} if tree else {})
  return jax.tree.leaves(
    jax.jit(lambda v, a: cfg.build().apply(v, *a))(variables, inputs(cfg, batch))
  )[0]


def inputs(cfg, batch):
  return jax.tree.map(jnp.asarray, concrete(cfg.inputs(batch)))


def concrete(arguments):  # the noise level of masked diffusion is a shape, not part of the batch
  return jax.tree.map(
    lambda x: np.full(x.shape, 0.5, x.dtype) if isinstance(x, jax.ShapeDtypeStruct) else x,
    arguments,
  )


def close(got, want):
  """Up to the rounding of two programs, each of which may sum in its own order."""
  np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * max(1.0, float(np.abs(want).max())))


#: The others trace and compile for ten to twenty seconds each.
QUICK = ("decoder", "hnet", "mrt5")


@pytest.fixture(
  params=[name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FILES]
)
def family(request):
  return request.param, *given(request.param)


def test_recording_and_editing_by_layer_in_every_family(family, monkeypatch):
  name, cfg, params, batch = family
  old = type(cfg).inputs
  monkeypatch.setattr(type(cfg), "inputs", lambda self, b: concrete(old(self, b)))
  stream = STREAM.get(name, "resid")
  plain = record(cfg, params, batch, [stream])
  want = np.asarray(output(cfg, params, batch))
  # Looking changes nothing.
  close(jax.tree.leaves(plain["output"])[0], want)
  layers = plain[stream]
  assert (
    len(layers)
    == dict(sites(cfg))[next(n for n in sites(cfg) if n == stream or n.endswith("/" + stream))]
  )
  last = len(layers) - 1
  # Replacing the last stream by itself is the identity.
  same = output(cfg, params, batch, edits(cfg, {(stream, last): Edit(value=layers[last])}))
  close(same, want)
  # An edit of the last layer changes the output, this layer's value, and no earlier one's.
  changed = record(
    cfg,
    params,
    batch,
    [stream],
    edits=edits(cfg, {(stream, last): Edit(add=WAVE[: layers[last].shape[-1]])}),
  )
  assert float(jnp.abs(jax.tree.leaves(changed["output"])[0] - want).max()) > 1e-3
  changed = changed[stream]
  close(changed[last], np.asarray(layers[last]) + WAVE[: layers[last].shape[-1]])
  for l in range(last):
    close(changed[l], layers[l])


def test_every_kind_of_model_is_among_the_families():
  configs = [run_config(load_config(f"{CONFIGS}/{file}", over)) for file, over in FILES.values()]
  kinds = {kind for kind, target in MODELS.table.items() if target.startswith("jaxlm.")}
  assert {MODELS.kind_of(cfg.model) for cfg in configs} == kinds


def test_a_zeroed_head_is_that_of_a_model_without_its_output_weights():
  cfg, params, batch = given("decoder")
  keep_NH = jnp.ones((2, 1)).at[1].set(0)
  tree = edits(cfg, {("heads", 1): Edit(scale=keep_NH)})
  cut = jax.tree_util.tree_map_with_path(
    lambda path, p: p.at[1, 1].set(0) if path[-1].key == "w_o" else p, params
  )  # (layer, head, ...)
  np.testing.assert_allclose(output(cfg, params, batch, tree), output(cfg, cut, batch), atol=1e-5)


def test_a_traced_function_sees_its_layer_and_masks_choose_positions():
  cfg, params, batch = given("pattern")

  def grow(x, layer):
    return x * (1 + layer.astype(x.dtype))

  by_fn = output(cfg, params, batch, edits(cfg, {("mlp_out", None): Edit(fn=grow)}))
  by_scale = output(
    cfg, params, batch, edits(cfg, {("mlp_out", l): Edit(scale=1.0 + l) for l in range(4)})
  )
  np.testing.assert_allclose(by_fn, by_scale, atol=1e-5)
  mask_BT1 = jnp.zeros((1, 12, 1), bool).at[:, 7:].set(True)
  later = output(cfg, params, batch, edits(cfg, {("attn_out", 0): Edit(value=3.0, mask=mask_BT1)}))
  want = output(cfg, params, batch)
  np.testing.assert_array_equal(later[:, :7], want[:, :7])
  assert float(jnp.abs(later[:, 7:] - want[:, 7:]).max()) > 1e-3


def test_recorded_attention_is_the_softmax_that_the_heads_were_made_with():
  cfg, params, batch = given("pattern")
  found = record(cfg, params, batch, ["attention", "v", "heads"])
  for layer, (p_BNTS, v, heads) in enumerate(zip(found["attention"], found["v"], found["heads"])):
    np.testing.assert_allclose(jnp.sum(p_BNTS, -1), 1.0, atol=1e-5)
    np.testing.assert_allclose(jnp.einsum("bnts,bsnh->btnh", p_BNTS, v), heads, atol=1e-5)
    seen = np.tri(12, dtype=bool) & (
      (np.arange(12)[:, None] - np.arange(12) < 4) if layer % 3 < 2 else True
    )
    assert not np.asarray(p_BNTS)[:, :, ~seen].any()


@pytest.mark.parametrize(
  "rule", [dict(), dict(window=3), dict(softmax1=True), dict(softcap=2.0), dict(causal=False)]
)
def test_attention_weights_times_values_is_attention(rule):
  q, k, v = (jax.random.normal(jax.random.key(i), (2, 9, n, 4)) for i, n in enumerate((4, 2, 2)))
  p_BNTS = attention_weights(q, k, **rule)
  want = jnp.einsum("bnts,bsnh->btnh", p_BNTS, jnp.repeat(v, 2, axis=2))
  np.testing.assert_allclose(attention(q, k, v, **rule), want, atol=1e-5)


def test_unused_taps_leave_the_compiled_step_as_it_is(monkeypatch):
  cfg, params, batch = given("decoder")

  def text():
    return (
      jax.jit(lambda p, a: cfg.build().apply({"params": p}, *a))
      .lower(params, cfg.inputs(batch))
      .as_text()
    )

  with_taps = text()
  for module in ("layers.stack", "layers.attention", "layers.mlp", "models.decoder"):
    monkeypatch.setattr(f"jaxlm.{module}.tap", lambda module, site, x: x)
  assert text() == with_taps


def opened(name):
  """What `open_model` returns, of a small model that was never on a disk."""
  cfg, params, batch = given(name)
  return Opened(cfg, params, folder=""), batch


def test_h_net_boundaries_are_read_and_set_by_one_call_each():
  model, batch = opened("hnet")
  found = observe(model, batch["tokens"], "boundary")
  assert found["boundary"].shape == (2, 12) and found["boundary"][:, 0].all()
  everywhere = intervene(model, batch["tokens"], {"boundary": Edit(value=True)}, "boundary")
  assert everywhere["boundary"].all() and not found["boundary"].all()
  nowhere = edits(model.config, {"boundary": Edit(value=False)})
  _, infos, _ = jax.jit(lambda v, t: model.config.build().apply(v, t, method="run"))(
    {"params": model.params, "edits": nowhere}, batch["tokens"]
  )
  np.testing.assert_array_equal(
    infos[0].boundary_BT, np.arange(12)[None].repeat(2, 0) == 0
  )  # the first byte stays


def test_mrt5_gates_are_read_and_set_by_one_call_each():
  model, batch = opened("mrt5")
  found = observe(model, batch, "gate")
  assert found["gate"].shape == (2, 12) and float(found["gate"].max()) <= 0
  closed = intervene(model, batch, {"gate": Edit(value=model.config.reduction.scale)})
  assert float(jnp.abs(closed["output"] - found["output"]).max()) > 1e-4


@pytest.mark.parametrize("name", ["pattern", "lact", "mrt5"])
def test_attention_is_read_and_set_by_one_call_each(name):
  """Every query looks at the first key alone: then what attention gives is that key's value."""
  model, batch = opened(name)
  attention, values, out = {
    "mrt5": [f"decoder/attention/{x}" for x in ("attention", "v", "heads")],
    "lact": ("attention", "v", "attended"),
  }.get(name, ("attention", "v", "heads"))
  columns = f"{attention}_columns"
  plain = observe(model, batch, attention, columns, values, out)
  np.testing.assert_allclose(plain[columns][0], plain[attention][0].sum(2), atol=1e-5)
  first_S = jnp.zeros(plain[attention][0].shape[-1]).at[0].set(1)
  same = intervene(model, batch, {(attention, 0): Edit(value=plain[attention][0])}, out)
  np.testing.assert_allclose(same[out][0], plain[out][0], atol=1e-5)
  found = intervene(model, batch, {(attention, 0): Edit(value=first_S)}, attention, values, out)
  np.testing.assert_array_equal(found[attention][0][..., 0], 1.0)
  v_BTNH = found[values][0]
  np.testing.assert_allclose(
    found[out][0], jnp.broadcast_to(v_BTNH[:, :1], v_BTNH.shape), atol=1e-5
  )
  assert float(jnp.abs(found["output"] - plain["output"]).max()) > 1e-4


@pytest.mark.parametrize("biased", [False, True])
def test_statistics_in_blocks_are_those_of_the_whole_matrix(biased):
  q, k = (jax.random.normal(jax.random.key(i), (2, 9, n, 4)) for i, n in enumerate((4, 2)))
  ids = jnp.asarray([[1] * 5 + [2] * 4, [1] * 7 + [0] * 2])
  steps_BTN = jax.random.uniform(jax.random.key(3), (2, 9, 4))
  rule = dict(
    window=6,
    q_segment_ids_BT=ids,
    bias=(LinearBias(jnp.arange(4.0)), KeyBias(steps_BTN, steps_BTN)) if biased else None,
  )
  p_BNTS = attention_weights(q, k, **rule)
  found = attention_statistics(q, k, block=4, **rule)
  np.testing.assert_allclose(found.columns_BNS, p_BNTS.sum(2), atol=1e-5)
  np.testing.assert_allclose(found.largest_BNT, p_BNTS.max(-1), atol=1e-6)
  entropy_BNT = -jnp.where(p_BNTS > 0, p_BNTS * jnp.log(jnp.where(p_BNTS > 0, p_BNTS, 1)), 0).sum(
    -1
  )
  np.testing.assert_allclose(found.entropy_BNT, entropy_BNT, atol=1e-5)


def test_the_page_lists_every_site_of_every_family():
  page = (CONFIGS.parent / "docs" / "taps.md").read_text()
  table = page[page.index("| site |") :]
  listed = {
    name
    for row in table.splitlines()
    for name in re.findall(r"`(\w+)`", row.split("|")[1] if row.startswith("|") else "")
  }
  found = set()
  for file, overrides in FILES.values():
    cfg = run_config(load_config(f"{CONFIGS}/{file}", overrides)).model
    found |= {name.rsplit("/", 1)[-1] for name in sites(cfg)}
  assert listed == found


def test_a_layer_or_a_text_where_it_does_not_belong_is_one_sentence():
  cfg, params, _ = given("decoder")
  opened = Opened(cfg, params, None)
  with pytest.raises(ConfigError, match="name the site alone and take the layer from the result"):
    observe(opened, [1, 2], ("attention", 2))
  with pytest.raises(ConfigError, match=r"opened.tokenizer.encode\(text\) makes them"):
    observe(opened, "a text", "attention")


def test_a_wrong_site_or_layer_is_answered_with_the_right_ones():
  cfg, _, _ = given("decoder")
  with pytest.raises(ConfigError, match="did you mean 'heads'"):
    edits(cfg, {("head", 0): Edit(scale=0.0)})
  with pytest.raises(ConfigError, match="edit 'attention' instead"):
    edits(cfg, {("attention_columns", 0): Edit(scale=0.0)})
  with pytest.raises(ConfigError, match="there are layers 0 .. 2"):
    edits(cfg, {("heads", 3): Edit(scale=0.0)})
  with pytest.raises(ConfigError, match="decoder/cross/heads"):
    edits(given("mrt5")[0], {("heads", 0): Edit(scale=0.0)})
