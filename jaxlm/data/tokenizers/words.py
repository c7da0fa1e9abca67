"""GPT-2's split of texts into words, each encoded once: several times as fast as encoding texts.

Byte-level BPE with GPT-2's pattern encodes the words of a text one by one, so the tokens of a text
are those of its words in a row. Most words of a text have been met before. The pattern is written
here for the alphabets whose letters, numbers and spaces are the same in every version of Unicode
since 2006 (Latin, Greek, Cyrillic, general punctuation); a text with other characters is left to
the library.
"""

import functools
import re
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np

from jaxlm.data.tokenizers.cuts import GPT2, steps_of

RANGES = ((0x0000, 0x0180), (0x0391, 0x03CF), (0x0400, 0x0482), (0x2010, 0x2060))
SPACES = "\t\n\v\f\r \x85\xa0\u2028\u2029\u202f\u205f" + "".join(map(chr, range(0x2000, 0x200B)))
#: Words that are remembered; about 200 bytes each.
MOST_WORDS = 1 << 20


def encodes_words(described: dict) -> bool:
  """Whether a tokenizer.json encodes the words of GPT-2's pattern one by one, and nothing else.

  An added token that is no special one would be looked for in the text.
  """
  model, steps = described["model"], steps_of(described.get("pre_tokenizer"), "pretokenizers")
  return (
    model.get("type") == "BPE"
    and not model.get("dropout")
    and not model.get("end_of_word_suffix")
    and not model.get("continuing_subword_prefix")
    and described.get("normalizer") is None
    and all(token["special"] for token in described["added_tokens"])
    and (_is_byte_level(steps) or _is_split(steps))
  )


def _is_byte_level(steps: list[dict]) -> bool:
  return (
    len(steps) == 1
    and steps[0]["type"] == "ByteLevel"
    and not steps[0].get("add_prefix_space")
    and steps[0].get("use_regex", True)
  )


def _is_split(steps: list[dict]) -> bool:
  return (
    [step["type"] for step in steps] == ["Split", "ByteLevel"]
    and steps[0]["pattern"].get("Regex") in GPT2
    and steps[0].get("behavior") == "Isolated"
    and not steps[0].get("invert")
    and not steps[1].get("add_prefix_space")
    and not steps[1].get("use_regex", True)
  )


class WordEncoder:
  """encode: list of words -> list of their ids, by the library."""

  def __init__(self, encode: Callable[[list[str]], list[np.ndarray]]):
    self._encode, self._known = encode, {}

  def __call__(self, texts: Sequence[str]) -> list[np.ndarray | None]:
    """int32 ids of each text, None for a text with other characters."""
    split, plain = pattern(), only_known().fullmatch
    words = [split.findall(text) if plain(text) else None for text in texts]
    self._learn(words)
    known = self._known
    return [
      None if found is None else np.frombuffer(b"".join([known[word] for word in found]), np.int32)
      for found in words
    ]

  def _learn(self, words: list[list[str] | None]) -> None:
    met = set().union(*(found for found in words if found is not None))
    if len(self._known) > MOST_WORDS:
      self._known = {}
    new = sorted(met - self._known.keys())
    for word, ids in zip(new, self._encode(new)):
      self._known[word] = np.asarray(ids, np.int32).tobytes()


@functools.cache
def only_known() -> re.Pattern:
  return re.compile("[" + "".join(f"{chr(a)}-{chr(b - 1)}" for a, b in RANGES) + "]*")


@functools.cache
def pattern() -> re.Pattern:
  """GPT-2's pattern with its classes written out for RANGES."""
  letters, numbers = _class("L"), _class("N")
  space = re.escape(SPACES)
  return re.compile(
    f"'(?:[sdmt]|ll|ve|re)| ?[{letters}]+| ?[{numbers}]+| ?[^{space}{letters}{numbers}]+"
    f"|[{space}]+(?![^{space}])|[{space}]+"
  )


def _class(category: str) -> str:
  """Of the characters of a general category, as the inside of a character class."""
  points = [
    point
    for start, stop in RANGES
    for point in range(start, stop)
    if unicodedata.category(chr(point)).startswith(category)
  ]
  runs = []
  for point in points:
    if runs and runs[-1][1] == point - 1:
      runs[-1][1] = point
    else:
      runs.append([point, point])
  return "".join(chr(a) if a == b else f"{chr(a)}-{chr(b)}" for a, b in runs)
