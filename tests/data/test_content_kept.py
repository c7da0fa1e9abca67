"""What is remembered of files is what they hold: digests, folders that are made once, positions in
a corpus.
"""

import fcntl
import hashlib
import json
import os
import threading
import time

import pytest

from jaxlm.data import DataError
from jaxlm.data.scenes import SceneData
from jaxlm.data.tasks.text_pairs import SpellingData


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXLM_DATA", str(tmp_path / "cache"))


def test_without_a_data_folder_a_large_file_is_hashed_all_the_same(tmp_path, monkeypatch):
  from jaxlm.data import digests

  def none(*_):
    raise DataError("HOME is not set")

  monkeypatch.setattr(digests, "data_dir", none)
  (tmp_path / "a.txt").write_bytes(b"x" * (digests.LARGE + 1))
  os.utime(tmp_path / "a.txt", (1e9, 1e9))
  assert (
    digests.file_digest(tmp_path / "a.txt")
    == hashlib.sha256(b"x" * (digests.LARGE + 1)).hexdigest()
  )


def test_threads_make_a_folder_once_and_where_there_are_no_locks_a_folder_is_made_too(
  tmp_path, monkeypatch
):
  from jaxlm.data import made_once

  made, folder = [], tmp_path / "tokens" / "store"

  def make(part):
    made.append(part)
    time.sleep(0.1)
    (part / "data").write_bytes(b"x")

  threads = [threading.Thread(target=made_once.made_once, args=(folder, make)) for _ in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(made) == 1 and made_once.whole(folder)

  def unsupported(*_):
    raise OSError(95, "Operation not supported")

  monkeypatch.setattr(fcntl, "flock", unsupported)
  (tmp_path / "tokens" / "other.part-1").mkdir()
  made_once.made_once(tmp_path / "tokens" / "second", make)
  assert (tmp_path / "tokens" / "other.part-1").is_dir() and made_once.whole(
    tmp_path / "tokens" / "second"
  )


def test_a_saved_position_is_refused_on_other_pairs(tmp_path):
  (tmp_path / "wrong.txt").write_text(
    "".join(f"{w} {w}x {w[:-1]}\n" for w in ("whale", "ship", "captain", "ocean", "water"))
  )
  data = SpellingData(
    batch_size=1, misspellings=f"text:{tmp_path}/wrong.txt", contexts="mini:moby_dick"
  )
  batches, before = iter(data.build("train", seed=0)), data.pairs("train", 0)
  next(batches)
  position = batches.get_state()
  (tmp_path / "wrong.txt").write_text(
    (tmp_path / "wrong.txt").read_text().replace("captainx", "captainy")
  )
  assert data.pairs("train", 0) != before and len(data.pairs("train", 0)) == len(before)
  with pytest.raises(ValueError, match="data"):
    iter(data.build("train", seed=0)).set_state(position)


def test_a_saved_position_is_refused_on_a_file_of_other_puzzles(tmp_path):
  from jaxlm.data.tasks.zebra import WORDS, ZebraData

  def row(word):
    return json.dumps({"clues": f"{word} {WORDS[8]}", "answer": WORDS[9]}) + "\n"

  (tmp_path / "train.jsonl").write_text(row(WORDS[7]) * 4)
  data = ZebraData(batch_size=1, path=f"{tmp_path}/{{split}}.jsonl", seq_len=32)
  batches = iter(data.build("train", seed=0))
  next(batches)
  position = batches.get_state()
  iter(data.build("train", seed=0)).set_state(position)
  (tmp_path / "train.jsonl").write_text(row(WORDS[10]) * 4)
  with pytest.raises(ValueError, match="data"):
    iter(data.build("train", seed=0)).set_state(position)


def test_a_saved_position_is_refused_on_other_scenes(tmp_path):
  frame = {"file_path": "a.png", "w2c": [], "fx": 1, "fy": 1, "cx": 1, "cy": 1}
  for name in "bc":
    (tmp_path / name).mkdir()
    (tmp_path / name / "opencv_cameras.json").write_text(json.dumps({"frames": [frame]}))
  data = SceneData(batch_size=1, source=str(tmp_path))
  position = iter(data.build("train", seed=0)).get_state()
  iter(data.build("train", seed=0)).set_state(position)
  (tmp_path / "b" / "opencv_cameras.json").write_text(json.dumps({"frames": [frame, frame]}))
  with pytest.raises(ValueError, match="data"):
    iter(data.build("train", seed=0)).set_state(position)
