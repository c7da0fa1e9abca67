"""Probes read every kind of model and never change what it computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from test_analysis import FILES, given

from jaxlm.analysis import observe, sites
from jaxlm.analysis.attribution import Question
from jaxlm.analysis.attribution.attention import LastAttention, Rollout
from jaxlm.analysis.attribution.gradients import IntegratedGradients
from jaxlm.analysis.probes import PROBES, probe
from jaxlm.config import ConfigError
from jaxlm.layers.taps import Edit

#: Each family traces and compiles for a quarter of a minute and more; a decoder is in test_probes.py.
pytestmark = pytest.mark.slow
FAMILIES = [
  name
  for name in FILES
  if name not in ("views", "masked_diffusion", "remat")  # no token batch of `observe`; a decoder
]


def read(model, batch, kind):
  try:
    return probe(kind).read(model, batch)
  except ConfigError as refused:
    return str(refused)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_probe_of_every_family_reads_or_refuses_and_changes_nothing(name):
  cfg, params, batch = given(name)
  model = small.Opened(cfg, params, folder="")
  batch = {key: jnp.asarray(x) for key, x in batch.items()}
  want = jax.tree.leaves(observe(model, batch)["output"])[0]
  for kind in PROBES.table:
    if kind == "attribution":
      continue  # 64 gradients of a whole model; the next test has two
    found = read(model, batch, kind)
    if isinstance(found, str):
      assert found.endswith(".") or "; " in found, found
    else:
      assert found.panels and all(np.isfinite(x) for x in found.numbers.values()), found.numbers
    names = [n for n in sites(cfg) if n.rsplit("/", 1)[-1] in probe(kind).sites]
    after = observe(model, batch, *names)["output"] if names else want
    np.testing.assert_array_equal(jax.tree.leaves(after)[0], want)


def test_h_net_has_a_sink_metric_of_its_main_network():
  cfg, params, batch = given("hnet")
  reading = probe("sinks").read(small.Opened(cfg, params, folder=""), batch["tokens"])
  assert "main/mixer: sink rate" in reading.numbers or "sink rate" in reading.numbers
  assert any("main" in name for name in reading.tables)
  # The main network has a slot per token; only as many as there are chunks are rows of attention.
  names = ("boundary", "main/mixer/attention", "main/resid")
  found = observe(small.Opened(cfg, params, folder=""), batch["tokens"], *names)
  chunks_B = np.asarray(found["boundary"]).sum(axis=-1)
  assert (chunks_B < batch["tokens"].shape[1]).all()
  attention = np.stack(found["main/mixer/attention"]).astype(np.float64)
  first = [attention[:, b, :, :n, 0].mean() for b, n in enumerate(chunks_B)]
  heads = probe("heads").read(small.Opened(cfg, params, folder=""), batch["tokens"]).numbers
  weights = chunks_B / chunks_B.sum()
  for numbers, want in ((reading.numbers, np.mean(first)), (heads, np.dot(first, weights))):
    name = next(n for n in numbers if n.endswith(("weight of the first key", "sink")))
    np.testing.assert_allclose(numbers[name], want, rtol=1e-4)
  states = [np.asarray(h)[:, 1:] for h in found["main/resid"]]
  used = [np.concatenate([h[b, : n - 1] for b, n in enumerate(chunks_B)]) for h in states]
  norms = probe("norms").read(small.Opened(cfg, params, folder=""), batch["tokens"]).tables
  table = next(rows for name, rows in norms.items() if "main" in name and "residual" in name)
  for row, h in zip(table, used):
    np.testing.assert_allclose(row["others"], np.linalg.norm(h, axis=-1).mean(), rtol=1e-4)


def test_attention_is_attributed_to_the_tokens_or_refused():
  """H-Net attends between chunks; a decoder to its encoder's tokens, which rollout cannot chain."""
  cfg, params, batch = given("hnet")
  chunks = Question(cfg, params, batch["tokens"], np.array([3, 4]))
  with pytest.raises(ConfigError, match="is between chunks, not between the tokens"):
    LastAttention()(chunks, None)
  cfg, params, batch = given("mrt5")
  extra = {"decoder_tokens": jnp.asarray(batch["decoder_tokens"][:, :5])}
  question = Question(cfg, params, batch["tokens"], np.array([3, 4]), extra=extra)
  a = LastAttention()(question, None)
  assert a.shape == batch["tokens"].shape
  # A softmax with one more in the denominator, so that a row may look at nothing.
  assert (a >= 0).all() and ((0 < a.sum(axis=1)) & (a.sum(axis=1) < 1 + 1e-5)).all()
  with pytest.raises(ConfigError, match="attends from a decoder to an encoder"):
    Rollout()(question, None)


def test_attribution_goes_through_a_delete_gate():
  """A deleted token is not seen behind the gate: with all of them closed nothing is attributed but what
  the layers in front of the gate have mixed in; open or closed, the numbers differ and are finite."""
  from jaxlm.analysis.activations import edits, traced

  cfg, params, batch = given("mrt5")
  tokens, extra = batch["tokens"], {"decoder_tokens": jnp.asarray(batch["decoder_tokens"])}
  question = Question(cfg, params, tokens, np.array([3, 4]), extra=extra)
  assert question.site == "encoder_embed"
  a = IntegratedGradients(2)(question, None)
  assert a.shape == tokens.shape and np.isfinite(a).all() and np.abs(a).max() > 0

  def value(e, gate):
    changed = edits(cfg, {"encoder_embed": Edit(value=e), "gate": Edit(value=gate)})
    out = traced(cfg, params, {"tokens": tokens} | extra, edits=changed)["output"]
    return jnp.sum(question.picked(jax.nn.log_softmax(out[:, -1])))

  run = jax.jit(jax.grad(value))
  one_open = jnp.full(tokens.shape, cfg.reduction.scale).at[:, 0].set(0.0)
  opened, closed = run(question.vectors, jnp.zeros(tokens.shape)), run(question.vectors, one_open)
  assert float(jnp.abs(opened - closed).max()) > 1e-6
