"""Train, validation and test by document: the same document is always on the same side, whatever
else is added.

A document's side is a function of its key alone (real data do not come in a fixed order), so
translations of one text share a key and copies never straddle. Texts of few documents are cut by
position instead.
"""

import hashlib
from collections.abc import Iterable

from jaxlm.data.errors import DataError

SPLITS = ("train", "validation", "test")
#: Of rows that are drawn: default_rng([seed, SPLIT_SEEDS[split], index]).
SPLIT_SEEDS = {"train": 0, "validation": 1, "test": 2}
SMALL_BYTES = 30_000_000  # below: 5 % + 5 % are held out instead of 1 % + 1 %
MIN_DOCUMENTS = 20  # fewer: cut by position


def split_of(key: str, *, small: bool) -> str:
  """Side of a document: int(SHA-256(key)[:8 hex digits]) mod 1000 is below 10 (test), below 20
  (validation), or train.

  small: corpora under 30 MB use 50 and 100.
  """
  return split_of_digest(
    hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest(), small=small
  )


def split_of_digest(digest: str, *, small: bool) -> str:
  """Side of the document whose key has this hexadecimal SHA-256."""
  value = int(digest[:8], 16) % 1000
  step = 50 if small else 10
  return "test" if value < step else "validation" if value < 2 * step else "train"


def cut_by_position(document: bytes, *, text: bool = False) -> dict[str, bytes]:
  """First 80 % train, then 10 % validation, 10 % test; each cut falls after a line end where there
  is one.

  text: UTF-8, so that a cut elsewhere falls between characters. The three concatenate to
  `document`.
  """
  cuts = [0]
  for fraction in (0.8, 0.9):
    near = int(len(document) * fraction)
    after = document.find(b"\n", near, near + len(document) // 20 + 1)
    while text and after < 0 and near < len(document) and document[near] & 0xC0 == 0x80:
      near += 1
    cuts.append(max(cuts[-1], after + 1 if after >= 0 else near))
  bounds = [*cuts, len(document)]
  return {split: document[a:b] for split, a, b in zip(SPLITS, bounds, bounds[1:])}


def split_documents(documents: Iterable[tuple[str, bytes]]) -> dict[str, list[bytes]]:
  """{split: texts} of an in-memory corpus of (key, text): by key, or by position if there are few
  documents.
  """
  documents = [(key, text) for key, text in documents if text]
  small = sum(len(text) for _, text in documents) < SMALL_BYTES
  sides = {split: [] for split in SPLITS}
  for key, text in documents:
    sides[split_of(key, small=small)].append(text)
  if len(documents) >= MIN_DOCUMENTS and all(sides.values()):
    return sides
  cut = [cut_by_position(text) for _, text in documents]
  return {split: [pieces[split] for pieces in cut if pieces[split]] for split in SPLITS}


def check_split(split: str) -> None:
  if split not in SPLITS:
    raise DataError(f"split {split!r}: wanted one of {', '.join(SPLITS)}")
