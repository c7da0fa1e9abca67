"""Every format of a source gives the same documents, from a disk and from behind an address."""

import gzip
import json
import random

import fsspec
import pytest

from jaxlm.data import DataError
from jaxlm.data.sources import open_corpus
from jaxlm.data.splits import SPLITS

rng = random.Random(0)
TEXTS = [f"document {i} " + "".join(rng.choices("ab cd\n", k=40)) for i in range(120)]


def jsonl(text="text"):
  return "".join(json.dumps({text: t, "n": 1}) + "\n" for t in TEXTS).encode()


@pytest.fixture
def folder(tmp_path):
  """TEXTS in every format."""
  pyarrow = pytest.importorskip("pyarrow")
  from array_record.python import array_record_module
  from pyarrow import parquet

  (tmp_path / "a.jsonl").write_bytes(jsonl())
  (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(jsonl()))
  table = pyarrow.table({"text": TEXTS, "n": list(range(len(TEXTS)))})
  parquet.write_table(table, tmp_path / "a.parquet", row_group_size=50)
  writer = array_record_module.ArrayRecordWriter(str(tmp_path / "a.array_record"), "group_size:1")
  for text in TEXTS:
    writer.write(text.encode())
  writer.close()
  saved = tmp_path / "saved"
  saved.mkdir()
  with pyarrow.ipc.new_stream(saved / "data-00000-of-00001.arrow", table.schema) as out:
    out.write_table(table, 50)
  (saved / "state.json").write_text(
    json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]})
  )
  return tmp_path


SOURCES = {
  "jsonl": "text:{}/a.jsonl",
  "gz": "text:{}/a.jsonl.gz#text",
  "parquet": "parquet:{}/a.parquet#text",
  "array_record": "array_record:{}/a.array_record",
  "hf": "hf:{}/saved",
}


@pytest.mark.parametrize("where", ["disk", "address"])
@pytest.mark.parametrize("kind", SOURCES)
def test_all_formats_hold_the_same_documents_on_the_same_sides(folder, kind, where):
  at = str(folder)
  if where == "address":
    memory, at = fsspec.filesystem("memory"), f"memory://{folder.name}"
    memory.put(str(folder), f"/{folder.name}", recursive=True)
  corpus, plain = open_corpus(SOURCES[kind].format(at)), open_corpus(f"text:{folder}/a.jsonl")
  for split in SPLITS:
    documents = list(corpus.documents(split))
    assert documents and documents == list(plain.documents(split))
  assert len(corpus.fingerprint) == 64


def test_zstd_lines_are_read_and_half_a_file_is_refused(folder):
  zstandard = pytest.importorskip("zstandard")
  packed = zstandard.ZstdCompressor().compress(jsonl())
  (folder / "a.jsonl.zst").write_bytes(packed)
  found = open_corpus(f"text:{folder}/a.jsonl.zst")
  assert sum(len(list(found.documents(split))) for split in SPLITS) == len(TEXTS)
  (folder / "half.jsonl.zst").write_bytes(packed[: len(packed) // 2])
  with pytest.raises(DataError, match="is not a whole zstd file"):
    list(open_corpus(f"text:{folder}/half.jsonl.zst").documents("train"))


@pytest.mark.parametrize(
  "source, said",
  [
    ("parquet:{}/a.parquet#txt", r"has no column 'txt'.*'text'.*it has text, n"),
    ("parquet:{}/a.parquet#n", r"column 'n' holds int64, wanted text"),
    ("hf:{}/saved#body", r"has no column 'body'.*it has text, n"),
    ("parquet:{}/a.jsonl.gz", r"is not a Parquet file, it is compressed by gzip; unpack it"),
    ("text:{}/a.parquet", r"is not text, it is a Parquet table; read it with 'parquet:'"),
    ("hf:{}", r"is no data set that was saved to disk"),
    ("text:memory://nowhere/*.jsonl", r"no file matches memory://nowhere"),
    ("text:nosuch://bucket/a.jsonl", r"no package is known that reads nosuch://"),
    ("store:{}", r"holds tokens and no text"),
  ],
)
def test_what_is_wrong_with_a_source_is_said_in_a_sentence(folder, source, said):
  with pytest.raises(DataError, match=said) as caught:
    list(open_corpus(source.format(folder)).documents("train"))
  assert "\n" not in str(caught.value)


def test_a_bucket_that_may_not_be_read_is_said(monkeypatch):
  from fsspec.implementations.memory import MemoryFileSystem

  def refuse(*args, **kwargs):
    raise PermissionError("403 caller does not have storage.objects.list")

  monkeypatch.setattr(MemoryFileSystem, "glob", refuse)
  with pytest.raises(DataError, match=r"no right to use memory://b/\*\.jsonl .*roles/storage"):
    open_corpus("text:memory://b/*.jsonl")
