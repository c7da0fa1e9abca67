"""A document is on one side and in one fold, in whatever form it comes and whatever comes beside
it.
"""

import gzip
import json
import shutil

import pytest

from jaxlm.data import DataError
from jaxlm.data.passages import PassageData
from jaxlm.data.sources import open_corpus
from jaxlm.data.splits import SPLITS


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXLM_DATA", str(tmp_path / "cache"))


def documents(source):
  """{document: the split it is in}."""
  corpus = open_corpus(source)
  found = {}
  for split in SPLITS:
    for document in corpus.documents(split):
      assert found.setdefault(document, split) == split  # copies stay together
  return found


def moved(before, after):
  return {
    document for document in before if document in after and after[document] != before[document]
  }


def write(folder, names, what="document"):
  folder.mkdir(parents=True, exist_ok=True)
  for name in names:
    (folder / f"{name}.txt").write_text(f"{what} {name} " * 5)


def lines_of(name, count=500):
  return "".join(f"{name} line {i:04d}\n" for i in range(count))


def lines(source, split):
  return set(b"".join(open_corpus(source).documents(split)).decode().splitlines())


def test_what_was_held_out_of_a_file_is_never_trained_on_when_the_corpus_grows(tmp_path):
  for name in ("one", "two", "three", "four", "five"):  # whatever their hashes are
    (tmp_path / f"{name}.txt").write_text(lines_of(name))
  for scheme in ("text", "bytes"):
    source = f"{scheme}:{tmp_path}/*.txt"
    before = {split: lines(source, split) for split in SPLITS}
    for i in range(120):
      (tmp_path / f"{i}.txt").write_text(f"document {i}\n")
    after = {split: lines(source, split) for split in SPLITS}
    assert all(before[split] <= after[split] for split in SPLITS)
    assert len(set().union(*after.values())) == 5 * 500 + 120 and not after["train"] & (
      after["validation"] | after["test"]
    )
    for i in range(120):
      (tmp_path / f"{i}.txt").unlink()


def test_a_text_is_on_one_side_as_a_file_as_a_line_and_as_a_record(tmp_path):
  write(tmp_path / "files", [f"{i:03d}" for i in range(200)])
  files = documents(f"text:{tmp_path}/files")
  rows = [document.decode() for document in files]
  (tmp_path / "files" / "more.jsonl").write_text(
    '{"text": "a line"}\n'
  )  # nothing beside it is read differently
  assert not moved(files, documents(f"text:{tmp_path}/files"))
  (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
  assert documents(f"text:{tmp_path}/a.jsonl") == files
  records(tmp_path / "a.array_record", [row.encode() for row in rows], 10)
  assert documents(f"array_record:{tmp_path}/a.array_record") == files
  for path in (tmp_path / "files").glob("*.txt"):
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
  (tmp_path / "files" / "more.jsonl").unlink()
  assert documents(f"text:{tmp_path}/files") == files


def test_one_file_may_be_two_held_out_splits_but_none_that_is_trained_on(tmp_path):
  (tmp_path / "train.txt").write_text("train")
  (tmp_path / "validation.txt").write_text("held out")
  (tmp_path / "test.txt").symlink_to(tmp_path / "validation.txt")
  source = f"text:{tmp_path}/{{split}}.txt"
  assert [list(open_corpus(source).documents(split)) for split in SPLITS] == [
    [b"train"],
    [b"held out"],
    [b"held out"],
  ]
  (tmp_path / "test.txt").unlink()
  (tmp_path / "test.txt").symlink_to(tmp_path / "train.txt")
  with pytest.raises(DataError, match="test.txt is in the splits train and test"):
    open_corpus(source)


def test_a_fold_keeps_its_documents_when_others_come_and_go(tmp_path):
  for split in SPLITS:
    write(tmp_path / split, [f"{i:02d}" for i in range(40)], split)

  def fold(k):
    return _passages(
      PassageData(f"text:{tmp_path}/{{split}}/*.txt", seq_len=256, batch_size=2, fold=(k, 2))
    )

  first, second = fold(0), fold(1)
  assert len(first) + len(second) == 40 and min(len(first), len(second)) > 10
  write(tmp_path / "train", ["!"], "new")
  assert first <= fold(0) and second <= fold(1) and not fold(0) & fold(1)
  shutil.copy(tmp_path / "train" / "00.txt", tmp_path / "train" / "copy.txt")
  (tmp_path / "train" / "01.txt").unlink()
  assert not fold(0) & second and not fold(1) & first


def _passages(data):
  found = data.passages("train")
  return {data.decode(found[i]) for i in range(len(found))}


def records(path, texts, group=1):
  from array_record.python import array_record_module

  writer = array_record_module.ArrayRecordWriter(str(path), f"group_size:{group}")
  for record in texts:
    writer.write(record)
  writer.close()


@pytest.mark.parametrize("group", [1, 1000, 65536])
def test_reading_records_decodes_each_group_once(tmp_path, monkeypatch, group):
  from array_record.python import array_record_module

  wanted = [b"record %d" % i for i in range(5000)]
  records(tmp_path / "a.array_record", wanted, group)
  decoded, inner = [0], array_record_module.ArrayRecordReader

  class Counting:
    def __init__(self, path, *options):
      self.inner = inner(path, *options)
      self.num_records, self.close = self.inner.num_records, self.inner.close

    def read(self, *where):
      """In sequence, or by indices: then every group that is touched is decoded."""
      decoded[0] += len({i // group for i in where[0]}) * min(group, len(wanted)) if where else 1
      return self.inner.read(*where)

  monkeypatch.setattr(array_record_module, "ArrayRecordReader", Counting)
  assert sorted(documents(f"array_record:{tmp_path}/a.array_record")) == sorted(wanted)
  assert decoded[0] == len(SPLITS) * len(wanted)


def test_a_column_is_read_through_gzip_by_content_and_a_name_may_hold_the_sign(tmp_path):
  lines = b"".join(b'{"body": "line %d"}\n' % i for i in range(100))
  (tmp_path / "packed.json").write_bytes(gzip.compress(lines))
  assert len(documents(f"text:{tmp_path}/packed.json#body")) == 100
  (tmp_path / "c#.jsonl").write_bytes(lines.replace(b"body", b"text"))
  for pattern in ("c#.jsonl", "c#*.jsonl", "c#.jsonl#text"):
    assert len(documents(f"text:{tmp_path}/{pattern}")) == 100, pattern
  (tmp_path / "z.jsonl").write_bytes(b"\x28\xb5\x2f\xfdxx")
  with pytest.raises(DataError, match="zstd"):
    documents(f"text:{tmp_path}/z.jsonl")
