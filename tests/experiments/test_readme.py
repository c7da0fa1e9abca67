"""What README.md and docs/howto/own_part.md tell a newcomer to do is done here."""

import dataclasses
import pathlib
import re
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.config import build
from jaxlm.layers.positions import POSITIONS, NoPosition
from jaxlm.models.decoder import DecoderConfig

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
OWN_PART = (ROOT / "docs" / "howto" / "own_part.md").read_text()


def test_the_example_of_a_new_position_encoding_trains_and_decodes(monkeypatch):
  [code] = [
    block
    for block in re.findall(r"```python\n(.*?)```", OWN_PART, re.DOTALL)
    if "(Position)" in block
  ]
  [(name, module, cls)] = re.findall(r'`"(\w+)": "([\w.]+):(\w+)"`', OWN_PART)
  written = types.ModuleType(module)
  monkeypatch.setitem(sys.modules, module, written)
  exec(compile(code, module, "exec"), written.__dict__)
  monkeypatch.setitem(POSITIONS.table, name, f"{module}:{cls}")
  config = build(
    DecoderConfig,
    dict(
      vocab_size=32,
      d_model=16,
      num_layers=2,
      mixer=dict(kind="attention", num_heads=2),
      position=dict(kind=name, scale=8.0),
    ),
  )
  assert dataclasses.asdict(config.position)["scale"] == 8.0
  tokens = jax.random.randint(jax.random.key(0), (2, 12), 0, 32)
  variables = jax.jit(config.build().init)(jax.random.key(1), tokens)
  whole = jax.jit(config.build().apply)(variables, tokens)
  without = dataclasses.replace(config, position=NoPosition())
  assert not np.allclose(whole, jax.jit(without.build().apply)(variables, tokens), atol=1e-4)
  extend = jax.jit(
    lambda piece, state: config.build().apply(variables, piece, state, method="extend")
  )
  state, pieces = config.init_state(2, 12), []
  for piece in jnp.split(tokens, 2, axis=1):
    logits, state = extend(piece, state)
    pieces.append(logits)
  np.testing.assert_allclose(np.concatenate(pieces, 1), whole, atol=1e-5)


def test_every_path_in_the_readme_exists():
  paths = re.findall(r"\]\(([\w./-]+)\)", README) + re.findall(r"--config=(\S+\.py)", README)
  paths += re.findall(r"jaxlm verify (\S+)", README)
  assert len(paths) > 5
  assert not [p for p in paths if not (ROOT / p).exists()]
