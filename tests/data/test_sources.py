"""Documents come from anywhere, land on one side, and stay there."""

import collections
import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from jaxlm.data import DATA, DataError, mini
from jaxlm.data.records import read_columns
from jaxlm.data.sources import open_corpus
from jaxlm.data.splits import SPLITS, cut_by_position, split_documents, split_of


def all_of(corpus):
  return {split: list(corpus.documents(split)) for split in SPLITS}


def write_records(path, records):
  from array_record.python import array_record_module

  writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
  for record in records:
    writer.write(record)
  writer.close()


def test_sides_are_those_of_the_rule():
  counts = collections.Counter(split_of(f"doc-{i}", small=True) for i in range(4000))
  assert 150 < counts["test"] < 250 and 150 < counts["validation"] < 250
  assert all(
    split_of(f"doc-{i}", small=True) == "test"
    for i in range(4000)
    if split_of(f"doc-{i}", small=False) != "train"
  )
  assert split_of("abc", small=False) == "train"  # 0xba7816bf = 3128432319


def test_adding_documents_moves_none():
  documents = [(f"d{i}", b"text %d" % i) for i in range(200)]
  few, many = split_documents(documents[:100]), split_documents(documents)
  for split in SPLITS:
    assert set(few[split]) <= set(many[split])


def test_cutting_by_position_loses_nothing():
  text = b"".join(b"line %d\n" % i for i in range(1000))
  pieces = cut_by_position(text)
  assert b"".join(pieces[s] for s in SPLITS) == text
  assert all(pieces[s].endswith(b"\n") for s in SPLITS)
  assert 0.08 < len(pieces["test"]) / len(text) < 0.12
  assert b"".join(cut_by_position(b"x").values()) == b"x"


def test_the_embedded_corpus_is_what_its_table_says():
  for line in mini.__doc__.splitlines():
    cells = [c.strip() for c in line.strip("|").split("|")]
    if cells[0].startswith("mini:"):
      splits = mini.mini(cells[0].split(",")[0].removeprefix("mini:"))[1]
      for split, cell in zip(SPLITS, cells[2:]):
        assert cell == f"{sum(map(len, splits[split])):,} ({len(splits[split])})", (cells[0], split)
  whole = b"".join(text for _, text in mini.chapters("moby_dick"))
  assert (
    whole == (mini.FOLDER / "en_moby_dick.txt").read_bytes()
    and len(mini.chapters("moby_dick")) == 135
  )


def test_no_article_is_on_two_sides_in_any_language():
  splits = mini.mini("udhr")[1]
  assert all(len(splits[s]) == 35 for s in SPLITS)
  english = mini.mini("udhr/eng")[1]
  assert english["validation"][0].startswith(b"Article 26") and english["test"][0].startswith(
    b"Article 28"
  )
  assert b"Article 25" in english["train"][0] and b"Article 30" in english["test"][0]


def test_text_files_are_documents(tmp_path):
  for i in range(60):
    (tmp_path / f"{i:03d}.txt").write_text(f"document {i}\r\n")
  (tmp_path / "empty.txt").write_text("")
  found = all_of(open_corpus(f"text:{tmp_path}/*.txt"))
  assert sorted(t for texts in found.values() for t in texts if t) == sorted(
    b"document %d\r\n" % i for i in range(60)
  )
  assert all(found.values())
  before = open_corpus(f"text:{tmp_path}/*.txt").fingerprint
  (tmp_path / "000.txt").write_text("changed")
  assert open_corpus(f"text:{tmp_path}/*.txt").fingerprint != before


def test_one_file_is_enough(tmp_path):
  (tmp_path / "book.txt").write_text("a line of the book\n" * 500)
  cfg = DATA.build(dict(kind="text", source=f"text:{tmp_path}/book.txt", seq_len=16, batch_size=2))
  assert len(cfg.store("train")) == 19 * 400 + 1 + 19 and len(cfg.store("test")) == 19 * 49 + 1


def test_a_split_in_the_pattern_is_the_split(tmp_path):
  for split in SPLITS:
    (tmp_path / f"{split}.txt").write_text(split)
  assert all_of(open_corpus(f"text:{tmp_path}/{{split}}.txt")) == {s: [s.encode()] for s in SPLITS}


def test_bytes_need_not_be_text(tmp_path):
  raw = bytes(range(256)) * 40
  (tmp_path / "raw.bin").write_bytes(raw)
  found = all_of(open_corpus(f"bytes:{tmp_path}/raw.bin"))
  assert b"".join(t for s in SPLITS for t in found[s]) == raw
  with pytest.raises(DataError, match=r"not UTF-8 \(byte 0x80 at offset 128\).*bytes:"):
    all_of(open_corpus(f"text:{tmp_path}/raw.bin"))


def test_array_records_are_documents(tmp_path):
  texts = [b"\nrecord %d" % i for i in range(300)]  # begins like a protobuf
  write_records(tmp_path / "a.array_record", texts[:200])
  write_records(tmp_path / "b.array_record", texts[200:])
  found = all_of(open_corpus(f"array_record:{tmp_path}/*.array_record"))
  assert all(found.values()) and sorted(t for v in found.values() for t in v) == sorted(texts)
  (tmp_path / "broken.array_record").write_bytes(b"not a record file" * 100)
  with pytest.raises(DataError, match="broken.array_record is not an ArrayRecord file"):
    all_of(open_corpus(f"array_record:{tmp_path}/broken.array_record"))


def test_an_empty_corpus_is_refused(tmp_path):
  (tmp_path / "nothing.txt").write_text("")
  with pytest.raises(DataError, match="the corpus is empty"):
    open_corpus(f"text:{tmp_path}/nothing.txt")
  (tmp_path / "validation.txt").write_text("")
  (tmp_path / "train.txt").write_text("a")
  (tmp_path / "test.txt").write_text("a")
  cfg = DATA.build(
    dict(kind="text", source=f"text:{tmp_path}/{{split}}.txt", seq_len=1, batch_size=1)
  )
  with pytest.raises(DataError, match="split 'validation' is empty"):
    cfg.store("validation")


def test_tfds_data_are_read_without_tensorflow(tmp_path):
  (tmp_path / "toy").mkdir()
  (tmp_path / "toy" / "__init__.py").write_text("")
  (tmp_path / "toy" / "toy.py").write_text(
    textwrap.dedent("""
      import tensorflow_datasets as tfds

      class Toy(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        def _info(self):
          return self.dataset_info_from_configs(features=tfds.features.FeaturesDict({"text": tfds.features.Text()}))
        def _split_generators(self, dl_manager):
          return {"train": self._generate_examples(0, 300), "test": self._generate_examples(300, 320)}
        def _generate_examples(self, start, stop):
          for i in range(start, stop):
            yield i, {"text": f"document {i} é"}
  """)
  )
  (tmp_path / "run.py").write_text(
    textwrap.dedent("""
      import glob, sys
      from toy import toy
      toy.Toy(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
      from jaxlm.data.sources import open_corpus
      corpus = open_corpus("tfds:toy")
      found = {s: sorted(corpus.documents(s)) for s in ("train", "validation", "test")}
      want = sorted(f"document {i} é".encode() for i in range(320))
      assert found["validation"] and found["train"], "validation is carved out of train"
      assert found["test"] == sorted(f"document {i} é".encode() for i in range(300, 320))
      assert sorted(sum(found.values(), [])) == want
      direct = open_corpus("array_record:" + glob.glob(sys.argv[1] + "/toy/*/*train*")[0])
      assert sorted(t for s in found for t in direct.documents(s)) == sorted(found["train"] + found["validation"])
      assert not any(name.split(".")[0] == "tensorflow" for name in sys.modules)
      for wrong in ("tfds:toy#tekst", "tfds:no_such_thing"):
        try:
          open_corpus(wrong)
        except ValueError as error:
          print(error)
  """)
  )
  import os

  done = subprocess.run(
    [sys.executable, "run.py", str(tmp_path / "d")],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    env=os.environ | {"TFDS_DATA_DIR": str(tmp_path / "d")},
  )
  assert done.returncode == 0, done.stderr[-3000:]
  assert "did you mean 'text'" in done.stdout and "TFDS cannot open it" in done.stdout


def test_data_imports_no_jax_of_its_own():
  import ast
  import pathlib

  import jaxlm.data

  for path in pathlib.Path(jaxlm.data.__file__).parent.rglob("*.py"):
    for node in ast.walk(ast.parse(path.read_text())):
      names = (
        [a.name for a in node.names]
        if isinstance(node, ast.Import)
        else [node.module or ""]
        if isinstance(node, ast.ImportFrom)
        else []
      )
      assert not {n.split(".")[0] for n in names} & {"jax", "flax", "tensorflow", "torch"}, path


def test_a_store_pickles_as_its_path():
  import pickle

  store = DATA.build(dict(kind="text", source="mini:dna", seq_len=8, batch_size=2)).store("train")
  assert store.tokens[1] == ord("G")
  raw = pickle.dumps(store)
  assert len(raw) < 1000
  np.testing.assert_array_equal(pickle.loads(raw).tokens, store.tokens)


ROWS = [{"text": f"row {i}"} for i in range(40)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.mark.parametrize(
  "name, text",
  [
    ("A.JSONL", LINES),
    ("list.json#text", json.dumps(ROWS)),
    ("list.json#text", json.dumps(ROWS, indent=1)),
    ("gap.txt#text", "\n\n" + LINES),
  ],
)
def test_texts_of_json_are_read_however_it_is_written(tmp_path, name, text):
  (tmp_path / name.partition("#")[0]).write_text(text)
  found = all_of(open_corpus(f"text:{tmp_path}/{name}"))
  assert sorted(x.decode() for side in found.values() for x in side) == sorted(
    row["text"] for row in ROWS
  )


@pytest.mark.parametrize(
  "text, what",
  [
    ("\n\n" + LINES, "a JSON object in each line"),
    ('{"text": "one line"}\n', "a JSON object in each line"),
    (json.dumps(ROWS), "a list of JSON objects"),
    (json.dumps(ROWS, indent=1), "a list of JSON objects"),
  ],
)
def test_json_is_no_document_with_its_braces(tmp_path, text, what):
  (tmp_path / "a.json").write_text(text)
  with pytest.raises(DataError, match=f"a.json holds {what}, .*'text:.*a.json#text'"):
    all_of(open_corpus(f"text:{tmp_path}/a.json"))
  assert all_of(open_corpus(f"bytes:{tmp_path}/a.json"))["train"]


@pytest.mark.parametrize(
  "text, sentence",
  [
    ("[" * 100_000, "begins as a JSON list and is none"),
    ('{"text": ' + "[" * 100_000, "line 1 is not a JSON object"),
    ('{"text": "caf\xe9"}\n', r"line 1 is not UTF-8 \(byte 0xe9 at 13\)"),
    ('[{"text": "a"}, 3]', "entry 1 is not a JSON object"),
  ],
)
def test_json_that_cannot_be_read_is_answered(tmp_path, text, sentence):
  (tmp_path / "a.jsonl").write_text(text, encoding="latin-1")
  with pytest.raises(DataError, match=sentence):
    all_of(open_corpus(f"text:{tmp_path}/a.jsonl"))


def field(number: int, value: bytes) -> bytes:
  """A length-delimited protobuf field of fewer than 128 bytes."""
  return bytes([number << 3 | 2, len(value)]) + value


def test_examples_whose_text_is_not_one_are_refused_and_sequence_examples_are_known(tmp_path):
  def bytes_list(*texts):
    return field(1, b"".join(field(1, text) for text in texts))

  def features(name, feature):
    return field(1, field(1, name) + field(2, feature))

  steps = field(2, field(1, field(1, b"frames") + field(2, field(1, bytes_list(b"x")))))
  for name, record, found in [
    (
      "two",
      field(1, features(b"text", bytes_list(b"a", b"b"))),
      "'text' holds 2 texts, wanted one",
    ),
    ("steps", field(1, features(b"id", bytes_list(b"a"))) + steps, "without a feature 'text'"),
    ("context", field(1, features(b"text", bytes_list(b"words"))) + steps, None),
  ]:
    write_records(tmp_path / f"{name}.array_record", [record] * 3)
    corpus = open_corpus(f"array_record:{tmp_path}/{name}.array_record")
    if found is None:
      assert {x for side in all_of(corpus).values() for x in side} == {b"words"}
    else:
      with pytest.raises(DataError, match=found):
        all_of(corpus)


@pytest.mark.parametrize(
  "name, content",
  [
    ("a.csv", b"text\ncaf\xe9\n"),
    ("a.csv", b"text\n" + b"x" * 200_000),
    ("a.jsonl", b"[1, 2]\n"),
    ("a.parquet", b"no table"),
  ],
)
def test_tables_that_cannot_be_read_are_answered(tmp_path, name, content):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(DataError, match=f"{name} is not "):
    read_columns(tmp_path / name, ["text"])
