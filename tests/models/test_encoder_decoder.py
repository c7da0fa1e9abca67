"""The encoder-decoder with a delete gate: capacities, overflow, decoding, refusals."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.checkpoint.errors import WeightsError
from jaxlm.config import ConfigError
from jaxlm.evaluation.flops import dot_flops
from jaxlm.generation.encoder_decoder import decode
from jaxlm.generation.hard_deletion import TwoPrograms
from jaxlm.interop.mrt5 import load_params, store_params
from jaxlm.layers.delete_gate import DeleteGateConfig, Mode, apply_gate, fixed_deletion
from jaxlm.models.encoder_decoder import EncoderDecoderConfig, forward_flops
from jaxlm.objectives.deletion import Controller
from jaxlm.objectives.sequence_to_sequence import SequenceToSequence

TINY = EncoderDecoderConfig(
  vocab_size=40,
  d_model=16,
  d_ff=24,
  num_heads=2,
  d_kv=8,
  num_encoder_layers=2,
  num_decoder_layers=1,
  softmax1=True,
  reduction=DeleteGateConfig(layer=1),
)
TOKENS = jnp.asarray([[5, 9, 12, 7, 30, 8, 22, 1], [11, 6, 14, 1, 0, 0, 0, 0]])


@pytest.fixture(scope="module")
def tiny():
  model = TINY.build()
  params = jax.jit(model.init)(jax.random.key(0), TOKENS, TOKENS[:, :3])["params"]
  params = jax.tree.map(
    lambda x: x,
    jax.tree.map(lambda x: getattr(x, "value", x), params, is_leaf=lambda x: hasattr(x, "unbox")),
  )
  # A gate without a bias deletes about half.
  params["reduction"]["b"] = jnp.zeros_like(params["reduction"]["b"])
  return model, params


def run(model, params, capacity):
  return jax.jit(
    lambda p: model.apply(
      {"params": p}, TOKENS, TOKENS[:, :3], mode=Mode(True, capacity), method="run"
    )
  )(params)


def test_more_capacity_than_needed_changes_nothing_and_less_is_noticed(tiny):
  model, params = tiny
  logits, (memory, _), _ = run(model, params, None)
  need = int(memory.reduced.count_B.max())
  assert 1 < need < 8 and not memory.reduced.overflow_B.any()
  exact, (fits, _), _ = run(model, params, need)
  np.testing.assert_allclose(exact, logits, atol=1e-5)
  assert not fits.reduced.overflow_B.any()
  assert run(model, params, need - 1).aux.memory.reduced.overflow_B.any()


def test_rows_that_share_a_buffer_do_not_see_each_other(tiny):
  model, params = tiny
  go = jax.jit(
    lambda p, mode: model.apply({"params": p}, TOKENS, TOKENS[:, :3], mode=mode, method="run"),
    static_argnums=1,
  )
  alone, (apart, _), _ = go(params, Mode(True))
  need = int(apart.reduced.count_B.sum())
  shared, (together, _), _ = go(params, Mode(True, need, rows=2))
  assert together.h_BCD.shape[:2] == (1, need) and not together.reduced.overflow_B.any()
  np.testing.assert_allclose(shared, alone, atol=1e-5)


def test_two_programs_say_what_one_says_at_the_capacity_that_fits(tiny):
  model, params = tiny
  whole, (memory, _), _ = run(model, params, None)
  programs = TwoPrograms(model, params, multiple=2)
  logits, capacity = programs(TOKENS, TOKENS[:, :3])
  need = int(memory.reduced.count_B.max())
  assert capacity == min(need + need % 2, 8)
  np.testing.assert_allclose(logits, whole, atol=1e-5)


def test_the_formula_counts_the_products_that_the_model_has():
  cfg = dataclasses.replace(TINY, d_model=64, d_ff=96, vocab_size=384)
  model, tokens = cfg.build(), jax.ShapeDtypeStruct((1, 64), jnp.int32)
  params = jax.eval_shape(model.init, jax.random.key(0), tokens, tokens)
  for capacity in (64, 32):
    flops = dot_flops(
      lambda p, t, c=capacity: model.apply(p, t, t[:, :16], mode=Mode(True, c)), params, tokens
    )
    assert (
      abs(flops / forward_flops(cfg, 64, 16, capacity) - 1) < 0.02
    )  # the products of gate and bias come on top


def test_of_too_many_tokens_those_with_the_highest_gates_stay_in_order():
  gate = jnp.asarray([[-1.0, -9.0, -2.0, -20.0, -3.0]])
  reduced = apply_gate(
    jnp.arange(5.0)[None, :, None],
    gate,
    gate > -30,
    -15.0,
    Mode(True, 3, drop=True),
    compact_positions=False,
  )
  np.testing.assert_array_equal(reduced.source_BC, [[0, 2, 4]])
  assert int(reduced.count_B[0]) == 4 and bool(reduced.overflow_B[0])


def test_cached_decoding_says_what_the_whole_pass_says(tiny):
  model, params = tiny
  decoded = jax.jit(functools.partial(decode, model, max_len=4, mode=Mode(True), with_logits=True))(
    params, TOKENS
  )
  logits, _, _ = jax.jit(
    lambda p, t: model.apply({"params": p}, TOKENS, t, mode=Mode(True), method="run")
  )(params, decoded.tokens_BT[:, :-1])
  np.testing.assert_allclose(decoded.logits_BTV, logits, atol=1e-4)


def test_a_decoder_that_goes_back_never_went_on(tiny):
  model, params = tiny
  memory, state = jax.jit(
    lambda p: model.apply(
      {"params": p},
      method=lambda m: (memory := m.encode(TOKENS, mode=Mode(True)), m.start(memory, 6)),
    )
  )(params)
  extend = jax.jit(
    lambda t, state: model.apply({"params": params}, t, memory, state, method="extend")
  )
  first, draft, other = TOKENS[:, :1], TOKENS[:, 1:2], TOKENS[:, 2:3]
  _, state = extend(first, state)
  back = TINY.rewind(extend(draft, extend(draft, state)[1])[1], 1)
  np.testing.assert_array_equal(extend(other, back)[0], extend(other, state)[0])


def test_official_names_go_out_and_come_back(tiny):
  _, params = tiny
  stored = store_params(TINY, params)
  assert stored["encoder.block.1.delete_gate.feed_forward.weight"].shape == (1, 16)
  again = load_params(TINY, stored | {"encoder.embed_tokens.weight": stored["shared.weight"]})
  jax.tree.map(np.testing.assert_array_equal, again, dict(params))
  del stored["lm_head.weight"]
  with pytest.raises(WeightsError, match="missing lm_head.weight"):
    load_params(TINY, stored)


def test_fixed_deletion_of_a_row_does_not_depend_on_its_batch():
  alone = [fixed_deletion(row[None], 0.5, (1, 7))[0] for row in TOKENS]
  np.testing.assert_array_equal(fixed_deletion(TOKENS, 0.5, (1, 7)), np.stack(alone))


def test_impossible_settings_are_refused_with_a_remedy():
  with pytest.raises(ConfigError, match="outside the encoder"):
    dataclasses.replace(TINY, reduction=DeleteGateConfig(layer=2))
  with pytest.raises(ConfigError, match=r"0 or more, below 1"):
    Controller(1.0)
  with pytest.raises(ConfigError, match="has no bucket"):
    SequenceToSequence(capacities=())


def test_the_controller_moves_once_per_step_from_the_global_rate():
  from jaxlm.objectives.base import LossOutput, Pair

  objective = SequenceToSequence(controller=Controller(0.5, k_p=0.5, k_i=0.1))
  deleted = Pair(jnp.float32(20), jnp.float32(100))
  state = objective.update_state(
    objective.init_state(), LossOutput(deleted, {}, observed={"deleted": deleted})
  )
  np.testing.assert_allclose(float(state["alpha"]), 0.05 * 0.3 + 0.1 * 0.3, rtol=1e-5)


def test_the_controller_of_the_release_moves_after_every_micro_batch():
  """Its law applied twice, the second micro-batch weighed by the alpha after the first; the step
  counts once.
  """
  from jaxlm.objectives.base import LossOutput, Pair
  from jaxlm.training.step import accumulate

  objective = SequenceToSequence(controller=Controller(0.5, k_p=0.5, k_i=0.1, per_micro_batch=True))
  deleted_B = jnp.asarray([10.0, 40.0])  # of 100 each; micro-batch i holds row i

  def sums(w, batch, key, state):
    loss = w * state["alpha"] * 1000
    deleted = Pair(batch["deleted"].sum(), jnp.float32(100))
    return loss, LossOutput(Pair(loss, jnp.float32(1)), {}, observed={"deleted": deleted})

  gradient, output, state = accumulate(
    sums,
    jnp.float32(1),
    {"deleted": deleted_B},
    jax.random.key(0),
    2,
    objective.init_state(),
    objective.after_micro_batch,
  )
  first, p, i = objective.controller.update(0.0, 0.0, 0.1)
  second, p, i = objective.controller.update(p, i, 0.4)
  np.testing.assert_allclose(
    float(gradient), 1000 * float(first), rtol=1e-5
  )  # alpha was 0 in the first
  after = objective.update_state(state, output)
  np.testing.assert_allclose(
    [float(after[n]) for n in ("alpha", "p", "i")], [float(second), float(p), float(i)], rtol=1e-5
  )
  assert int(after["step"]) == 1
