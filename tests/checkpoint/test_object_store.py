"""Weights and runs in an object store are read and written as on a disk, by `open_model` and by
`jaxlm convert`.
"""

import jax
import numpy as np
import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem

import jaxlm
from jaxlm.checkpoint import weights_folder
from jaxlm.interop import convert
from jaxlm.layers.attention import AttentionConfig
from jaxlm.models import base
from jaxlm.models.decoder import DecoderConfig

CFG = DecoderConfig(vocab_size=16, d_model=8, num_layers=1, mixer=AttentionConfig(num_heads=2))


@pytest.fixture(autouse=True)
def store(monkeypatch):
  class Store(MemoryFileSystem):
    """gs:// in memory."""

    store, pseudo_dirs = {}, [""]

  monkeypatch.setattr(
    epath.backend._FileSystemSpecBackend, "fs", lambda self, path: Store(skip_instance_cache=True)
  )


def test_a_weights_folder_is_written_to_and_read_from_a_bucket(tmp_path, capsys):
  import flax.linen as nn

  params = jax.jit(lambda: nn.unbox(base.init(CFG, jax.random.key(0))))()
  weights_folder.save("gs://bucket/w", CFG, params)
  opened = jaxlm.open_model("gs://bucket/w")
  assert opened.config == CFG and opened.source == "gs://bucket/w"
  jax.tree.map(np.testing.assert_array_equal, opened.params, params)

  assert (
    convert.main(["--from", "gs://bucket/w", "--to", "gs://bucket/half", "--dtype", "bfloat16"])
    == 0
  )
  assert {path.name for path in epath.Path("gs://bucket/half").iterdir()} == {
    "model.json",
    "model.safetensors",
  }
  assert convert.main(["--from", "gs://bucket/half", "--to", str(tmp_path / "local")]) == 0
  assert {str(x.dtype) for x in weights_folder.read_arrays(tmp_path / "local").values()} == {
    "bfloat16"
  }
  assert convert.main(["--from", "gs://bucket/none", "--to", str(tmp_path / "x")]) == 2
  assert "gs://bucket/none is not a run folder: it does not exist" in capsys.readouterr().err
  assert sorted(path.name for path in tmp_path.iterdir()) == [
    "local"
  ]  # nothing is left of the temporary folders
