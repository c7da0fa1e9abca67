"""Refilled rows, deterministic passes and beams give what they must."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.generation import Sampling
from jaxlm.generation.base import Prompt
from jaxlm.generation.engine import step
from jaxlm.generation.engine.beam import Beam
from jaxlm.generation.engine.continuous import Continuous
from jaxlm.generation.left_to_right import LeftToRight
from tests.generation.engine import toys

PROMPTS = [[3, 1, 4, 1, 5], [2, 7], [9, 8, 7, 6, 5, 4, 3, 2], [1], [5, 5], [10, 2, 3]]


@pytest.fixture(scope="module")
def model():
  return toys.model()


def test_refilled_rows_draw_the_tokens_of_whole_batches(model):
  config, params = model
  sampling, stops = Sampling(temperature=0.9), (3, 8)
  want = LeftToRight(config, sampling, stops).generate(params, PROMPTS, 12, seed=2).answers
  heard = {row: [] for row in range(len(PROMPTS))}
  engine = Continuous(config, sampling, stops, tokens_per_dispatch=4)
  got = engine.generate(
    params, PROMPTS, 12, batch_size=2, seed=2, on_tokens=lambda row, new: heard[row].extend(new)
  )
  assert [a.tolist() for a in got.answers] == [a.tolist() for a in want]
  assert [heard[row] for row in range(len(PROMPTS))] == [a.tolist() for a in want]
  assert len({len(a) for a in want}) > 2  # ragged


def test_a_deterministic_pass_has_the_same_bits_whatever_is_beside_a_row_and_however_it_is_cut(
  model,
):
  config, params = model
  tokens_BT = jnp.asarray(np.random.default_rng(0).integers(0, 12, (3, 4)), jnp.int32)

  def run(rows, cuts):
    state, out = config.init_state(len(rows), 64), []
    for piece in jnp.split(tokens_BT[rows], cuts, axis=1):
      valid = jnp.ones(piece.shape, jnp.int32)
      logits, state = step.extend(config, params, piece, state, valid, deterministic=True)
      out.append(logits)
    return np.asarray(jnp.concatenate(out, axis=1))

  together = run(np.arange(3), [])
  np.testing.assert_array_equal(run(np.array([1]), [1])[0], together[1])
  at_once = toys.whole(params, tokens_BT, config)
  np.testing.assert_allclose(together, at_once, atol=2e-4)  # float32, logits near 10


def brute_force(config, params, prompt, length):
  wanted = toys.distribution(config, params, prompt, length)
  return list(max(wanted, key=wanted.get))


def test_a_beam_as_wide_as_the_tree_finds_the_most_probable_text():
  config, params = toys.model(vocab_size=4, d_model=8, scale=4)
  engine = Beam(config, num_beams=16)
  assert engine.generate(params, [[1, 2]], 3).answers[0].tolist() == brute_force(
    config, params, [1, 2], 3
  )


@pytest.mark.slow
@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
def test_beams_are_those_of_hugging_face(early_stopping, length_penalty):
  """The same weights in both: a small Llama."""
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  from jaxlm.interop.huggingface import import_params, read_config

  torch.manual_seed(0)
  theirs = transformers.LlamaForCausalLM(
    transformers.LlamaConfig(
      vocab_size=20,
      hidden_size=16,
      intermediate_size=32,
      num_hidden_layers=2,
      num_attention_heads=2,
      initializer_range=0.7,
      eos_token_id=3,
      pad_token_id=0,
      bos_token_id=1,
    )
  ).eval()
  fields = theirs.config.to_diff_dict() | {"architectures": ["LlamaForCausalLM"]}
  config = read_config(fields)
  params = import_params(fields, {k: v.numpy() for k, v in theirs.state_dict().items()}, cfg=config)
  engine = Beam(config, (3,), 3, length_penalty, early_stopping)
  for prompt in PROMPTS[:4]:
    want = theirs.generate(
      torch.tensor([prompt]),
      num_beams=3,
      max_new_tokens=8,
      do_sample=False,
      length_penalty=length_penalty,
      early_stopping=early_stopping,
    )[0, len(prompt) :].tolist()
    want = want[: want.index(3)] if 3 in want else want
    assert engine.generate(params, [prompt], 8).answers[0].tolist() == want


def test_prompts_are_padded_to_a_cut_last_piece_or_to_whole_ones():
  def width(longest, **settings):
    prompts = [Prompt([1] * longest), Prompt([2])]
    return step.padded(prompts, np.asarray([longest, 1]), **settings).shape[1]

  assert [width(n) for n in (1, 8, 9, 32, 33, 64, 65, 100, 128)] == [
    8,
    8,
    16,
    32,
    64,
    64,
    72,
    128,
    128,
  ]
  assert [width(n, whole=True) for n in (1, 64, 65)] == [64, 64, 128]
