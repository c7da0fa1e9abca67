"""Files of others: nothing outside their folder is read, nothing is executed, and what is damaged
is said.
"""

import io
import json
import os
import random
import tarfile
import zipfile

import pytest

from jaxlm.config import ConfigError
from jaxlm.data.errors import DataError
from jaxlm.data.prepare.packages import inside, unpack
from jaxlm.data.tokenizers.bpe import MOST_IDS, BPEFileConfig
from jaxlm.training.config import load_config, run_config


def archive(path, members):
  """A tar of {name: bytes, or the target of a symbolic link}."""
  with tarfile.open(path, "w:gz") as file:
    for name, content in members.items():
      info = tarfile.TarInfo(name)
      if isinstance(content, bytes):
        info.size = len(content)
        file.addfile(info, io.BytesIO(content))
      else:
        info.type, info.linkname = tarfile.SYMTYPE, content
        file.addfile(info)
  return path


def test_links_to_what_lies_elsewhere_are_not_unpacked(tmp_path):
  (tmp_path / "secret").write_text("secret")
  folder = tmp_path / "files"
  folder.mkdir()
  unpack(archive(tmp_path / "good.tar.gz", {"a.txt": b"a", "b.txt": "a.txt"}), folder)
  assert (folder / "b.txt").read_text() == "a"
  for target in ("/etc/passwd", "../secret"):
    try:
      unpack(archive(tmp_path / "bad.tar.gz", {"a.txt": b"a", "bad.txt": target}), folder)
    except DataError as error:
      assert "cannot be unpacked" in str(error)
    assert not os.path.lexists(folder / "bad.txt")
  os.symlink(tmp_path / "secret", folder / "later.txt")
  assert not inside(folder / "later.txt", folder) and inside(folder / "b.txt", folder)
  os.symlink(folder / "loop", folder / "loop")
  unpack(archive(tmp_path / "again.tar.gz", {"c.txt": b"c"}), folder)
  assert not os.path.lexists(folder / "later.txt") and not os.path.lexists(folder / "loop")


@pytest.mark.parametrize("name", ["x.whl", "x.zip", "x.tar.gz", "x.tgz", "x.tar.bz2", "x.tar.xz"])
def test_a_damaged_archive_is_a_sentence(tmp_path, name):
  good = tmp_path / "good"
  if name.endswith((".whl", ".zip")):
    with zipfile.ZipFile(good, "w", zipfile.ZIP_DEFLATED) as file:
      file.writestr("a", random.Random(0).randbytes(5000) * 3)
  else:
    with tarfile.open(good, f"w:{name.rpartition('.')[2].replace('tgz', 'gz')}") as file:
      info = tarfile.TarInfo("a")
      info.size = 50_000
      file.addfile(info, io.BytesIO(random.Random(0).randbytes(50_000)))
  whole = good.read_bytes()
  for number, damaged in enumerate(
    (b"", b"no archive", whole[: len(whole) // 2], whole[:40] + b"\xff" * 64 + whole[104:])
  ):
    folder = tmp_path / f"files{number}"
    folder.mkdir()
    (tmp_path / name).write_bytes(damaged)
    try:
      unpack(tmp_path / name, folder)
    except DataError as error:
      assert name in str(error) and "\n" not in str(error)
    else:
      assert (
        not damaged or number == 3
      )  # an empty tar is one; random bytes that changed are other bytes


def test_a_token_id_that_would_need_gigabytes_is_refused(tmp_path):
  path = tmp_path / "tokenizer.json"
  path.write_text(
    json.dumps(
      {
        "version": "1.0",
        "added_tokens": [],
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 10**9}, "merges": []},
      }
    )
  )
  with pytest.raises(
    DataError, match=f"token 'b' has the id 1,000,000,000; ids below {MOST_IDS:,} are read"
  ):
    BPEFileConfig(str(path)).load()


def test_a_json_file_is_a_configuration_that_is_only_data(tmp_path):
  import pathlib

  config = load_config(str(pathlib.Path(__file__).parents[2] / "configs/carope/tiny.py"))
  path = tmp_path / "config.json"
  path.write_text(config.to_json_best_effort())
  assert run_config(load_config(str(path), {"train.steps": 3})).train.steps == 3
  with pytest.raises(ConfigError, match="takes no argument"):
    load_config(f"{path}:x")
  path.write_text("[1]")
  with pytest.raises(ConfigError, match="wanted a dict"):
    load_config(str(path))


@pytest.mark.parametrize("kind", [{}, [], 3, None, True])
def test_a_kind_that_is_no_name_is_refused(kind):
  import pathlib

  config = load_config(str(pathlib.Path(__file__).parents[2] / "configs/carope/tiny.py")).to_dict()
  config["model"]["kind"] = kind
  with pytest.raises(ConfigError, match="model.kind = .* is not a model"):
    run_config(config)
