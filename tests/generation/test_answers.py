"""Answers of all four forms from a configuration, on the task whose answers are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config import ConfigError
from jaxlm.data.passages import NAMES
from jaxlm.data.special_tokens import SpecialTokens
from jaxlm.experiments.answers import scores
from jaxlm.generation.answers import Answering
from jaxlm.models.masked_diffusion import MaskedDiffusionConfig
from jaxlm.training.config import load_config, run_config

IDS = SpecialTokens.after(10, NAMES)
DIFFUSION = MaskedDiffusionConfig(vocab_size=15, d_model=16, num_layers=1, num_heads=2, d_cond=8)
TINY = {
  "model.d_model": 16,
  "model.num_layers": 1,
  "model.mlp.d_ff": 32,
  "data.batch_size": 4,
  "data.rows": 16,
}


@pytest.mark.parametrize(
  "form", ["insertion", "insertion_transformer", "causal", "masked_diffusion"]
)
def test_every_form_keeps_its_prompts_and_answers_within_the_length(form):
  heads = "model.num_heads" if form == "masked_diffusion" else "model.mixer.num_heads"
  cfg = run_config(load_config(f"configs/ilm/star_easy.py:{form}", TINY | {heads: 2}))
  batch = next(iter(cfg.data.build("train", seed=0)))
  batch["tokens"] = jnp.asarray(batch["tokens"])
  sigma = (jnp.zeros(4),) if form == "masked_diffusion" else ()
  params = jax.jit(cfg.model.build().init)(jax.random.key(0), batch["tokens"], *sigma)["params"]
  problems = cfg.data.problems("test", seed=0, number=3)
  prompts, lengths = [p for p, _ in problems], [len(a) for _, a in problems]
  found = Answering(max_len=36, batch_size=2).answer(
    cfg.model, params, form, cfg.data.special_tokens, prompts, lengths
  )
  assert len(found.sequences) == 3 and 0 < found.tokens_per_pass <= (
    8 if form == "masked_diffusion" else 1
  )
  ids = cfg.data.special_tokens
  for prompt, sequence in zip(prompts, found.sequences):
    np.testing.assert_array_equal(sequence[: len(prompt)], prompt)
    assert (
      len(sequence) <= 36
      and not np.isin(sequence[len(prompt) :], [ids.pad, ids.mask, ids.eos]).any()
    )
  assert found.new_tokens == sum(len(s) - len(p) for s, p in zip(found.sequences, prompts))


def test_masked_diffusion_has_to_be_told_lengths():
  with pytest.raises(ConfigError, match="say how long each answer is"):
    Answering(max_len=8).answer(DIFFUSION, None, "masked_diffusion", IDS, [[1]])


def test_an_answer_that_is_longer_or_shorter_is_not_an_exact_match_and_a_missing_place_is_wrong():
  found = [np.asarray(x, np.int32) for x in ([1, 2], [1, 2, 3], [1])]
  assert scores(found, [found[0]] * 3, pad=9) == {"exact_match": 1 / 3, "token_accuracy": 2.5 / 3}


def test_prompts_of_different_lengths_fit_a_table_of_learned_positions():
  position = {"model.position": dict(kind="learned", max_len=40), "model.mixer.num_heads": 2}
  cfg = run_config(load_config("configs/ilm/star_easy.py:causal", TINY | position))
  params = jax.jit(cfg.model.build().init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))[
    "params"
  ]
  prompts = [np.arange(1, 5), np.arange(1, 20)]
  found = (
    Answering(max_len=36, batch_size=2)
    .answer(cfg.model, params, "causal", cfg.data.special_tokens, prompts)
    .sequences
  )
  assert all(len(p) <= len(f) <= 36 for p, f in zip(prompts, found))
