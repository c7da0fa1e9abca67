"""Checkpoint folders: what is read, what is refused, and that bfloat16 survives."""

import builtins
import json

import ml_dtypes
import numpy as np
import pytest

from jaxlm.checkpoint.errors import CheckpointFileError
from jaxlm.checkpoint.weight_files import read_json, read_weights, write_weights

STATE = {
  "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
  "b": np.arange(4).astype(ml_dtypes.bfloat16),
  "c": np.float16([1, 2]),
}


def same(got, want=STATE):
  assert set(got) == set(want)
  for name in want:
    assert got[name].dtype == want[name].dtype and got[name].tobytes() == want[name].tobytes()


def test_one_file_and_shards_hold_the_same_arrays(tmp_path):
  assert [f.name for f in write_weights(tmp_path / "one", STATE)] == ["model.safetensors"]
  files = write_weights(tmp_path / "many", STATE, shard_bytes=30)
  assert [f.name for f in files] == [
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
  ]
  same(read_weights(tmp_path / "one"))
  same(read_weights(tmp_path / "many"))
  same(read_weights(tmp_path / "one" / "model.safetensors"))
  assert read_weights(tmp_path / "many").shape("a.weight") == (2, 3)


def test_torch_files_give_the_same_arrays(tmp_path):
  torch = pytest.importorskip("torch")

  def to_torch(a):
    return (
      torch.from_numpy(a.view(np.int16)).view(torch.bfloat16)
      if a.dtype == ml_dtypes.bfloat16
      else torch.from_numpy(a)
    )

  torch.save({k: to_torch(v) for k, v in STATE.items()}, tmp_path / "pytorch_model.bin")
  same(read_weights(tmp_path))
  torch.save({"state_dict": {k: to_torch(v) for k, v in STATE.items()}}, tmp_path / "last.pt")
  same(read_weights(tmp_path / "last.pt"))


def test_a_pickle_that_is_no_state_dict_is_refused_unexecuted(tmp_path):
  torch = pytest.importorskip("torch")
  torch.save({"a": "text"}, tmp_path / "x.pt")
  with pytest.raises(CheckpointFileError, match="not a state dict"):
    read_weights(tmp_path / "x.pt")
  (tmp_path / "y.pt").write_bytes(b"junk")
  with pytest.raises(CheckpointFileError, match="y.pt"):
    read_weights(tmp_path / "y.pt")


def test_without_torch_the_message_says_what_to_install(tmp_path, monkeypatch):
  (tmp_path / "pytorch_model.bin").write_bytes(b"")
  real = builtins.__import__
  monkeypatch.setattr(
    builtins,
    "__import__",
    lambda name, *args, **kwargs: (
      (_ for _ in ()).throw(ImportError(name)) if name == "torch" else real(name, *args, **kwargs)
    ),
  )
  with pytest.raises(CheckpointFileError, match=r"jaxlm\[bench\]"):
    read_weights(tmp_path)


def test_missing_and_damaged_files_are_named(tmp_path):
  with pytest.raises(CheckpointFileError, match="nowhere"):
    read_weights(tmp_path / "nowhere")
  (tmp_path / "README").write_text("")
  with pytest.raises(CheckpointFileError, match="found README"):
    read_weights(tmp_path)
  (tmp_path / "model.safetensors").write_bytes(b"12345678junk")
  with pytest.raises(CheckpointFileError, match="model.safetensors"):
    read_weights(tmp_path)
  with pytest.raises(CheckpointFileError, match="config.json does not exist"):
    read_json(tmp_path / "config.json")
  (tmp_path / "config.json").write_text("{")
  with pytest.raises(CheckpointFileError, match="config.json is not JSON"):
    read_json(tmp_path / "config.json")


def test_a_missing_shard_and_an_index_that_promises_too_much_are_named(tmp_path):
  files = write_weights(tmp_path, STATE, shard_bytes=30)
  index = json.loads(files[-1].read_text())
  files[-1].write_text(json.dumps({"weight_map": index["weight_map"] | {"d": files[0].name}}))
  with pytest.raises(CheckpointFileError, match="promises 'd'"):
    read_weights(tmp_path)
  files[0].unlink()
  with pytest.raises(CheckpointFileError, match="00001-of-00002.safetensors does not exist"):
    read_weights(tmp_path)
