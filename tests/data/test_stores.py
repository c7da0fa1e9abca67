"""Stores serve the text that is there now, each document on one side; they are made once and whole,
whoever makes them.
"""

import collections
import gzip
import hashlib
import json
import multiprocessing
import os
import shutil
import time

import numpy as np
import pytest

from jaxlm.data import DataError, digests, made_once
from jaxlm.data.passages import cut
from jaxlm.data.sources import open_corpus
from jaxlm.data.splits import SPLITS
from jaxlm.data.text import TextData


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXLM_DATA", str(tmp_path / "cache"))
  return tmp_path / "cache"


def config(source):
  return TextData(source=source, seq_len=8, batch_size=2)


def text(source, split):
  """What a store holds, separators left out."""
  tokens = np.asarray(config(source).store(split).tokens)
  return bytes(tokens[tokens < 256].astype(np.uint8)).decode()


def documents(source):
  """{document: the split it is in}."""
  corpus = open_corpus(source)
  found = {}
  for split in SPLITS:
    for document in corpus.documents(split):
      assert found.setdefault(document, split) == split  # copies stay together
  return found


def write(folder, names, what="document"):
  folder.mkdir(parents=True, exist_ok=True)
  for name in names:
    (folder / f"{name}.txt").write_text(f"{what} {name} " * 5)


def moved(before, after):
  return {
    document for document in before if document in after and after[document] != before[document]
  }


def test_a_file_moved_between_split_folders_is_read_where_it_is(tmp_path):
  source = f"text:{tmp_path}/{{split}}/*.txt"
  for split, names in (("train", "ab"), ("validation", "c"), ("test", "d")):
    write(tmp_path / split, names)
  assert "document b" in text(source, "train")
  for target in ("validation", "test", "train"):
    shutil.move(next(tmp_path.glob("*/b.txt")), tmp_path / target / "b.txt")
    assert [split for split in SPLITS if "document b" in text(source, split)] == [target]
  (tmp_path / "train" / "a.txt").rename(
    tmp_path / "train" / "z.txt"
  )  # another order is another store
  assert text(source, "train").index("document b") < text(source, "train").index("document a")


def test_no_change_of_other_files_names_folders_or_pattern_moves_a_document(tmp_path, monkeypatch):
  write(tmp_path / "many" / "a", [f"{i:03d}" for i in range(200)])
  source = f"text:{tmp_path}/many/**/*.txt"
  before = documents(source)
  assert set(before.values()) == set(SPLITS)
  write(tmp_path / "many", ["new"])
  assert not moved(before, documents(source))
  (tmp_path / "many" / "huge.txt").write_text("".join(f"{i:031d}" for i in range(1_000_000)))
  assert not moved(before, documents(source))
  (tmp_path / "many" / "huge.txt").unlink()
  for i in range(0, 200, 3):
    (tmp_path / "many" / "a" / f"{i:03d}.txt").rename(tmp_path / "many" / f"renamed {i}.txt")
  for i in range(1, 60, 3):
    (tmp_path / "many" / "a" / f"{i:03d}.txt").unlink()
  assert not moved(before, documents(source))
  monkeypatch.chdir(tmp_path)
  (tmp_path / "link").symlink_to(tmp_path / "many")
  for pattern in ("many/**/*.txt", "./many", str(tmp_path / "link")):
    assert not moved(before, documents(f"text:{pattern}"))


def test_few_files_are_cut_each_by_itself(tmp_path):
  def lines(name):
    return "".join(f"{name} line {i:04d}\n" for i in range(500))

  for name in "abc":
    (tmp_path / f"{name}.txt").write_text(lines(name))
  source = f"text:{tmp_path}/*.txt"
  before = {split: set(text(source, split).splitlines()) for split in SPLITS}
  (tmp_path / "0.txt").write_text(lines("0"))
  after = {split: set(text(source, split).splitlines()) for split in SPLITS}
  assert all(before[split] <= after[split] for split in SPLITS)
  assert not after["train"] & after["validation"] and not after["train"] & after["test"]


def test_a_book_is_cut_however_many_documents_come_beside_it(tmp_path):
  def lines(name):
    return "".join(f"{name} line {i:05d}\n" for i in range(5000))

  for name in ("b1", "b2"):
    (tmp_path / f"{name}.txt").write_text(lines(name))
  source = f"text:{tmp_path}/*.txt"

  def lines_of(split):
    return b"\n".join(open_corpus(source).documents(split)).splitlines()

  def of_books(split):
    return {line for line in lines_of(split) if line.startswith(b"b")}

  before = {split: of_books(split) for split in SPLITS}
  small = {}
  for count in (1, 30, 100):
    write(tmp_path, [f"{i:03d}" for i in range(count)])
    assert {split: of_books(split) for split in SPLITS} == before and all(before.values())
    sides = {d: side for d, side in documents(source).items() if d.startswith(b"document")}
    assert len(sides) == count and not moved(small, sides)  # whole, and where they were
    small = sides
  for name in ("b3", "b4"):
    (tmp_path / f"{name}.txt").write_text(lines(name))
  assert all(before[split] < of_books(split) for split in SPLITS) and not moved(
    small, documents(source)
  )


def test_a_file_of_two_splits_is_refused(tmp_path):
  for name in ("train", "validation", "test", "train_test"):
    (tmp_path / f"{name}.txt").write_text(name)
  with pytest.raises(
    DataError, match=r"train_test.txt is in the splits train and test; write a pattern"
  ):
    open_corpus(f"text:{tmp_path}/*{{split}}*.txt")
  (tmp_path / "train_test.txt").unlink()
  assert set(documents(f"text:{tmp_path}/*{{split}}*.txt")) == {b"train", b"validation", b"test"}


def test_copies_of_a_document_are_in_one_fold():
  texts = [b"a", b"b", b"a", b"c", b"b", b"a"]
  folds = [list(cut(iter(texts), "document", (k, 2))) for k in range(2)]
  assert not set(folds[0]) & set(folds[1]) and sorted(folds[0] + folds[1]) == sorted(texts)


def test_records_may_be_added_without_moving_one(tmp_path):
  from array_record.python import array_record_module

  def add(name, records):
    writer = array_record_module.ArrayRecordWriter(str(tmp_path / name), "group_size:100")
    for record in records:
      writer.write(record)
    writer.close()

  add("a.array_record", [b"record %d" % i for i in range(300)])
  source = f"array_record:{tmp_path}/*.array_record"
  before = documents(source)
  add(
    "b.array_record", [b"more %d" % i + b"x" * 100_000 for i in range(310)]
  )  # beyond 30 MB together
  assert len(before) == 300 and not moved(before, documents(source))


def test_a_file_is_hashed_once_however_often_it_is_opened_and_by_whom(tmp_path, monkeypatch, cache):
  count = collections.Counter()
  real = hashlib.file_digest

  def counting(file, kind):
    count[os.path.basename(file.name)] += 1
    return real(file, kind)

  monkeypatch.setattr(digests.hashlib, "file_digest", counting)
  for name, size in (("small", 1000), ("large", digests.LARGE + 1)):
    (tmp_path / f"{name}.txt").write_text("line\n" * (size // 5 + 1))
    os.utime(tmp_path / f"{name}.txt", (time.time() - 60,) * 2)
  source = f"text:{tmp_path}/*.txt"
  for _ in range(3):
    next(iter(config(source).build("train", seed=0)))
    config(source).store("validation")
  assert count == {"small.txt": 1, "large.txt": 1}
  (tmp_path / "fresh.txt").write_text("just written\n")
  for _ in range(3):
    open_corpus(source)
  assert count == {"small.txt": 1, "large.txt": 1, "fresh.txt": 1}
  (tmp_path / "fresh.txt").unlink()
  digests._known.clear()  # another process: large files are remembered in the data folder
  digests._read.clear()
  before = open_corpus(source).fingerprint
  assert count == {"small.txt": 2, "large.txt": 1, "fresh.txt": 1}
  (tmp_path / "large.txt").write_text("Line\n" * (digests.LARGE // 5 + 1))
  assert open_corpus(source).fingerprint != before and count["large.txt"] == 2
  (cache / "digests.json").write_text("[damaged")
  digests._known.clear()
  digests._read.clear()
  assert open_corpus(source).fingerprint != before


def test_a_change_in_the_same_instant_is_seen(tmp_path):
  path = tmp_path / "a.txt"
  for letter in "abc":
    path.write_text(letter * 1000)
    assert letter * 700 in text(f"text:{path}", "train")


def test_a_change_whose_time_is_put_back_is_seen(tmp_path):
  path = tmp_path / "a.txt"
  path.write_text("old\n" * 300_000)
  stat = path.stat()
  assert "old" in text(f"text:{path}", "train")
  path.write_text("new\n" * 300_000)
  os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
  assert "old" not in text(f"text:{path}", "train")


def test_what_another_process_has_hashed_is_kept(tmp_path, cache, monkeypatch):
  for name in "ab":
    (tmp_path / f"{name}.txt").write_text(f"{name}\n" * 600_000)
  monkeypatch.setattr(digests, "_known", {})
  digests.file_digest(tmp_path / "a.txt")
  digests._known.clear()  # another process that had read the list before it was written
  digests.file_digest(tmp_path / "b.txt")
  assert {os.path.basename(path) for path in json.loads((cache / "digests.json").read_text())} == {
    "a.txt",
    "b.txt",
  }


def test_a_lock_of_another_thread_is_not_ours_and_without_locks_nothing_is_removed(
  tmp_path, monkeypatch
):
  import threading

  (tmp_path / "s.part-1").mkdir()
  with made_once.locked(tmp_path / "s.lock"):
    thread = threading.Thread(target=made_once.remove_leftovers, args=(tmp_path,))
    thread.start()
    thread.join()
    assert (tmp_path / "s.part-1").is_dir()

  def refuse(*_):
    raise OSError("no locks here")

  monkeypatch.setattr(made_once.fcntl, "flock", refuse)
  made_once.made_once(tmp_path / "t", lambda part: (part / "data").write_bytes(b"x"))
  assert (tmp_path / "s.part-1").is_dir() and made_once.whole(tmp_path / "t")


def test_what_an_interrupted_process_left_is_removed_and_what_is_being_made_is_not(tmp_path, cache):
  (cache / "tokens").mkdir(parents=True)
  for name in ("0123.part77", "4567.part-abcd"):
    (cache / "tokens" / name).mkdir()
    (cache / "tokens" / name / "raw").write_bytes(b"left")
  (tmp_path / "a.txt").write_text("one line\n" * 100)
  with made_once.locked(cache / "tokens" / "4567.lock"):
    made_once._held.clear()  # as if another process held it
    config(f"text:{tmp_path}/a.txt").store("train")
    assert [p.name for p in (cache / "tokens").glob("*.part*")] == ["4567.part-abcd"]
  (tmp_path / "b.txt").write_text("another\n" * 100)
  config(f"text:{tmp_path}/b.txt").store("train")
  assert not list((cache / "tokens").glob("*.part*"))


@pytest.mark.parametrize("damage", ["truncated", "missing", "no list", "empty list", "empty"])
def test_a_damaged_store_is_made_again(tmp_path, damage):
  (tmp_path / "a.txt").write_text("one line\n" * 100)
  source = f"text:{tmp_path}/a.txt"
  want, folder = text(source, "train"), config(source).store("train").folder
  if damage == "truncated":
    os.truncate(folder / "tokens.npy", 100)
  elif damage == "missing":
    (folder / "starts.npy").unlink()
  elif damage.endswith("list"):
    (folder / "sizes.json").write_text("{" if damage == "no list" else "{}")
  else:
    shutil.rmtree(folder)
    folder.mkdir()
  assert text(source, "train") == want and made_once.whole(folder)
  assert not list(folder.parent.glob("*.part*"))


def _make(folder, started, number):
  def make(part):
    started.wait()
    (part / "data").write_bytes(bytes([number]) * 100_000)
    time.sleep(0.2)

  os.getpid = lambda: 7  # as in two containers
  made_once.made_once(folder, make)
  held = np.memmap(folder / "data", np.uint8, "r")
  time.sleep(0.3)  # the other one may finish meanwhile
  return int(held.sum()) % 100_000


def test_two_processes_of_one_number_make_a_folder_once(tmp_path):
  context = multiprocessing.get_context("fork")
  started, folder = context.Barrier(1), tmp_path / "tokens" / "store"
  processes = [context.Process(target=_make, args=(folder, started, n)) for n in (1, 2)]
  for process in processes:
    process.start()
  for process in processes:
    process.join(30)
  assert [p.exitcode for p in processes] == [0, 0]
  assert made_once.whole(folder) and len(set((folder / "data").read_bytes())) == 1
  assert sorted(p.name for p in folder.parent.iterdir()) == ["store", "store.lock"]


def test_a_cut_falls_between_characters(tmp_path):
  for word in ("漢字", "é", "😀 ", "naïve "):
    (tmp_path / "a.txt").write_text(word * 501)
    corpus = open_corpus(f"text:{tmp_path}/a.txt")
    pieces = [document.decode() for split in SPLITS for document in corpus.documents(split)]
    assert "".join(pieces) == word * 501 and all(pieces)


def test_a_byte_order_mark_is_no_text(tmp_path):
  (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + b"eins\n" * 100)
  assert "\ufeff" not in "".join(text(f"text:{tmp_path}/a.txt", split) for split in SPLITS)


@pytest.mark.parametrize(
  "raw, said",
  [
    ("text".encode("utf-16"), "UTF-16; convert it"),
    ("text".encode("utf-32"), "UTF-32; convert it"),
    ("text".encode("utf-16-le"), "UTF-16 without a mark"),
    (b"7z\xbc\xaf\x27\x1cx", "7z archive"),
    (b"a" + bytes(256) + b"ustar", "tar archive"),
    (gzip.compress(b"text"), "compressed by gzip; unpack it"),
    (b"\x28\xb5\x2f\xfdx", "zstd"),
    (b"PAR1xx", "Parquet"),
    (b"PK\x03\x04", "zip archive"),
    (b"BZh9", "bzip2"),
    (b'{"text": "a"}\n{"text": "b"}\n', r"JSON object in each line.*text:.*a\.txt#text"),
    (b"\xff\x00text", "not UTF-8"),
  ],
  ids=range(12),
)
def test_bytes_that_are_no_text_are_refused_with_what_they_are(tmp_path, raw, said):
  (tmp_path / "a.txt").write_bytes(raw)
  with pytest.raises(DataError, match=said):
    config(f"text:{tmp_path}/a.txt").store("train")


@pytest.mark.parametrize(
  "name", ["a.jsonl", "a.jsonl.gz", "a.txt#body", "a b.ndjson#body", "c#/a.jsonl", "a.json.gz#body"]
)
def test_json_lines_are_documents(tmp_path, name):
  file, _, column = name.partition("#")
  column = column or "text"
  if name.startswith("c#/"):
    (tmp_path / "c#").mkdir()
    file, column = name, "text"
  lines = "".join(
    json.dumps({"id": i, column: f"line {i} é"}) + "\n\n" for i in range(200)
  ).encode()
  (tmp_path / file).write_bytes(gzip.compress(lines) if file.endswith(".gz") else lines)
  found = documents(f"text:{tmp_path}/{name}")
  assert {d.decode() for d in found} == {f"line {i} é" for i in range(200)} and set(
    found.values()
  ) == set(SPLITS)


def test_json_lines_are_recognised_by_content_whatever_the_name_says(tmp_path):
  lines = "".join(json.dumps({"text": f"line {i}"}) + "\n" for i in range(200)).encode()
  (tmp_path / "packed.jsonl").write_bytes(gzip.compress(lines))
  (tmp_path / "unpacked.jsonl.gz").write_bytes(b"\xef\xbb\xbf" + lines)
  for name in ("packed.jsonl", "unpacked.jsonl.gz"):
    assert set(documents(f"text:{tmp_path}/{name}")) == {b"line %d" % i for i in range(200)}
  (tmp_path / "table.jsonl").write_bytes(b"PAR1xx")
  with pytest.raises(DataError, match="Parquet"):
    config(f"text:{tmp_path}/table.jsonl").store("train")


def test_columns_are_read_with_a_mark_in_front_and_line_separators_inside(tmp_path):
  from jaxlm.data.records import read_columns

  (tmp_path / "a.jsonl").write_bytes(
    b"\xef\xbb\xbf" + '{"text": "a\u2028b"}\n{"text": "c"}\n'.encode()
  )
  (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbftext,id\nx,1\n")
  assert read_columns(tmp_path / "a.jsonl", ["text"]) == [("a\u2028b",), ("c",)]
  assert read_columns(tmp_path / "a.csv", ["text"]) == [("x",)]
  (tmp_path / "b.jsonl").write_text('{"text": "a"}\n{"txt": "c"}\n')
  with pytest.raises(DataError, match="no column 'text'; did you mean 'txt'"):
    read_columns(tmp_path / "b.jsonl", ["text"])


def test_json_lines_that_cannot_be_read_name_line_and_column(tmp_path):
  path = tmp_path / "a.jsonl"
  for lines, column, said in (
    (['{"txt": "a"}'], "", r"line 1 has no column 'text' \(it has 'txt'\)"),
    (['{"text": "a"}', '{"text": 3}'], "", "line 2: column 'text' holds int"),
    (['{"text": "a"}', "oops"], "", "line 2 is not a JSON object"),
    (['{"text": "a"}'], "#body", "no column 'body'"),
  ):
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match=said):
      config(f"text:{path}{column}").store("train")
  (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 1000)[:-20])
  with pytest.raises(DataError, match="not a whole gzip file"):
    config(f"text:{tmp_path}/b.jsonl.gz").store("train")


def _example(**features):
  def field(number, value):
    size, out = len(value), b""
    while True:
      size, out = size >> 7, out + bytes([(size & 127) | (128 if size > 127 else 0)])
      if not size:
        return bytes([number << 3 | 2]) + out + value

  entries = b"".join(
    field(1, field(1, name.encode()) + field(2, field(kind, field(1, value))))
    for name, (kind, value) in features.items()
  )
  return field(1, entries)


def test_an_example_without_text_is_refused_and_its_feature_can_be_named(tmp_path):
  from array_record.python import array_record_module

  writer = array_record_module.ArrayRecordWriter(str(tmp_path / "a.array_record"), "group_size:1")
  for i in range(300):
    writer.write(_example(label=(3, b"\x01"), content=(1, b"text %d" % i)))
  writer.close()
  source = f"array_record:{tmp_path}/a.array_record"
  with pytest.raises(
    DataError, match=r"record 0 is a tf.train.Example without a feature 'text'; .*#label'"
  ):
    documents(source)
  assert set(documents(f"{source}#content")) == {b"text %d" % i for i in range(300)}
  with pytest.raises(DataError, match="feature 'label' holds numbers"):
    documents(f"{source}#label")
