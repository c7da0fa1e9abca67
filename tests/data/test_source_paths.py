"""Paths of data as people type them: literal names that look like patterns, folders, links, homes."""

import pytest

from jaxlm.data import DataError
from jaxlm.data.folders import data_dir
from jaxlm.data.sources import open_corpus
from jaxlm.data.tokenizers.bpe import BPEFileConfig
from jaxlm.paths import expand

SPLITS = ("train", "validation", "test")


def text_of(source):
  corpus = open_corpus(source)
  return b"".join(text for split in SPLITS for text in corpus.documents(split))


@pytest.fixture
def books(tmp_path):
  folder = tmp_path / "books [v2]"
  (folder / "more").mkdir(parents=True)
  (folder / "a[1].txt").write_text("one\n")
  (folder / "more" / "b.txt").write_text("two\n")
  return folder


@pytest.mark.parametrize(
  "rest, want",
  [
    ("a[1].txt", b"one\n"),
    ("*.txt", b"one\n"),
    ("**/*.txt", b"one\ntwo\n"),
    ("more/?.txt", b"two\n"),
    ("", b"one\ntwo\n"),
  ],
)
def test_a_path_that_exists_is_meant_as_it_is_written_and_a_folder_is_all_its_files(
  books, rest, want
):
  assert text_of(f"text:{books / rest}") == want and text_of(f"bytes:{books / rest}") == want


def test_a_folder_of_splits_is_read_by_split(tmp_path):
  for split in SPLITS:
    (tmp_path / f"{split} [v2]").mkdir()
    (tmp_path / f"{split} [v2]" / "a.txt").write_text(split)
  corpus = open_corpus(f"text:{tmp_path}/{{split}} [v2]")
  assert [list(corpus.documents(split)) for split in SPLITS] == [
    [split.encode()] for split in SPLITS
  ]


def test_a_folder_of_array_records_is_their_files_and_not_what_lies_beside_them(tmp_path):
  from array_record.python import array_record_module

  writer = array_record_module.ArrayRecordWriter(
    str(tmp_path / "c-train.array_record-00000-of-00001"), "group_size:1"
  )
  writer.write(b"text")
  writer.close()
  (tmp_path / "dataset_info.json").write_text("{}")
  assert text_of(f"array_record:{tmp_path}") == b"text"


def test_what_cannot_be_read_is_named(tmp_path, books):
  (tmp_path / "empty").mkdir()
  (books / "gone.txt").symlink_to(tmp_path / "nowhere")
  for rest, said in (
    ("empty", r"empty is a folder, and it holds no \*\*/\*"),
    ("no[v2].txt", "no file matches"),
    ("books [v2]/gone.txt", r"gone.txt is a link to .*nowhere, which does not exist"),
    ("books [v2]/*.txt", r"gone.txt is a link to .*nowhere, which does not exist; remove or mend"),
    ("books*", r"only folders .*; for the files in them write .*books\*/\*\*/\*"),
  ):
    with pytest.raises(DataError, match=said):
      open_corpus(f"text:{tmp_path / rest}")


def test_a_home_is_found_in_every_path_of_data(monkeypatch, tmp_path):
  from jaxlm.data.records import read_columns
  from jaxlm.data.scenes import find_folders
  from jaxlm.data.tasks.text_pairs import _file

  monkeypatch.setenv("HOME", str(tmp_path))
  monkeypatch.setenv("JAXLM_DATA", "~/cache")
  (tmp_path / "a.txt").write_text("words\n")
  (tmp_path / "rows.jsonl").write_text('{"a": 1}\n')
  (tmp_path / "scene").mkdir()
  (tmp_path / "scene" / "opencv_cameras.json").write_text("{}")
  assert (
    expand("~") == str(tmp_path)
    and expand("~/x") == str(tmp_path / "x")
    and data_dir() == tmp_path / "cache"
  )
  assert expand("gs://b/~x") == "gs://b/~x" and expand("a~") == "a~"
  assert text_of("text:~/a.txt") == b"words\n" and read_columns("~/rows.jsonl", ["a"]) == [(1,)]
  assert find_folders("~") == [tmp_path / "scene"] and _file("~", "a.txt") == tmp_path / "a.txt"
  with pytest.raises(DataError, match=f"{tmp_path}/none.json does not exist"):
    BPEFileConfig("~/none.json").load()


def test_without_a_home_the_remedy_is_named(monkeypatch):
  import pwd

  def unknown(uid):
    raise KeyError(uid)

  monkeypatch.delenv("HOME")
  monkeypatch.delenv("JAXLM_DATA")
  monkeypatch.setattr(pwd, "getpwuid", unknown)
  with pytest.raises(DataError, match="HOME is not set; set JAXLM_DATA to a folder"):
    data_dir()
  with pytest.raises(ValueError, match="no home folder is known, because HOME is not set"):
    open_corpus("text:~/a.txt")
  with pytest.raises(ValueError, match="there is no user 'nobody-here'"):
    expand("~nobody-here/x")
