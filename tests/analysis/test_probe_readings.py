"""Probes: metrics on attention made by hand, the same numbers from blocks and from whole matrices, and
one sentence for what a model does not have.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from jaxlm.analysis import Edit, edits, observe, sites
from jaxlm.analysis.activations import traced
from jaxlm.analysis.heads import indicators
from jaxlm.analysis.norms import at_first_and_elsewhere
from jaxlm.analysis.pictures import draw
from jaxlm.analysis.probes import PROBES, Visible, num_queries, probe, without_empty
from jaxlm.analysis.sinks import (
  cosine_to_first,
  importance,
  intermediate,
  massive,
  sink_rate,
  well_seen,
)
from jaxlm.config import ConfigError


def test_the_sink_metric_of_attention_made_by_hand():
  """Every query gives the first key 0.8, except the first query, which has no choice."""
  a = np.array([[1, 0, 0, 0], [0.8, 0.2, 0, 0], [0.8, 0.1, 0.1, 0], [0.8, 0, 0, 0.2]])
  alpha = importance(a.sum(0)[None, None], Visible(), 4)[0, 0]
  np.testing.assert_allclose(alpha, [(1 + 3 * 0.8) / 4, 0.3 / 3, 0.1 / 2, 0.2])
  np.testing.assert_array_equal(sink_rate(alpha[None, None, None], 0.3), [1, 0, 0, 0])
  np.testing.assert_array_equal(sink_rate(alpha[None, None, None], 0.09), [1, 1, 0, 1])
  every = np.ones(4, bool)
  assert intermediate(alpha[None, None, None], every, 0.09) == 2
  assert intermediate(alpha[None, None, None], every & (np.arange(4) < 3), 0.09) == 1
  np.testing.assert_array_equal(well_seen(Visible(), 8, 8), [True] * 7 + [False])
  # Two layers, one of them without a sink: half of the (layer, head) pairs.
  even = importance(np.full((1, 1, 4), 0.25 * 4), Visible(causal=False), 4)
  assert sink_rate(np.stack([alpha[None, None], even]), 0.3)[0] == 0.5
  # Two rows in slots of the same number, one of them with two queries only.
  columns = np.zeros((2, 1, 4))
  columns[0, 0], columns[1, 0, :2] = a.sum(0), [1.5, 0.5]
  both = importance(columns, Visible(), np.array([4, 2]))
  np.testing.assert_allclose(both[0, 0], alpha)
  np.testing.assert_allclose(both[1, 0], [0.75, 0.5, 0, 0])
  squares = np.zeros((1, 2, 1, 4))
  squares[0, 0], squares[0, 1, 0, 1] = 1.0, 1.0  # a query without weight in between counts
  np.testing.assert_array_equal(num_queries(squares, np.zeros_like(squares)), [4, 2])
  np.testing.assert_array_equal(Visible(window=2).counts(4, 4), [2, 2, 2, 1])
  np.testing.assert_array_equal(Visible(prefix=2).counts(4, 4), [4, 4, 2, 1])


def test_massive_activations_norms_and_cosines_by_hand():
  x = np.ones((1, 3, 4))
  x[0, 0, 2] = -50.0
  kept = without_empty(np.ones((2, 3, 2)), np.array([1, 3]))
  np.testing.assert_array_equal(kept[..., 0], [[1, 0, 0], [1, 1, 1]])
  assert at_first_and_elsewhere(kept) == (2**0.5, 2**0.5)
  assert massive(np.concatenate([x, 0 * x, 0 * x], axis=1))["ratio"] == 50.0  # empty slots
  assert massive(x) == {"largest": 50.0, "ratio": 50.0, "channel": 2, "position": 0}
  first, rest = at_first_and_elsewhere(np.array([[[3.0, 4.0], [1.0, 0.0], [0.0, 3.0]]]))
  assert (first, rest) == (5.0, 2.0)
  h = np.array([[[1.0, 0.0], [1.0, 1.0], [0.0, 2.0], [0.0, 0.0]]])
  np.testing.assert_allclose(cosine_to_first(h), [[0.5**0.5, 0, 0]], atol=1e-12)


def test_indicators_are_those_of_the_whole_matrix():
  model, batch = small.opened(), small.tokens()
  names = ("entropy", "squares", "first", "near", "spread")
  found = observe(model, batch, "attention", *[f"attention_{name}" for name in names])
  read = indicators(*[np.stack(found[f"attention_{name}"]) for name in names])
  a = np.stack(found["attention"]).astype(np.float64)
  plogp = np.where(a > 0, a * np.log(np.where(a > 0, a, 1)), 0)
  np.testing.assert_allclose(read["entropy"], -plogp.sum(-1).mean((1, 3)), atol=1e-5)
  np.testing.assert_allclose(
    read["concentration"], np.linalg.norm(a, axis=(-2, -1)).mean(1), atol=1e-5
  )
  np.testing.assert_allclose(read["sink"], a[..., 0].mean((1, 3)), atol=1e-5)
  np.testing.assert_allclose(read["diversity"], a.std(2).sum(-1).mean((1, 2)), atol=1e-5)
  for r in range(4):
    near = [np.pad(np.diagonal(a, -r, -2, -1), ((0, 0),) * 3 + ((r, 0),))]
    np.testing.assert_allclose(read[f"local {r}"], near[0].mean((1, 3)), atol=1e-5)


def test_a_learned_slot_is_a_key_of_its_own_and_edits_of_weights_keep_it():
  mixer = dict(kind="similarity_attention", num_heads=2, slot="kv")
  model, batch = small.opened(mixer=mixer), small.tokens()
  found = observe(model, batch, "attention", "attention_slot", "attention_columns")
  whole = found["attention"][0].sum(-1) + found["attention_slot"][0]
  np.testing.assert_allclose(whole, 1.0, atol=1e-5)
  same = edits(model.config, {("attention", 0): Edit(value=found["attention"][0])})
  out = traced(model.config, model.params, {"tokens": batch}, edits=same)["output"]
  np.testing.assert_allclose(out, found["output"], atol=2e-5)


@pytest.mark.parametrize("kind", ["sinks", "heads", "norms", "attribution"])
def test_a_probe_reads_draws_and_leaves_the_output_as_it_is(kind, tmp_path):
  model, batch = small.opened(), small.tokens()
  before = small.logits(model, batch)
  one = probe(kind)
  reading = one.read(model, batch)
  assert reading.numbers and all(np.isfinite(list(reading.numbers.values())))
  assert draw(reading, tmp_path / "picture.png").stat().st_size > 1000
  found = observe(model, batch, *[s for s in one.sites])
  np.testing.assert_array_equal(found["output"], before)  # reading changes nothing
  assert set(PROBES.table) == {"sinks", "heads", "norms", "attribution"}


MAMBA = dict(kind="mamba2", d_state=4, head_dim=8)


def test_what_a_model_does_not_have_is_one_sentence():
  recurrent = small.decoder(mixer=MAMBA, mlp=None)
  model = small.Opened(recurrent, None, folder="")
  with pytest.raises(
    ConfigError, match="no mixer of this model .Mamba2. computes attention weights"
  ):
    probe("sinks").read(model, small.tokens())
  with pytest.raises(ConfigError, match="no site 'attention' in DecoderConfig"):
    observe(model, small.tokens(), "attention")
  with pytest.raises(ConfigError, match="there are layers 0 .. 1"):
    edits(small.decoder(), {("heads", 2): Edit(scale=0.0)})
  with pytest.raises(ConfigError, match="is not a probe; did you mean 'sinks'"):
    probe("sink")
  with pytest.raises(ConfigError, match="unknown key 'probe.epsilon'; did you mean 'eps'"):
    probe("sinks", epsilon=0.2)


def test_a_probe_of_eight_thousand_tokens_holds_no_square_of_them():
  """No array of the traced pass has two axes of the length."""
  T = 8192
  cfg = small.decoder(num_layers=1, unroll=1)
  shapes = jax.eval_shape(lambda: small.params_of.__wrapped__(cfg))
  names = [n for n in sites(cfg) if n.rsplit("/", 1)[-1].startswith("attention_")]
  assert len(names) == 8

  def run(params, batch):
    return traced(cfg, params, batch, names)

  jaxpr = jax.make_jaxpr(run)(shapes, {"tokens": jax.ShapeDtypeStruct((1, T), jnp.int32)})
  sizes = [s for s in shapes_in(jaxpr.jaxpr) if sum(n >= T for n in s) > 1]
  assert not sizes, sizes[:3]
  whole = jax.make_jaxpr(lambda p, b: traced(cfg, p, b, ["attention"]))(
    shapes, {"tokens": jax.ShapeDtypeStruct((1, T), jnp.int32)}
  )
  assert any(sum(n >= T for n in s) > 1 for s in shapes_in(whole.jaxpr))  # so it would be seen


def shapes_in(jaxpr):
  for eqn in jaxpr.eqns:
    yield from (v.aval.shape for v in eqn.outvars if hasattr(v.aval, "shape"))
    for value in eqn.params.values():
      for sub in value if isinstance(value, (tuple, list)) else (value,):
        sub = getattr(sub, "jaxpr", sub)
        if hasattr(sub, "eqns"):
          yield from shapes_in(sub)


def test_a_probe_of_a_sharded_model_returns_what_one_device_returns():
  """Rows are split over the devices, and each parameter along an axis of eight or more."""
  from jax.sharding import AxisType, NamedSharding, PartitionSpec

  model, batch = small.opened(), small.tokens(rows=8)
  names = [n for n in sites(model.config) if "attention_" in n] + ["resid", "attention"]
  alone = observe(model, batch, *names)
  mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))

  def split(x):
    axis = next((a for a, n in enumerate(x.shape) if n % 8 == 0), None)
    axes = [None if a != axis else "fsdp" for a in range(x.ndim)]
    return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*axes)))

  params = jax.tree.map(split, model.params)
  found = observe(
    small.Opened(model.config, params, folder=""), {"tokens": split(jnp.asarray(batch))}, *names
  )
  assert len(found["output"].sharding.device_set) == 8
  for name in names:
    for a, b in zip(found[name], alone[name]):
      np.testing.assert_allclose(a, b, atol=2e-6)
