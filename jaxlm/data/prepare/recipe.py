"""What a corpus is made of: packages, the files in them, and how a file becomes documents."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator

Document = tuple[str, str]  # (split key, text)
Extractor = Callable[
  [pathlib.Path, str], Iterator[Document]
]  # (file, path inside the package) -> documents


@dataclasses.dataclass(frozen=True)
class Part:
  """package: 'pip:NAME==VERSION', 'npm:NAME@VERSION', 'apt:NAME', 'apt-lists:LANGUAGE',
  'python:stdlib', 'folder:PATH'.

  files: glob inside the unpacked package; skip: globs of what to leave out. without: glob, in the
  same package or in another one ('apt:NAME/glob'), of English files whose paragraphs are dropped:
  translations fall back to English.
  """

  package: str
  files: str
  extract: Extractor
  skip: tuple[str, ...] = ()
  without: str = ""
  licence: str = ""


@dataclasses.dataclass(frozen=True)
class Corpus:
  """side: key -> split, instead of the hash of the key. max_shared: a held-out document is dropped
  when more than this fraction of its 200-byte windows stands in train (None: not looked at). copy:
  the files themselves are wanted.
  min_characters: shorter documents are dropped.
  """

  what: str
  parts: tuple[Part, ...]
  side: Callable[[str], str] | None = None
  max_shared: float | None = 0.0
  copy: bool = False
  min_characters: int = 20
  note: str = ""
