"""What a newcomer types: imports by the natural name, layers alone, kinds as strings, own parts."""

import dataclasses
import importlib
import json
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlm
from jaxlm import outside, parts
from jaxlm.config import ConfigError, Kinds
from jaxlm.layers.mixer import MIXERS, Context
from jaxlm.models import MODELS
from jaxlm.training.config import load_config, plain, resolved, run_config

IMPORTS = (
  "from jaxlm import open_model, load_config, build, register, train",
  "from jaxlm.models import DecoderConfig, HNetConfig, EncoderDecoderConfig, InsertionConfig, NVSConfig",
  "from jaxlm.models import Decoder, HNet, EncoderDecoder",
  "from jaxlm.layers import LaCT, CARoPE, RoPE, ALiBi, Attention, Mamba2, GLA, DeltaRule, MLP, RMSNorm",
  "from jaxlm.layers import LaCTConfig, AttentionConfig, Mamba2Config, MLPConfig, LexinvariantConfig",
  "from jaxlm.kernels import ssd, attention, gla, delta_rule, newton_schulz, linear_cross_entropy",
  "from jaxlm.objectives import NextToken, Insertion, MaskedDiffusion, SequenceToSequence",
  "from jaxlm.data import TextData, open_corpus; from jaxlm.data.tokenizers import ByteTokenizerConfig",
  "from jaxlm.training import train, TrainConfig, AdamW, Muon, Cosine",
  "from jaxlm.generation import engine_for, Sampling",
  "from jaxlm.evaluation import evaluate_lengths; from jaxlm.analysis import record, sites, Edit",
  "from jaxlm.checkpoint import open_model",
)


@pytest.mark.parametrize("line", IMPORTS)
def test_the_natural_import_works(line):
  exec(line, {})


def test_import_jaxlm_imports_no_library():
  code = "import sys, jaxlm; print(sorted({'jax', 'flax', 'numpy'} & set(sys.modules)), dir(jaxlm))"
  said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
  assert said.startswith("[]") and "open_model" in said


@pytest.mark.parametrize(
  "package",
  "jaxlm jaxlm.models jaxlm.layers jaxlm.objectives jaxlm.data jaxlm.training jaxlm.kernels".split(),
)
def test_every_name_of_a_package_is_there_and_a_wrong_one_is_not(package):
  module = importlib.import_module(package)
  assert all(getattr(module, name) is not None for name in module.__all__)
  with pytest.raises(AttributeError, match="has no attribute 'Nothing_of_it'"):
    _ = module.Nothing_of_it


def test_every_class_of_a_table_of_parts_can_be_imported_from_its_package():
  for kinds, package in ((MODELS, "jaxlm.models"), (MIXERS, "jaxlm.layers")):
    module = importlib.import_module(package)
    for target in kinds.table.values():
      if target.startswith("jaxlm."):
        assert target.split(":")[1] in dir(module), target


def test_an_operation_is_called_by_its_package_and_its_modules_stay_inside():
  import jaxlm.kernels.ssd.reference as as_module
  from jaxlm.kernels import attention, ssd
  from jaxlm.kernels.ssd import reference
  from jaxlm.kernels.ssd.api import ssd as function

  assert ssd.reference is reference is as_module and ssd.ssd is function
  x = jax.random.normal(jax.random.key(0), (1, 4, 2, 8))
  by_package, by_function = jax.jit(attention)(x, x, x), attention.attention(x, x, x)
  np.testing.assert_allclose(by_package, by_function, atol=1e-6)
  with pytest.raises(TypeError, match="missing"):
    ssd()


#: The smallest of each mixer that stands alone.
ALONE = {
  "attention": dict(num_heads=2, position="carope"),
  "lact": dict(num_heads=2, window=4, position="rope", fast=dict(num_heads=2, chunk=4)),
  "mamba2": dict(head_dim=8, d_state=4),
  "gla": dict(num_heads=2),
  "delta_rule": dict(num_heads=2),
  "gated_delta_rule": dict(num_heads=2),
  "hybrid": dict(members=[dict(kind="attention", num_heads=2), dict(kind="gla", num_heads=2)]),
}


class Mine(nn.Module):
  """A layer in somebody's own module."""

  mixer: object

  @nn.compact
  def __call__(self, x_BTD, context=None, state=None):
    layer = self.mixer.build(x_BTD.shape[-1], "float32", "layer")
    return layer(x_BTD, state=state) if context is None else layer(x_BTD, context, state)


@pytest.mark.parametrize("kind", ALONE)
def test_a_layer_alone_needs_no_context(kind):
  mixer = MIXERS.build(dict(kind=kind) | ALONE[kind])
  x_BTD = jax.ShapeDtypeStruct((2, 6, 16), jnp.float32)
  key = jax.eval_shape(lambda: jax.random.key(0))
  (y_BTD, state), _ = jax.eval_shape(
    lambda key, x: Mine(mixer).init_with_output(key, x), key, x_BTD
  )
  assert y_BTD.shape == (2, 6, 16) and state is None


@pytest.mark.parametrize("kind", ["attention", pytest.param("lact", marks=pytest.mark.slow)])
def test_a_layer_alone_is_the_layer_with_a_whole_context_and_streams(kind):
  layer = MIXERS.build(dict(kind=kind) | ALONE[kind])
  x_BTD = jax.random.normal(jax.random.key(1), (2, 6, 16))
  module = Mine(layer)

  @jax.jit
  def both(x_BTD):
    variables = module.init(jax.random.key(0), x_BTD)
    ids_BT, positions_BT = jnp.ones((2, 6), jnp.int32), jnp.arange(6)[None].repeat(2, 0)
    alone_BTD, _ = module.apply(variables, x_BTD)
    whole_BTD, _ = module.apply(variables, x_BTD, Context(ids_BT, positions_BT))
    state = layer.init_state(16, 2, 6, "float32")
    one_BTD, state = module.apply(variables, x_BTD[:, :4], state=state)
    two_BTD, _ = module.apply(variables, x_BTD[:, 4:], state=state)
    return alone_BTD, whole_BTD, jnp.concatenate([one_BTD, two_BTD], 1)

  alone_BTD, whole_BTD, streamed_BTD = both(x_BTD)
  np.testing.assert_allclose(alone_BTD, whole_BTD, atol=1e-6)
  np.testing.assert_allclose(streamed_BTD, alone_BTD, atol=1e-5)


def test_parts_are_written_in_python_as_in_a_configuration():
  from jaxlm.layers import AttentionConfig, CARoPE, LayerNormConfig, MLPConfig
  from jaxlm.models import DecoderConfig

  given = DecoderConfig(
    16, 32, 2, dict(kind="attention", num_heads=2), dict(d_ff=64), "layer", position="carope"
  )
  assert given == DecoderConfig(
    16, 32, 2, AttentionConfig(2), MLPConfig(d_ff=64), LayerNormConfig(), position=CARoPE()
  )
  with pytest.raises(ConfigError, match="position.kind = 'crope' is not a position; did you mean"):
    DecoderConfig(16, 32, 2, AttentionConfig(2), position="crope")


def test_build_takes_a_run_a_model_or_a_name():
  from jaxlm.models import Decoder, DecoderConfig

  config = jaxlm.load_config("carope/tiny", {"model.d_model": 64})
  whole = jaxlm.build(config)
  model = plain(config)["model"]
  for other in (run_config(config), model, MODELS.build(model)):
    assert jaxlm.build(other) == whole
  assert isinstance(jaxlm.build("carope/tiny"), Decoder)
  assert isinstance(whole.cfg, DecoderConfig) and whole.cfg.d_model == 64
  with pytest.raises(ConfigError, match="RoPE is no configuration of a model"):
    from jaxlm.layers import RoPE

    jaxlm.build(RoPE())


PART = """
import dataclasses
from jaxlm.layers import Position

@dataclasses.dataclass(frozen=True)
class Nothing(Position):
  strength: float = 1.0
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
  """A package `theirs` on the path, that nobody has installed, imported or trusted."""
  (tmp_path / "theirs").mkdir()
  (tmp_path / "theirs" / "__init__.py").write_text("")
  (tmp_path / "theirs" / "parts.py").write_text(PART)
  monkeypatch.syspath_prepend(str(tmp_path))
  monkeypatch.setattr(outside, "_trusted", set())
  yield tmp_path
  for name in [name for name in sys.modules if name.split(".")[0] == "theirs"]:
    del sys.modules[name]


KIND = "theirs.parts:Nothing"


def test_a_configuration_names_a_class_of_any_package(package):
  cfg = run_config(
    load_config("carope/tiny", {"model.position": KIND, "model.position.strength": 2})
  )
  assert type(cfg.model.position).__name__ == "Nothing" and cfg.model.position.strength == 2.0
  again = resolved(cfg)
  assert again["model"]["position"] == {"kind": KIND, "strength": 2.0}
  assert run_config(again) == cfg


def test_a_file_of_data_imports_no_package_that_the_user_has_not_named(package, monkeypatch):
  (package / "theirs" / "parts.py").write_text(PART + f"open({str(package / 'ran')!r}, 'w')")
  mapping = resolved(run_config(load_config("carope/tiny")))
  mapping["model"]["position"] = KIND
  (package / "config.json").write_text(json.dumps(mapping))
  with pytest.raises(ConfigError, match="is not installed, and to import it .* JAXLM_PARTS=theirs"):
    run_config(load_config(package / "config.json"))
  assert not (package / "ran").exists()
  monkeypatch.setenv("JAXLM_PARTS", "theirs")
  assert run_config(load_config(package / "config.json")).model.position.strength == 1.0


@pytest.mark.parametrize(
  "kind, said",
  [
    ("theirs.nothing:X", "module 'theirs.nothing' cannot be imported"),
    ("theirs.parts:Nothin", "module 'theirs.parts' has no 'Nothin'"),
    ("theirs.parts:dataclasses", "wanted a frozen dataclass"),
  ],
)
def test_a_class_that_is_not_there_is_a_sentence(package, kind, said):
  with pytest.raises(ConfigError, match=said):
    run_config(load_config("carope/tiny", {"model.position": kind}))


def test_an_entry_point_is_a_kind(package, monkeypatch):
  monkeypatch.setattr(
    outside, "entry_points", lambda what: {"nothing": KIND} if what == "position" else {}
  )
  cfg = run_config(load_config("carope/tiny", {"model.position": "nothing"}))
  assert cfg.model.position.strength == 1.0
  assert resolved(cfg)["model"]["position"]["kind"] == "nothing"


def test_the_groups_of_entry_points_are_read_from_installed_packages(tmp_path, monkeypatch):
  info = tmp_path / "theirs-1.0.dist-info"
  info.mkdir()
  (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
  (info / "entry_points.txt").write_text(f"[jaxlm.rope_scaling]\nnothing = {KIND}\n")
  monkeypatch.syspath_prepend(str(tmp_path))
  outside.entry_points.cache_clear()
  assert outside.entry_points("RoPE scaling") == {"nothing": KIND}
  outside.entry_points.cache_clear()


@dataclasses.dataclass(frozen=True)
class Registered:
  """A mixer's config, for the test below."""


def test_register_adds_a_part_and_refuses_a_name_that_is_taken(monkeypatch):
  monkeypatch.setattr(MIXERS, "table", dict(MIXERS.table))
  assert jaxlm.register("mixer", "mine")(Registered) is Registered
  assert isinstance(MIXERS.build({"kind": "mine"}), Registered)
  jaxlm.register("mixer", "mine", f"{__name__}:Registered")  # the same again
  with pytest.raises(
    ConfigError, match="mixer 'attention' is jaxlm.layers.attention:AttentionConfig already"
  ):
    jaxlm.register("mixer", "attention", Registered)
  with pytest.raises(ConfigError, match="no table of parts 'mixr'; did you mean 'mixer'"):
    jaxlm.register("mixr", "mine", Registered)


def test_the_list_of_tables_is_complete():
  from test_ranges import tables

  assert {id(kinds.table) for kinds in tables()} == {id(parts.table(n).table) for n in parts.TABLES}
  assert all(isinstance(parts.table(noun), Kinds) for noun in parts.TABLES)
  assert all(parts.table(noun).what == noun for noun in parts.TABLES)
