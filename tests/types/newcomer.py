"""What a newcomer types, for `make types`: mypy must know every name and find no error."""

import flax.linen as nn
import jax
import jax.numpy as jnp

import jaxlm
from jaxlm.analysis import record, sites
from jaxlm.checkpoint import Opened
from jaxlm.data import TextData, open_corpus
from jaxlm.data.tokenizers import ByteTokenizerConfig
from jaxlm.evaluation import evaluate_lengths, num_params
from jaxlm.generation import Sampling, engine_for
from jaxlm.kernels import attention, carope_rotate, ssd
from jaxlm.layers import MLP, Attention, AttentionConfig, CARoPE, LaCT, LaCTConfig, MLPConfig, RoPE
from jaxlm.models import DecoderConfig, HNetConfig, MaskedDiffusionConfig
from jaxlm.objectives import NextToken, Objective
from jaxlm.training import AdamW, Cosine, RunConfig, TrainConfig, train


class Mine(nn.Module):
  """A layer of this package in a module of one's own."""

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    y_BTD, _ = LaCT(LaCTConfig(num_heads=4, window=64), d_model=256)(x_BTD)
    z_BTD, _ = Attention(AttentionConfig(num_heads=4, position="carope"), d_model=256)(x_BTD)
    return MLP(MLPConfig(d_ff=512), d_model=256)(y_BTD + z_BTD)


def models() -> tuple[DecoderConfig, nn.Module]:
  config = DecoderConfig(
    vocab_size=257, d_model=64, num_layers=2, mixer=AttentionConfig(4), position=CARoPE()
  )
  whole = jaxlm.load_config("carope/tiny", {"model.d_model": 64})
  return config, jaxlm.build(whole)


def trained(folder: str) -> list[str]:
  result = jaxlm.train("carope/tiny", folder)
  opened: Opened = jaxlm.open_model(folder)
  config, params, data = opened
  engine = engine_for(config, data=data, sampling=Sampling(temperature=0.8))
  found = engine.generate(params, [[1, 2, 3]], max_new_tokens=8)
  assert result.finished and found.sequences
  evaluate_lengths(config, params, data, [64])
  record(config, params, {}, ["blocks/resid"])
  return [*map(str, sites(config))]


def ops(x_BTNH: jax.Array) -> jax.Array:
  return attention(x_BTNH, x_BTNH, x_BTNH)


NAMES = (
  TextData,
  open_corpus,
  ByteTokenizerConfig,
  num_params,
  carope_rotate,
  ssd,
  RoPE,
  HNetConfig,
  MaskedDiffusionConfig,
  NextToken,
  Objective,
  AdamW,
  Cosine,
  RunConfig,
  TrainConfig,
  train,
  jaxlm.register,
  jaxlm.run_config,
  jnp,
)
