"""The embedded corpus: real text that needs no network and no install (rights in mini/LICENSES.md).

| source                   | what                 | train           | validation   | test        |
| ------------------------ | -------------------- | --------------- | ------------ | ----------- |
| mini:moby_dick           | Melville, chapters   | 1,117,787 (121) | 60,165 (9)   | 27,045 (5)  |
| mini:pride_and_prejudice | Austen, chapters     | 582,184 (51)    | 83,988 (8)   | 18,596 (2)  |
| mini:en                  | both novels          | 1,699,971 (172) | 144,153 (17) | 45,641 (7)  |
| mini:udhr, mini:udhr/eng | 35 languages, or one | 475,050 (35)    | 58,216 (35)  | 55,425 (35) |
| mini:dna                 | phage lambda, bases  | 38,801 (1)      | 4,850 (1)    | 4,851 (1)   |

Bytes (documents). A document is a chapter and its side is the hash of its key; the UDHR is held out
by article in all languages at once (26 and 27 validation, 28 to 30 test), because it is the same
text in each of them; the genome is cut by position (its ends are bases the model has not seen, and
nothing more: one molecule has no independent parts).
"""

import functools
import hashlib
import pathlib
import re

from jaxlm.config import nearest
from jaxlm.data.errors import DataError
from jaxlm.data.splits import cut_by_position, split_documents

FOLDER = pathlib.Path(__file__).with_name("mini")
BOOKS = {"moby_dick": rb"^CHAPTER \d+", "pride_and_prejudice": rb"^Chapter \d+"}
# Paragraphs of articles 26 to 27 and 28 to 30 with their headings: the same number in all 35 files.
UDHR_TAIL = (7, 8)


def mini(name: str) -> tuple[str, dict[str, list[bytes]]]:
  """(fingerprint, {split: documents}) of 'moby_dick', 'pride_and_prejudice', 'en' (both), 'udhr',
  'udhr/eng', 'dna'.
  """
  if name in BOOKS:
    splits = _books((name,))
  elif name == "en":
    splits = _books(tuple(BOOKS))
  elif name == "dna":
    lines = (FOLDER / "dna_lambda_phage.fa").read_bytes().splitlines()
    splits = {split: [text] for split, text in cut_by_position(b"".join(lines[1:])).items()}
  elif name == "udhr":
    splits = _udhr(sorted(FOLDER.glob("udhr/*.txt")))
  elif name.startswith("udhr/") and (path := FOLDER / f"{name}.txt").is_file():
    splits = _udhr([path])
  else:
    raise DataError(f"no embedded corpus 'mini:{name}'; {nearest(name, names())}")
  content = hashlib.sha256()
  for split, texts in splits.items():
    for text in texts:
      content.update(b"%s %d\n" % (split.encode(), len(text)) + text)
  return content.hexdigest(), splits


def names() -> list[str]:
  return [*BOOKS, "en", "dna", "udhr", *sorted(f"udhr/{p.stem}" for p in FOLDER.glob("udhr/*.txt"))]


@functools.cache
def _books(books: tuple[str, ...]) -> dict[str, list[bytes]]:
  return split_documents(document for book in books for document in chapters(book))


def chapters(book: str) -> list[tuple[str, bytes]]:
  """[('moby_dick/017', text)]; what stands before the first chapter belongs to it.

  They concatenate to the file.
  """
  text = (FOLDER / f"en_{book}.txt").read_bytes()
  starts = [m.start() for m in re.finditer(BOOKS[book], text, re.MULTILINE)]
  bounds = [0, *starts[1:], len(text)]
  return [(f"{book}/{i + 1:03d}", text[a:b]) for i, (a, b) in enumerate(zip(bounds, bounds[1:]))]


def _udhr(paths) -> dict[str, list[bytes]]:
  sides = {"train": [], "validation": [], "test": []}
  for path in paths:
    paragraphs = path.read_bytes().strip().split(b"\n\n")
    validation, test = len(paragraphs) - sum(UDHR_TAIL), len(paragraphs) - UDHR_TAIL[1]
    for split, a, b in (
      ("train", 0, validation),
      ("validation", validation, test),
      ("test", test, None),
    ):
      sides[split].append(b"\n\n".join(paragraphs[a:b]) + b"\n")
  return sides
