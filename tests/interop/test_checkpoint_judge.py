"""A checkpoint folder with its tokenizer becomes a judge that says what the model said."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.checkpoint.weight_files import write_weights
from jaxlm.data.tokenizers.bpe import train_bpe
from jaxlm.interop import huggingface
from jaxlm.interop.judge import checkpoint_judge
from jaxlm.layers.attention import AttentionConfig
from jaxlm.layers.mlp import MLPConfig
from jaxlm.layers.norms import LayerNormConfig
from jaxlm.layers.positions.additive import Learned
from jaxlm.models.decoder import DecoderConfig


def test_a_gpt2_folder_judges_as_its_model_does(tmp_path):
  cfg = DecoderConfig(
    vocab_size=270,
    d_model=16,
    num_layers=1,
    mixer=AttentionConfig(2, use_bias=True),
    mlp=MLPConfig(d_ff=32, activation="gelu_tanh", use_bias=True),
    norm=LayerNormConfig(),
    position=Learned(32),
    tie_embeddings=True,
  )
  params = nn.unbox(cfg.build().init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"])
  config, state = huggingface.export(cfg, params)
  write_weights(tmp_path, state)
  (tmp_path / "config.json").write_text(json.dumps(config))
  tokenizer = train_bpe(["the cry of an ass, the cry of an owl"], 270)
  tokenizer.save(str(tmp_path / "tokenizer.json"))
  [found] = checkpoint_judge(tmp_path)(["the cry of an owl"])
  ids = np.asarray(tokenizer.encode("the cry of an owl").ids)
  start = tokenizer.token_to_id("<|endoftext|>")
  logits = cfg.build().apply({"params": params}, jnp.asarray([[start, *ids[:-1]]]))
  want = jax.nn.log_softmax(logits[0].astype(jnp.float32))[np.arange(len(ids)), ids]
  np.testing.assert_array_equal(found.tokens, ids)
  np.testing.assert_allclose(found.log_prob, want, atol=1e-5)
