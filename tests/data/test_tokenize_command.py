"""`jaxlm data tokenize` and `check`, and what they say to wrong requests."""

import pathlib

import pytest

from jaxlm.data.command import main

CONFIG = f"--config={pathlib.Path(__file__).parents[2]}/configs/carope/tiny.py"


def test_a_store_is_made_once_and_checked(tmp_path, capsys):
  words = ["tokenize", CONFIG, f"--out={tmp_path}/a", "--processes=1", "--shards=2", "--quiet"]
  assert main(words) == 0
  assert "4 shards made here" in capsys.readouterr().out
  assert main(words) == 0
  assert "made here" not in capsys.readouterr().out
  assert main(["check", f"{tmp_path}/a"]) == 0
  shard = tmp_path / "a" / "test" / "00000-of-00001.tokens"
  shard.write_bytes(bytes([shard.read_bytes()[0] ^ 1]) + shard.read_bytes()[1:])
  assert main(["check", f"store:{tmp_path}/a"]) == 1
  assert "does not have the checksum that it was written with" in capsys.readouterr().out


@pytest.mark.parametrize(
  "words, said",
  [
    ([CONFIG], "--out is missing; for example"),
    (["--out=a"], "no configuration"),
    ([CONFIG, "--out=a", "--host=3", "--hosts=2"], "--host=3 is not below --hosts=2"),
    ([CONFIG, "--out=a", "--shards=0"], "--shards=0: wanted 1 or more"),
    ([CONFIG.replace("carope/tiny", "ilm/star_easy"), "--out=a"], "only data.kind = 'text'"),
    ([CONFIG, "--out=a", "--config.data.source=store:b"], "holds tokens and no text"),
    ([CONFIG, "--out=/proc/jaxlm/a", "--processes=1"], "cannot be made; choose another path"),
    ([CONFIG, "--out=nosuch://b/a", "--processes=1"], "no package is known that reads nosuch://"),
  ],
)
def test_a_wrong_request_is_answered_with_the_right_one(words, said, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  assert main(["tokenize", *words]) == 2
  error = capsys.readouterr().err
  assert said in error and error.count("\n") == 1
  assert not list(tmp_path.iterdir())
