"""Corpora are the same however often their making was interrupted, and nothing held out stands in
train.
"""

import gzip
import json
import multiprocessing
import struct
import zlib

import numpy as np
import pytest

from jaxlm.data import DATA, DataError
from jaxlm.data.command import main
from jaxlm.data.prepare import catalog, markup, packages, plain, sequences, write
from jaxlm.data.prepare.checksums import complaints
from jaxlm.data.prepare.overlap import WINDOW, Overlap, window_hashes
from jaxlm.data.prepare.recipe import Corpus, Part
from jaxlm.data.prepare.write import prepare
from jaxlm.data.splits import SPLITS


def paragraph(seed, size=600):
  letters = np.random.default_rng(seed).choice(list("abcdefghij klmnop"), size)
  return "".join(letters)


@pytest.fixture
def package(tmp_path):
  folder = tmp_path / "package"
  folder.mkdir()
  for i in range(120):
    (folder / f"{i:03d}.txt").write_text(paragraph(i) + "\r\n")
  (folder / "copy.txt").write_text(paragraph(7) + "\n")
  (folder / "short.txt").write_text("too short")
  return folder


def recipe(package, extract=plain.whole, **settings):
  return Corpus(
    "a test", (Part(f"folder:{package}", "*.txt", extract, licence="free"),), **settings
  )


def contents(folder):
  return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_stopping_and_going_on_gives_the_same_files(package, tmp_path, monkeypatch):
  monkeypatch.setattr(write, "CHUNK_BYTES", 5_000)
  prepare("toy", recipe(package), tmp_path / "straight")
  calls = []

  def stubborn(path, name):
    calls.append(name)
    if len(calls) in (30, 70, 95):
      raise KeyboardInterrupt
    yield from plain.whole(path, name)

  for _ in range(3):
    with pytest.raises(KeyboardInterrupt):
      prepare("toy", recipe(package, stubborn), tmp_path / "stopped")
  prepare("toy", recipe(package, stubborn), tmp_path / "stopped")
  assert contents(tmp_path / "stopped" / "prepared" / "toy") == contents(
    tmp_path / "straight" / "prepared" / "toy"
  )
  assert len(calls) < 122 + 3 * 10  # complete chunks were not redone
  assert [p.name for p in (tmp_path / "stopped" / "prepared").iterdir()] == ["toy"]


def test_a_prepared_corpus_is_a_source(package, tmp_path, monkeypatch):
  monkeypatch.setenv("JAXLM_DATA", str(tmp_path / "d"))
  manifest = prepare("toy", recipe(package), tmp_path / "d")
  assert (
    sum(e["documents"] for e in manifest["splits"].values()) == 120
  )  # the copy and the short one are gone
  cfg = DATA.build(dict(kind="text", source="prepared:toy", seq_len=16, batch_size=4))
  for split in SPLITS:
    assert (
      len(cfg.store(split))
      == manifest["splits"][split]["bytes"] + manifest["splits"][split]["documents"]
    )
  assert manifest["packages"] == [{"package": f"folder:{package}", "licence": "free"}]
  record = tmp_path / "d" / "prepared" / "toy" / "train.array_record"
  record.write_bytes(record.read_bytes()[:-10])
  with pytest.raises(DataError, match="does not match.*--force"):
    cfg.store("train")


def test_held_out_text_that_stands_in_train_is_dropped(package, tmp_path):
  from jaxlm.data.splits import split_of

  names = [p.name for p in sorted(package.iterdir())]
  test = next(n for n in names if split_of(n, small=True) == "test")
  train = next(n for n in names if split_of(n, small=True) == "train" and n[0] == "0")
  (package / train).write_text("moved by 3: " + (package / test).read_text()[:300] + paragraph(999))
  manifest = prepare("toy", recipe(package), tmp_path / "d")
  assert manifest["splits"]["test"]["dropped"] == 1
  lenient = prepare("toy", recipe(package, max_shared=0.9), tmp_path / "lenient")
  assert (
    lenient["splits"]["test"]["dropped"] == 0 and lenient["splits"]["test"]["shared_windows"] >= 1
  )


def test_a_corpus_that_is_all_copies_is_refused(tmp_path):
  (tmp_path / "p").mkdir()
  for i in range(100):
    (tmp_path / "p" / f"{i}.txt").write_text(f"{i}" + paragraph(0))
  with pytest.raises(DataError, match="nothing is left in validation, test|nothing is left in"):
    prepare("toy", recipe(tmp_path / "p"), tmp_path / "d")


def test_window_hashes_find_what_is_equal_and_nothing_else():
  text = np.frombuffer(paragraph(1, 2000).encode(), np.uint8)
  hashes = window_hashes(text)
  base = 0x9E3779B97F4A7C15
  want = 0
  for byte in text[5 : 5 + WINDOW].tolist():
    want = (want * base + byte * base + 1) % 2**64
  assert (
    int(hashes[5]) == want
    and len(hashes) == 2000 - WINDOW + 1
    and len(set(hashes.tolist())) == len(hashes)
  )
  overlap = Overlap()
  overlap.hold_out(text.tobytes())
  overlap.train(b"??" + text[100:450].tobytes())
  # Windows at 100, 150, .., 250 lie inside bytes 100 to 449.
  assert overlap.shared(text.tobytes()) == (4, 37)


def test_wrong_commands_end_with_a_sentence(tmp_path, capsys):
  at = ["--data-dir", str(tmp_path)]
  assert main(["prepare", "prose-smal", *at]) == 2
  assert "did you mean 'prose-small'" in capsys.readouterr().err
  assert main(["info", "prose-small", *at]) == 0
  assert "make it with `jaxlm data prepare prose-small`" in capsys.readouterr().out
  assert main(["list", *at]) == 0
  listed = capsys.readouterr().out
  assert all(name in listed for name in catalog.CATALOG)
  assert main(["prepare"]) == 2 and main([]) == 2


def test_the_command_makes_a_corpus_and_its_files_can_be_copied(
  package, tmp_path, monkeypatch, capsys
):
  monkeypatch.setitem(catalog.CATALOG, "toy", recipe(package))
  monkeypatch.setitem(catalog.CATALOG, "files", recipe(package, copy=True))
  assert main(["prepare", "toy", "files", "--data-dir", str(tmp_path / "d")]) == 0
  assert "documents" in capsys.readouterr().out
  assert (tmp_path / "d/prepared/files/000.txt").read_bytes() == (package / "000.txt").read_bytes()
  catalog.corpus.cache_clear()


def test_another_result_than_the_recorded_one_is_a_warning():
  recorded = json.loads(
    (write.pathlib.Path(write.__file__).with_name("checksums.json")).read_text()
  )
  name = next(iter(recorded))
  wrong = {"splits": {split: {"sha256": "0" * 64} for split in recorded[name]}}
  assert len(complaints(name, wrong)) == len(recorded[name])
  assert not complaints(name, {"splits": {k: {"sha256": v} for k, v in recorded[name].items()}})


def test_a_package_manager_that_fails_is_quoted(tmp_path, monkeypatch):
  from jaxlm.data.prepare import packages

  monkeypatch.setattr(packages, "_npm", None)
  with pytest.raises(DataError, match="needs 'no-such-manager'"):
    packages._run(["no-such-manager"], tmp_path, "x")
  with pytest.raises(DataError, match="ls.*failed: .*nowhere"):
    packages._run(["ls", "/nowhere"], tmp_path, "x")


def one(extract, path, name=None):
  return list(extract(path, name or path.name))


def test_r_vectors_are_books(tmp_path):
  def vector(strings):
    out = b"X\n" + struct.pack(">iii", 3, 0x40000, 0x30500) + struct.pack(">i", 5) + b"UTF-8"
    out += struct.pack(">ii", 16, len(strings))
    for s in strings:
      out += struct.pack(">ii", 9, len(s.encode())) + s.encode()
    return struct.pack(">I", len(out)) + zlib.compress(out)

  (tmp_path / "x.rdb").write_bytes(
    vector(["TITLE", "", "CHAPTER 1", "é", "CHAPTER 2", "b"]) + vector(["next book"])
  )
  found = one(plain.r_books, tmp_path / "x.rdb")
  assert [t for _, t in found] == ["TITLE\n\nCHAPTER 1\né\n", "CHAPTER 2\nb\n", "next book\n"]
  assert len({k for k, _ in found}) == 3


def test_text_extractors(tmp_path):
  path = tmp_path / "x.dict.dz"
  path.write_bytes(gzip.compress(("entry\n\n" * 10_000).encode()))
  found = one(plain.in_blocks, path)
  assert "".join(t for _, t in found) == "entry\n\n" * 10_000 and len(found) == 3
  (tmp_path / "f").write_bytes(b"one\n%\ntwo caf\xe9\r\n%\n")
  assert [t for _, t in one(plain.fortunes, tmp_path / "f")][:2] == ["one\n", "two café\n"]
  (tmp_path / "kjv").write_text(
    '{"book": "A", "text": "x"}\n{"book": "A", "text": "y"}\n{"book": "B", "text": "z"}\n'
  )
  assert one(plain.json_lines("text", "book"), tmp_path / "kjv", "k") == [
    ("k/A", "x\ny\n"),
    ("k/B", "z\n"),
  ]
  (tmp_path / "rfc").write_text(
    "Text\n\nPostel      [Page 1]\n\f\nRFC 791        Internet Protocol      September 1981\n\nmore"
  )
  assert (
    "Page" not in one(plain.rfc, tmp_path / "rfc")[0][1]
    and "September" not in one(plain.rfc, tmp_path / "rfc")[0][1]
  )
  (tmp_path / "n").write_text("  1 licence\n00001740 03 n 01 entity 0 003 | that which is  \n")
  assert one(plain.wordnet, tmp_path / "n", "n") == [("n/00001740", "that which is")]


def test_a_source_archive_is_streamed_and_keyed_by_directory(tmp_path):
  import io
  import tarfile

  with tarfile.open(tmp_path / "s.tar.xz", "w:xz") as tar:
    for name in (
      "linux/fs/ext4/a.c",
      "linux/fs/ext4/b.h",
      "linux/fs/ext4/x.rst",
      "linux/drivers/gen/c.h",
    ):
      info = tarfile.TarInfo(name)
      info.size = 4
      tar.addfile(info, io.BytesIO(b"code"))
  found = one(plain.source_archive((".c", ".h"), ("drivers/gen/",)), tmp_path / "s.tar.xz")
  assert found == [("fs/ext4", "code"), ("fs/ext4", "code")]


def test_markup_extractors(tmp_path):
  text = markup.html_text(
    "<head><title>t</title></head><p>A &amp; <b>b</b></p><script>x</script><ul><li>c</li></ul>"
  )
  assert text == "A & b\n\nc\n"
  (tmp_path / "m.1.gz").write_bytes(
    gzip.compress(b'.TH X 1\n.SH "NAME"\nls \\- \\fBlist\\fR\n.PP\nmore')
  )
  assert one(markup.manual_page, tmp_path / "m.1.gz") == [("m.1", "NAME\nls - list\n\nmore\n")]
  (tmp_path / "p.page").write_text(
    '<page xmlns="http://projectmallard.org/1.0/"><title>T</title><p>a  <b>c</b></p></page>'
  )
  assert one(markup.mallard, tmp_path / "p.page", "usr/share/help/de/x/p.page") == [
    ("usr/share/help/x/p.page", "T\n\na c\n")
  ]
  (tmp_path / "de").write_text(
    "Package: a\nDescription-md5: ff\nDescription-de: kurz\n lang\n .\n  code\n\nPackage: b\n"
  )
  assert one(markup.package_descriptions, tmp_path / "de") == [("ff", "kurz\nlang\n\n code\n")]
  (tmp_path / "Packages.0.list").write_text(
    "Package: liba\nSource: a (1.0)\nSize: 1\n\nPackage: liba-dev\nSource: a\n\nPackage: c\n"
  )
  (tmp_path / "en").write_text(
    "".join(
      f"Package: {p}\nDescription-md5: {p}\nDescription-en: about {p}\n\n"
      for p in ("liba", "liba-dev", "c")
    )
  )
  assert [k for k, _ in one(markup.one_per_source, tmp_path / "en")] == ["liba", "c"]


def test_translations_lose_their_english(tmp_path):
  native, english = (
    "Dies ist ein deutscher Absatz von genügender Länge.",
    "This paragraph was never translated by anybody.",
  )
  for language, text in (("en", english), ("de", f"Titel\n\n{native}\n\n{english}")):
    (tmp_path / "p" / language).mkdir(parents=True)
    (tmp_path / "p" / language / "a.txt").write_text(text)
  corpus = Corpus(
    "t",
    (Part(f"folder:{tmp_path / 'p'}", "de/*.txt", plain.whole, without="en/*.txt"),),
    max_shared=None,
    side=lambda key: "train",
  )
  manifest = prepare("toy", corpus, tmp_path / "d")
  from jaxlm.data.sources import read_records

  assert list(read_records([str(tmp_path / "d/prepared/toy/train.array_record")])) == [
    (native + "\n").encode()
  ]
  assert manifest["splits"]["train"]["documents"] == 1


def test_genomes_are_split_by_species(tmp_path):
  (tmp_path / "g.fa").write_text(">r1 Vibrio cholerae chromosome II\nacgtRN\nAC\n>r2 x\nAA\n")
  found = one(sequences.dna, tmp_path / "g.fa", "v.fa")
  assert [t for _, t in found] == ["ACGTNNAC", "AA"]
  assert (
    sequences.dna_side(found[0][0]) == "validation" and sequences.dna_side(found[1][0]) == "train"
  )
  assert sequences.dna_side("H_pylori.fasta x") == "test"


def _prepare_in(folder, package, started):
  started.wait()
  prepare("toy", recipe(package), folder)


def test_two_that_prepare_at_once_make_it_once_and_what_a_killed_one_left_is_removed(
  package, tmp_path, monkeypatch
):
  context = multiprocessing.get_context("fork")
  started = context.Barrier(2)
  processes = [
    context.Process(target=_prepare_in, args=(tmp_path / "d", package, started)) for _ in range(2)
  ]
  for process in processes:
    process.start()
  for process in processes:
    process.join(60)
  assert [p.exitcode for p in processes] == [0, 0]
  assert sorted(p.name for p in (tmp_path / "d" / "prepared").iterdir()) == ["toy"]
  prepare("toy", recipe(package), tmp_path / "alone")
  name = "train.array_record"
  assert (tmp_path / "d/prepared/toy" / name).read_bytes() == (
    tmp_path / "alone/prepared/toy" / name
  ).read_bytes()

  def no_download(name, folder):
    (folder / "a.txt").write_text(name)
    return [folder / "a.txt"]

  monkeypatch.setitem(packages.DOWNLOAD, "pip", no_download)
  (tmp_path / "p" / ".part-pip-thing-dead").mkdir(parents=True)
  root, _ = packages.fetch("pip:thing", tmp_path / "p")
  assert (root / "a.txt").is_file() and not list((tmp_path / "p").glob(".part-*"))
