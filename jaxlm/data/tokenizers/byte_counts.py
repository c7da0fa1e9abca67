"""How many bytes of a text each of its tokens stands for, whatever the tokenizer did to the text
before it cut it.

The numbers of a text sum to its UTF-8 length: what a normaliser changed, an unknown token hides or
a blank in front adds is counted as it stands in the text, not as the tokens spell it.
"""

import numpy as np


def by_spelling(
  text: bytes, ids: np.ndarray, table: list[bytes], sizes: np.ndarray
) -> np.ndarray | None:
  """Bytes of each token where the tokens spell the text, a blank in front left out; None where they
  do not.
  """
  spelled = b"".join([table[i] for i in ids.tolist()])
  counts = sizes[ids]
  if spelled == text:
    return counts
  if spelled[:1] == b" " and spelled[1:] == text:
    counts[np.flatnonzero(counts)[0]] -= 1
    return counts
  return None


def by_offsets(text: str, offsets: list[tuple[int, int]], spelled: np.ndarray) -> np.ndarray:
  """Bytes of each token from the characters of `text` it was made of; a token ends where its last
  character does.

  What lies between two tokens is the second's, what lies behind the last one the last one's. Tokens
  of one character share its bytes as they spell them (`spelled`, byte fallback), or the first has
  them all.
  """
  count = len(offsets)
  if not count:
    return np.zeros(0, np.int32)
  codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
  before = np.concatenate([[0], np.cumsum(of_characters(codes), dtype=np.int64)])
  ends = np.maximum.accumulate(np.array([end for _, end in offsets], np.int64)).clip(0, len(text))
  ends[ends == ends[-1]] = len(text)
  counts = np.diff(before[ends], prepend=0)
  first = np.flatnonzero(
    np.diff(ends, prepend=-1)
  )  # of each run of tokens that end at one character
  size = np.diff(first, append=count)
  agree = np.repeat(np.add.reduceat(spelled, first) == counts[first], size)
  return np.where(agree, spelled, counts).astype(np.int32)


def of_characters(codes: np.ndarray) -> np.ndarray:
  """int32 UTF-8 length of each code point."""
  return (1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000)).astype(np.int32)
