"""The contract of decoding engines: which serves which model, what is refused, and rows that do not
depend on their batch."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest

from jaxlm.config import ConfigError
from jaxlm.data.passages import NAMES, PassageData
from jaxlm.data.special_tokens import SpecialTokens
from jaxlm.data.text import TextData
from jaxlm.generation import ENGINES, Engine, Prompt, Sampling, engine_for
from jaxlm.generation.base import Options, engine_class
from jaxlm.generation.encoder_decoder import EncoderDecoderEngine
from jaxlm.generation.insertion import InsertionSampling
from jaxlm.generation.left_to_right import LeftToRight
from jaxlm.generation.masked_diffusion import MaskedDiffusionEngine
from jaxlm.layers.attention import AttentionConfig
from jaxlm.layers.mamba2 import Mamba2Config
from jaxlm.layers.positions.rope import RoPE
from jaxlm.models.base import init
from jaxlm.models.decoder import DecoderConfig
from jaxlm.models.encoder_decoder import EncoderDecoderConfig
from jaxlm.models.hnet import HNetConfig, StageConfig
from jaxlm.models.insertion import InsertionConfig
from jaxlm.models.lact_nvs import NVSConfig
from jaxlm.models.masked_diffusion import MaskedDiffusionConfig

IDS = SpecialTokens.after(10, NAMES)
TINY = dict(vocab_size=15, d_model=16, num_layers=1, position=RoPE())
DECODER = DecoderConfig(mixer=AttentionConfig(2), **TINY)
INSERTION = InsertionConfig(mixer=AttentionConfig(2, causal=False), **TINY)
DIFFUSION = MaskedDiffusionConfig(num_heads=2, d_cond=8, **TINY)
PAIR = EncoderDecoderConfig(40, 16, 24, 2, 8, 1, 1)
HNET = HNetConfig("m1 [m1] m1", (StageConfig(16, mamba=Mamba2Config(d_state=8, head_dim=8)),) * 2)


@pytest.mark.parametrize(
  ("model", "name"),
  [
    (DECODER, "left_to_right"),
    (HNET, "left_to_right"),
    (PAIR, "encoder_decoder"),
    (INSERTION, "insertion"),
    (dataclasses.replace(INSERTION, stop_head=False), "insertion_transformer"),
    (DIFFUSION, "masked_diffusion"),
  ],
)
def test_every_model_has_a_default_engine(model, name):
  assert engine_class(model) is ENGINES.cls(name)


def test_data_decide_between_two_engines_of_one_model_and_name_the_special_ids():
  def data(form):
    return PassageData(source="mini:en", seq_len=64, batch_size=2, form=form)

  for form in ("insertion", "insertion_transformer", "masked_diffusion"):
    model = DIFFUSION if form == "masked_diffusion" else INSERTION
    engine = engine_for(model, data=data(form))
    assert engine.form == form and engine.ids == data(form).special_tokens
  assert engine_for(DECODER, data=data("causal")).stops == (data("causal").special_tokens.eos,)
  bytes_ = TextData(source="mini:en", seq_len=8, batch_size=1)
  assert engine_for(DECODER, data=bytes_).stops == tuple(bytes_.load_tokenizer().stops)


@pytest.mark.parametrize("name", ENGINES.table)
def test_an_engine_is_static_and_refuses_other_models_with_both_named(name):
  cls = ENGINES.cls(name)
  assert issubclass(cls, Engine) and dataclasses.fields(cls)[0].name == "model"
  wrong = DIFFUSION if "masked_tokens" not in cls.scores else DECODER
  with pytest.raises(ConfigError) as error:
    required = {"ids": IDS, "mask": 3}
    engine_for(wrong, name, **{k: v for k, v in required.items() if k in cls.__dataclass_fields__})
  said = str(error.value)
  assert f"engine {name!r} decodes models that score {cls.scores[0]}" in said
  assert f"scores {wrong.scores}; engines of this model: " in said
  assert "models of this engine: " in said and "models of this engine: none" not in said


@pytest.mark.parametrize(
  ("make", "said"),
  [
    (lambda: engine_for(DECODER, "left_to_write"), "did you mean 'left_to_right'"),
    (lambda: engine_for(NVSConfig(d_model=64)), "scores views: no decoding engine serves it"),
    (lambda: engine_for(DECODER, stopps=(1,)), "did you mean 'stops'"),
    (
      lambda: engine_for(dataclasses.replace(INSERTION, stop_head=False), "insertion", ids=IDS),
      "'insertion' has no stop head; engines of this model: insertion_transformer, infilling",
    ),
    (
      lambda: LeftToRight.from_options(Options(slot_top_k=1)),
      "--slot_top_k=1: engine 'left_to_right' has no such choice",
    ),
    (
      lambda: ENGINES.cls("insertion_transformer").from_options(Options(stop_threshold=0.5)),
      "--stop_threshold=0.5: engine 'insertion_transformer'",
    ),
    (lambda: LeftToRight(DECODER).generate({}, [[1]], 0), "max_new_tokens = 0: wanted 1 or more"),
    (lambda: LeftToRight(DECODER).generate({}, [[1, 2]], 5, max_len=1), "exceeds max_len = 1"),
    (
      lambda: MaskedDiffusionEngine(DIFFUSION, IDS).generate({}, [[1]], 5),
      "say how long each answer is",
    ),
    (
      lambda: MaskedDiffusionEngine(DIFFUSION, IDS).generate({}, [Prompt([1], num_new=9)], 5),
      "9 to be filled in exceed the 6 that the row may hold",
    ),
    (
      lambda: ENGINES.cls("infilling")(DIFFUSION, IDS).generate({}, [[1]], 5),
      "prompt 0 has no gap",
    ),
  ],
)
def test_what_cannot_be_meant_is_refused_in_one_sentence(make, said):
  with pytest.raises(ConfigError) as error:
    make()
  assert said in str(error.value)


def test_infilling_passes_a_command_s_choices_on_to_the_engine_that_fills():
  data = PassageData(source="mini:en", seq_len=64, batch_size=2, form="masked_diffusion")
  engine = ENGINES.cls("infilling").from_command(DIFFUSION, data, Options(temperature=0.5))
  assert engine.through == MaskedDiffusionEngine(
    DIFFUSION, data.special_tokens, unmasking=Sampling(0.5)
  )


WARM = Sampling(temperature=1.5)
ENGINES_TO_RUN = {
  "left_to_right": LeftToRight(DECODER, WARM, stops=(3,)),
  "encoder_decoder": EncoderDecoderEngine(PAIR, WARM),
  "insertion": engine_for(
    INSERTION, ids=IDS, stop_threshold=0.999, insertion=InsertionSampling(WARM, Sampling())
  ),
  "masked_diffusion": MaskedDiffusionEngine(DIFFUSION, IDS, unmasking=WARM),
}
PROMPTS = [
  Prompt([7, 1, 4], num_new=6),
  Prompt([2, *[5, 1] * 16], num_new=3),
  Prompt([4, 4], None, 9),
]


@pytest.mark.parametrize("name", ENGINES_TO_RUN)
def test_the_tokens_of_a_row_do_not_depend_on_its_batch(name):
  engine = ENGINES_TO_RUN[name]
  params = nn.unbox(jax.jit(lambda: init(engine.model, jax.random.key(0)))())
  params = jax.tree.map(lambda x: 4 * x if x.ndim > 1 else x, params)  # logits that are not flat
  found = engine.generate(params, PROMPTS, 9, max_len=42, seed=1)
  assert len({tuple(a) for a in found.answers}) == 3 and 0 < found.new_tokens <= 27
  in_twos = engine.generate(params, PROMPTS, 9, max_len=42, seed=1, batch_size=2)  # one filled up
  for one, two in zip(found.sequences, in_twos.sequences, strict=True):
    np.testing.assert_array_equal(one, two)
  assert found.passes <= in_twos.passes <= in_twos.row_passes
  if name in ("left_to_right", "insertion"):  # they show a row while it is decoded
    *before, last = engine.watch(params, PROMPTS[0], 9, seed=1)
    assert last.final and list(last.sequence) == found.sequences[0].tolist()
    assert len(before) == found.rows[0].num_new and not any(shot.final for shot in before)
