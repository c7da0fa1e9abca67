"""What the loaders return, NumPy arrays and all, is what `apply` of every registered model takes,
without jit.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlm
from jaxlm.checkpoint import weights_folder
from jaxlm.checkpoint.model_json import described
from jaxlm.layers.attention import AttentionConfig
from jaxlm.layers.delete_gate import DeleteGateConfig
from jaxlm.layers.mamba2 import Mamba2Config
from jaxlm.layers.positions.rope import RoPE
from jaxlm.models import MODELS, base
from jaxlm.models.decoder import DecoderConfig
from jaxlm.models.encoder_decoder import EncoderDecoderConfig
from jaxlm.models.hnet import HNetConfig, StageConfig
from jaxlm.models.insertion import InsertionConfig
from jaxlm.models.lact_nvs import NVSConfig
from jaxlm.models.masked_diffusion import MaskedDiffusionConfig
from jaxlm.models.skip_decoder import SkipDecoderConfig

ATTENTION, MAMBA = AttentionConfig(2), Mamba2Config(d_state=4, head_dim=8)
T5 = dict(
  vocab_size=20,
  d_model=16,
  d_ff=24,
  num_heads=2,
  d_kv=8,
  num_encoder_layers=2,
  num_decoder_layers=2,
)
SMALL = {
  "decoder": DecoderConfig(20, 16, 2, ATTENTION, position=RoPE()),
  "skip_decoder": SkipDecoderConfig(20, 16, 2, ATTENTION, position=RoPE()),
  "decoder, Mamba-2": DecoderConfig(20, 16, 2, MAMBA, mlp=None, tie_embeddings=False),
  "encoder_decoder": EncoderDecoderConfig(**T5),
  "encoder_decoder, gate": EncoderDecoderConfig(**T5, reduction=DeleteGateConfig(1), softmax1=True),
  "encoder_decoder, absolute": EncoderDecoderConfig(**T5, max_positions=16, tie_embeddings=True),
  "insertion": InsertionConfig(
    vocab_size=20, d_model=16, num_layers=2, mixer=AttentionConfig(2, causal=False), position=RoPE()
  ),
  "masked_diffusion": MaskedDiffusionConfig(
    vocab_size=20, d_model=16, num_layers=2, num_heads=2, position=RoPE()
  ),
  "hnet": HNetConfig(
    layout=["m1", ["T1"], "m1"],
    vocab_size=20,
    stages=(StageConfig(16, 0, ATTENTION, MAMBA), StageConfig(24, 32, ATTENTION, MAMBA)),
  ),
  "lact_nvs": NVSConfig(d_model=16, num_layers=2, patch=4, head_dim=8, expansion=1.0, muon_steps=1),
}


def drawn(cfg):
  """Arguments of the model's example batch."""
  rng = np.random.default_rng(0)
  arguments = cfg.inputs(
    {k: jax.ShapeDtypeStruct(x.shape, x.dtype) for k, x in cfg.example().items()}
  )
  return jax.tree.map(
    lambda x: jnp.asarray(
      rng.integers(1, 20, x.shape) if x.dtype == jnp.int32 else rng.random(x.shape), x.dtype
    ),
    arguments,
  )


def outputs(cfg, params, compile=lambda fn: fn):
  return jax.tree.leaves(compile(cfg.build().apply)({"params": params}, *drawn(cfg)))


def test_every_registered_model_is_here():
  registered = {
    kind for kind, target in MODELS.table.items() if target.startswith("jaxlm.")
  }  # other tests add their own
  assert {MODELS.kind_of(cfg) for cfg in SMALL.values()} == registered


@pytest.mark.parametrize("name", SMALL)
def test_apply_takes_what_the_loaders_return(tmp_path, name, write_run):
  cfg = SMALL[name]
  params = jax.tree.map(np.asarray, nn.unbox(jax.jit(lambda: base.init(cfg, jax.random.key(0)))()))
  want = outputs(cfg, params, jax.jit)
  weights_folder.save(tmp_path / "w", cfg, params)
  model, loaded = weights_folder.load(tmp_path / "w")
  assert model == cfg
  for got, expected in zip(outputs(model, loaded), want, strict=True):
    np.testing.assert_allclose(
      got, expected, atol=1e-4, rtol=1e-4
    )  # operations are not fused without jit

  run = write_run(tmp_path / "run", {"model": described(cfg)}, {3: params})
  for folder, step in ((run, 3), (tmp_path / "w", None)):
    opened = jaxlm.open_model(folder)
    assert (opened.config, opened.step, opened.data) == (cfg, step, None)
    jax.tree.map(np.testing.assert_array_equal, opened.params, loaded)


@pytest.mark.slow
def test_a_t5_from_a_folder_decodes_step_by_step(tmp_path):
  cfg = SMALL["encoder_decoder"]
  weights_folder.save(tmp_path, cfg, nn.unbox(base.init(cfg, jax.random.key(0))))
  _, params = weights_folder.load(tmp_path)
  model, tokens = cfg.build(), jnp.asarray([[3, 4, 5, 1]])

  def apply(*args, **options):
    return model.apply({"params": params}, *args, **options)

  memory = apply(tokens, method="encode")
  state, steps = apply(memory, 3, method="start"), []
  for token in (0, 7, 2):
    logits, state = apply(jnp.asarray([[token]]), memory, state, method="extend")
    steps.append(logits)
  np.testing.assert_allclose(
    np.concatenate(steps, 1), apply(tokens, jnp.asarray([[0, 7, 2]])), atol=1e-5
  )
