"""A bucket that this account may not use is one sentence with the role that is missing."""

import errno
import re
import types

import jax
import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem

from jaxlm import cli
from jaxlm.checkpoint.errors import CheckpointError
from jaxlm.checkpoint.steps import Checkpoints
from jaxlm.paths import denied
from jaxlm.training.compilation_cache import keep_programs

ROLE = r"of Google: roles/storage\.objectUser"


class HttpError(Exception):
  """Of a client of an object store: no OSError."""

  code = 403


class ReadOnly(MemoryFileSystem):
  """A bucket in memory whose objects may be read."""

  store, pseudo_dirs = {}, [""]

  def _refuse(self, *args, **kwargs):
    raise HttpError("x@y does not have storage.objects.create access\nmore")

  makedirs = mkdir = pipe_file = cp_file = _refuse

  def _open(self, path, mode="rb", **kwargs):
    return self._refuse() if mode != "rb" else super()._open(path, mode, **kwargs)


@pytest.fixture
def read_only(monkeypatch):
  monkeypatch.setattr(
    epath.backend._FileSystemSpecBackend,
    "fs",
    lambda self, path: ReadOnly(skip_instance_cache=True),
  )


@pytest.mark.parametrize("command", ["train", "convert"])
def test_a_folder_that_may_not_be_written_to(command, read_only, tmp_path, capsys, write_run):
  words = ["train", "--config=configs/carope/tiny.py", "--workdir=gs://bucket/run"]
  if command == "convert":
    from flax.core import meta

    from jaxlm.models import base
    from jaxlm.training.config import load_config, resolved, run_config

    small = {"model.d_model": 8, "model.num_layers": 1, "model.mixer.num_heads": 2}
    cfg = run_config(load_config("configs/carope/tiny.py", small))
    params = meta.unbox(jax.jit(lambda: base.init(cfg.model, jax.random.key(0)))())
    run = write_run(tmp_path / "run", resolved(cfg), {1: params})
    words = ["convert", "--from", str(run), "--to", "gs://bucket/weights"]
  assert cli.main(words) == 2
  said = capsys.readouterr().err
  assert re.search(rf"does not have storage\.objects\.create access\).*{ROLE}", said), said
  assert "Traceback" not in said and "more\n" not in said


def test_a_checkpoint_that_may_not_be_written(tmp_path):
  refused = ValueError("PERMISSION_DENIED: Error writing gs://b/r/1: HTTP response code: 403")
  saved = types.SimpleNamespace(all_steps=lambda: [4], wait_until_finished=lambda: fail(refused))

  def fail(error):
    raise error

  with Checkpoints(tmp_path) as checkpoints:
    own, checkpoints.manager = checkpoints.manager, saved
    with pytest.raises(CheckpointError, match=rf"steps 4 are intact\. Give .*{ROLE}") as caught:
      checkpoints.wait()
    checkpoints.manager = own
  assert "disk" not in str(caught.value) and "Free space" not in str(caught.value)


def test_a_cache_that_may_not_be_written_is_a_warning(read_only, monkeypatch):
  monkeypatch.setenv("JAXLM_COMPILATION_CACHE", "gs://bucket/xla")
  before = jax.config.jax_compilation_cache_dir
  jax.config.update("jax_compilation_cache_dir", None)
  try:
    cache = keep_programs("gs://bucket/run")
  finally:
    jax.config.update("jax_compilation_cache_dir", before)
  assert cache.folder is None and "does not have storage.objects.create" in cache.warning


@pytest.mark.parametrize(
  "error, is_denied",
  [
    (OSError("Forbidden: https://storage/b/o/x\nno"), True),  # gcsfs
    (ValueError("PERMISSION_DENIED: Error reading"), True),  # tensorstore
    (OSError("Anonymous caller does not have storage.objects.get access"), True),
    (RuntimeError("Your default credentials were not found."), True),
    (PermissionError("Access Denied"), True),  # s3fs
    (PermissionError(errno.EACCES, "Permission denied", "/etc/shadow"), False),  # a disk
    (ValueError("shapes (403, 401) and (8, 8) do not match"), False),
    (RuntimeError("RESOURCE_EXHAUSTED"), False),
  ],
)
def test_other_errors_are_not_taken_for_it(error, is_denied):
  assert denied(error) == is_denied
