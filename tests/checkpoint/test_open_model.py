"""`jaxlm.open_model`: one reader of runs and weights, to whom every damage is damage."""

import json
import logging
import pathlib
import shutil

import jax
import numpy as np
import pytest

import jaxlm
from jaxlm.checkpoint import notes, weights_folder
from jaxlm.checkpoint.checksums import checksums, word_sums
from jaxlm.checkpoint.errors import CheckpointError, CheckpointFileError
from jaxlm.checkpoint.model_json import described
from jaxlm.config import ConfigError
from jaxlm.layers.attention import AttentionConfig
from jaxlm.models import base
from jaxlm.models.decoder import DecoderConfig
from jaxlm.parallel.mesh import MeshConfig, make_mesh

CFG = DecoderConfig(vocab_size=16, d_model=8, num_layers=1, mixer=AttentionConfig(num_heads=2))
DATA = {"kind": "mini", "tokenizer": {"kind": "bytes"}, "seq_len": 8, "batch_size": 2}


def parameters(scale):
  shapes = base.abstract_params(CFG)
  import flax.linen as nn

  leaves, tree = jax.tree.flatten(nn.unbox(shapes))
  rng = np.random.default_rng(0)
  return jax.tree.unflatten(
    tree, [scale * rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves]
  )


@pytest.fixture
def run(tmp_path, write_run):
  config = {"seed": 0, "model": described(CFG)}
  return write_run(tmp_path / "run", config, {step: parameters(step) for step in (1, 2, 3)})


def step_read(folder, caplog=None) -> int:
  opened = jaxlm.open_model(folder)
  jax.tree.map(np.testing.assert_array_equal, opened.params, parameters(opened.step))
  return opened.step


def change_note(run, step, **changes):
  file = run / "checkpoints" / str(step) / "note" / "metadata"
  note = json.loads(file.read_text())
  for name, value in changes.items():
    if value is None:
      del note[name]
    else:
      note[name] = value
  file.write_text(json.dumps(note))


def test_a_run_opens_to_its_config_parameters_and_data(run):
  config, params, data = jaxlm.open_model(run)
  assert config == CFG and data is None
  jax.tree.map(np.testing.assert_array_equal, params, parameters(3))
  assert jaxlm.open_model(run, step=2).source == f"{run}, step 2"


def test_parameters_are_sharded_over_a_mesh(run):
  mesh = make_mesh(MeshConfig(data=2, fsdp=4))
  opened = jaxlm.open_model(run, mesh=mesh)
  assert any(
    len(x.devices()) == 8 and not x.is_fully_replicated for x in jax.tree.leaves(opened.params)
  )
  jax.tree.map(np.testing.assert_array_equal, opened.params, parameters(3))


@pytest.mark.parametrize(
  "changes",
  [
    {"data": {"next_index": 7}},
    {"checksums": None},
    {"checksums": {}},
    {"digest": None},
    {"format": 1},
    {"format": "2"},
    {"bucket": 5},
    {"config": {"seed": 1}},
    {"format": 9},
  ],
  ids=str,
)
def test_a_changed_note_is_damage_and_the_step_before_is_read(run, caplog, changes):
  change_note(run, 3, **changes)
  with caplog.at_level(logging.WARNING, "jaxlm"):
    assert step_read(run) == 2
  assert "checkpoints/3 cannot be read" in caplog.text and "step 2 is read instead" in caplog.text
  with pytest.raises(CheckpointError, match=r"other steps: 1, 2"):
    jaxlm.open_model(run, step=3)


def test_any_flipped_bit_of_a_step_is_harmless_or_damage(run):
  rng = np.random.default_rng(1)
  files = sorted(
    f for f in (run / "checkpoints" / "3").rglob("*") if f.is_file() and f.stat().st_size
  )
  read = set()
  for _ in range(25):
    file = files[rng.integers(len(files))]
    good = file.read_bytes()
    bad = bytearray(good)
    bad[rng.integers(len(bad))] ^= 1 << rng.integers(8)
    file.write_bytes(bytes(bad))
    read.add(step_read(run))  # which compares the parameters with those of the step
    file.write_bytes(good)
  assert read <= {2, 3} and 2 in read


def test_all_steps_damaged_is_one_sentence(run):
  for step in (1, 2, 3):
    shutil.rmtree(run / "checkpoints" / str(step) / "state")
  with pytest.raises(CheckpointError, match="no checkpoint in .* can be read") as error:
    jaxlm.open_model(run)
  assert "\n" not in str(error.value)


def test_a_misspelt_run_is_answered_with_the_one_beside_it(run):
  with pytest.raises(ConfigError, match=f"it does not exist; did you mean '{run}'"):
    jaxlm.open_model(run.parent / f"{run.name}s")
  with pytest.raises(ConfigError, match="it does not exist; `jaxlm runs FOLDER` lists"):
    jaxlm.open_model(run.parent / "zzzzzz")


def test_a_model_opens_without_warnings(run, caplog):
  with caplog.at_level(logging.WARNING):
    jaxlm.open_model(run)
  assert not caplog.records


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"model": 3'])
def test_a_lost_or_damaged_config_is_taken_from_the_newest_note(run, text):
  (run / "config.json").unlink()
  if text is not None:
    (run / "config.json").write_text(text)
  assert jaxlm.open_model(run).config == CFG and step_read(run) == 3


def test_parameters_that_do_not_fit_another_model_are_a_sentence_not_damage(run):
  import dataclasses

  with pytest.raises(ConfigError, match=r"checkpoints/3 does not fit the model in \d+ parameters"):
    jaxlm.open_model(run, model=dataclasses.replace(CFG, d_model=16))


def test_what_is_no_model_is_said(tmp_path):
  with pytest.raises(ConfigError, match="does not exist"):
    jaxlm.open_model(tmp_path / "nothing")
  (tmp_path / "model.safetensors").write_bytes(b"")
  with pytest.raises(ConfigError, match="jaxlm convert --from hf"):
    jaxlm.open_model(tmp_path)


def test_steps_of_format_1_are_read_and_checked_by_their_sums(run):
  params = parameters(3)
  note = {"format": 1, "data": {}, "config": {"model": described(CFG)}, "bucket": 0}
  file = run / "checkpoints" / "3" / "note" / "metadata"
  file.write_text(json.dumps(note | {"checksums": word_sums({"params": params})}))
  assert step_read(run) == 3
  file.write_text(json.dumps(note | {"checksums": word_sums({"params": parameters(2)})}))
  assert step_read(run) == 2


def test_a_newer_format_is_not_damage(run):
  file = run / "checkpoints" / "3" / "note" / "metadata"
  file.write_text(json.dumps(notes.sealed({"format": notes.FORMAT + 1})))
  with pytest.raises(CheckpointError, match="use a newer one"):
    jaxlm.open_model(run)


def test_a_weights_folder_gives_its_parameters_or_no_others(tmp_path):
  rng = np.random.default_rng(2)
  weights_folder.save(tmp_path / "w", CFG, parameters(1))
  opened = jaxlm.open_model(tmp_path / "w")
  assert opened.config == CFG and opened.step is None and opened.tokenizer is None
  for file in [tmp_path / "w" / "model.json", tmp_path / "w" / "model.safetensors"] * 15:
    good = file.read_bytes()
    bad = bytearray(good)
    bad[rng.integers(len(bad))] ^= 1 << rng.integers(8)
    file.write_bytes(bytes(bad))
    try:
      model, params = weights_folder.load(tmp_path / "w")
    except (ConfigError, CheckpointFileError):
      pass
    else:  # white space, a digit of a number that means the same
      assert model == CFG
      jax.tree.map(np.testing.assert_array_equal, params, parameters(1))
    file.write_bytes(good)


def test_version_1_of_a_weights_folder_is_read(tmp_path):
  weights_folder.save(tmp_path, CFG, parameters(1))
  (tmp_path / "model.json").write_text(
    json.dumps({"format": "jaxlm weights", "version": 1, "model": described(CFG)})
  )
  assert jaxlm.open_model(tmp_path).config == CFG


def test_an_arrays_order_changes_its_checksum():
  x = np.arange(300_000, dtype=np.float32)
  assert (
    len(
      {
        checksums({"a": y})["a"]
        for y in (x, x[::-1].copy(), np.roll(x, 1), x.reshape(2, -1).T.copy())
      }
    )
    == 4
  )
  assert word_sums({"a": x}) == word_sums({"a": x[::-1].copy()})  # why format 1 was left


def test_an_index_reaches_nothing_outside_its_folder(tmp_path):
  from jaxlm.checkpoint.weight_files import read_weights

  for file in (
    "../x.safetensors",
    "/etc/passwd",
    "a/b.safetensors",
    "..",
    "",
    None,
    3,
    [],
    "a\0b",
    "x" * 5000,
  ):
    index = {"weight_map": {"a": file}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointFileError):
      read_weights(tmp_path)
  for text in ("[" * 100_000, "{}", "null", '{"weight_map": 1}', '{"weight_map": {}}', "\xff"):
    (tmp_path / "model.safetensors.index.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointFileError):
      read_weights(pathlib.Path(tmp_path))
