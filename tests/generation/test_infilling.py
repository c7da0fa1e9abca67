"""Filling gaps: what was left stays in its order, new tokens stand in the gaps alone, and nobody is
told how many.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config import ConfigError
from jaxlm.data.infilling import Gapped
from jaxlm.data.passages import NAMES
from jaxlm.data.special_tokens import SpecialTokens
from jaxlm.generation.answers import Answering
from jaxlm.generation.infilling import infill
from jaxlm.layers.attention import AttentionConfig
from jaxlm.layers.positions.rope import RoPE
from jaxlm.models.decoder import DecoderConfig
from jaxlm.models.insertion import InsertionConfig
from jaxlm.models.masked_diffusion import MaskedDiffusionConfig

IDS = SpecialTokens.after(10, NAMES)
DECODER = DecoderConfig(vocab_size=15, d_model=16, num_layers=1, mixer=AttentionConfig(2))
EXAMPLES = [
  Gapped(np.asarray([1, 2, 3, 4, 5, 6], np.int32), np.asarray(r, bool))
  for r in ([0, 1, 1, 0, 0, 0], [1, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 1])
]


def test_insertion_fills_the_gaps_only():
  cfg = InsertionConfig(
    vocab_size=15, d_model=16, num_layers=1, mixer=AttentionConfig(2, causal=False), position=RoPE()
  )
  params = cfg.build().init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
  out = infill(
    cfg,
    params,
    "insertion",
    IDS,
    EXAMPLES,
    Answering(max_len=12, batch_size=3, stop_threshold=0.999),
  )
  for example, found in zip(EXAMPLES, out):
    left, gaps = example.left, np.flatnonzero(np.diff(np.concatenate([[0], example.removed])) == 1)
    before = [int((~example.removed[:g]).sum()) for g in gaps]  # survivors in front of each gap
    # An untrained model inserts until the row is full: its survivors are a subsequence with closed
    # neighbours together.
    assert len(found) == 10 and max(found) < IDS.cls
    pieces = [left[a:b] for a, b in zip([0, *before], [*before, len(left)])]
    text, at = found.tolist(), 0
    for i, piece in enumerate(p.tolist() for p in pieces):
      while piece and text[at : at + len(piece)] != piece:
        assert i > 0  # nothing stands in front of the first piece unless there is a gap
        at += 1
      at += len(piece)


def test_unmasking_keeps_what_is_left_and_the_length():
  cfg = MaskedDiffusionConfig(vocab_size=15, d_model=16, num_layers=1, num_heads=2, d_cond=8)
  params = cfg.build().init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32), jnp.zeros(1))["params"]
  out = infill(
    cfg,
    params,
    "masked_diffusion",
    IDS,
    EXAMPLES,
    Answering(max_len=8, batch_size=3, order="confidence"),
  )
  for example, found in zip(EXAMPLES, out):
    assert len(found) <= 6 and set(example.left) <= set(found.tolist())
  with pytest.raises(ConfigError, match="exceeds max_len = 6"):
    infill(cfg, params, "masked_diffusion", IDS, EXAMPLES, Answering(max_len=6))


def test_a_model_from_left_to_right_is_refused():
  with pytest.raises(ConfigError, match="'infilling' decodes models that score inserted_tokens or"):
    infill(DECODER, None, "causal", IDS, EXAMPLES, Answering(max_len=8))
