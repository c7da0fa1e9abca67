"""MrT5's diagnostic tasks over random letters: copy, vowel removal, contextual vowel removal, ABC
-> D. docs/specs/mrt5.md, section 8.
"""

import dataclasses
import string
from typing import ClassVar, Literal

import numpy as np

from jaxlm.config import ConfigError, checked
from jaxlm.data import byte_t5
from jaxlm.data.forms import encoder_decoder
from jaxlm.data.made_rows import MadeRows
from jaxlm.ranges import Count

VOWELS = "aeiouAEIOU"
CONSONANTS = "".join(c for c in string.ascii_letters if c not in VOWELS)
LETTERS = np.array(list(string.ascii_lowercase + string.ascii_uppercase))
TASKS = ("copy", "vowel_removal", "contextual_vowel_removal", "merge_ABC")


def places(rng: np.random.Generator, length: int, size: int, number: int) -> list[int]:
  """Starts of substrings of `size`, at least `size` apart, up to `number`; gives up after 501
  draws.
  """
  found: list[int] = []
  for _ in range(501):
    if len(found) >= number:
      break
    at = int(rng.choice(length - size))
    if all(abs(at - other) >= size for other in found):
      found.append(at)
  return found


def sample(task: str, rng: np.random.Generator, length: int = 64) -> tuple[str, str]:
  """(text, target), each beginning with '#', the text of length - 1 characters."""
  # The reference draws two letters more for `copy`, which truncation takes away again.
  text = "".join(rng.choice(LETTERS, size=length if task == "copy" else length - 2))[: length - 2]
  if task in ("merge_ABC", "contextual_vowel_removal"):
    average, size = (5, 3) if task == "merge_ABC" else (25, 2)
    number = max(1, int(rng.normal(average, average / 2)))
    letters = list(text)
    for at in places(rng, len(text), size, number):
      letters[at : at + size] = (
        "ABC"
        if task == "merge_ABC"
        else (CONSONANTS[rng.integers(len(CONSONANTS))], VOWELS[rng.integers(len(VOWELS))])
      )
    text = "".join(letters)
  return "#" + text, target(task, "#" + text)


def target(task: str, text: str) -> str:
  if task == "vowel_removal":
    return text.translate({ord(v): None for v in VOWELS})
  if task == "merge_ABC":
    return text.replace("ABC", "D")
  if task == "copy":
    return text
  out, i = [], 0
  while i < len(text):
    out.append(text[i])
    follows = (
      text[i].islower() and text[i] not in VOWELS and i + 1 < len(text) and text[i + 1] in VOWELS
    )
    i += 2 if follows else 1
  return "".join(out)


def row(task: str, rng: np.random.Generator, length: int = 64) -> tuple[np.ndarray, np.ndarray]:
  """(input ids, labels), int32 (length,); labels are padded with -100."""
  text, answer = sample(task, rng, length)
  return byte_t5.encode(text), byte_t5.pad([byte_t5.encode(answer)], length, byte_t5.IGNORED)[0]


@dataclasses.dataclass(frozen=True)
@checked
class DiagnosticData(MadeRows):
  """Rows of one task, each a function of (seed, split, index). seq_len: of inputs and labels. rows:
  of one pass.
  """

  name: ClassVar[str] = "diagnostic"

  batch_form: ClassVar[str] = "encoder_decoder"

  task: Literal["copy", "vowel_removal", "contextual_vowel_removal", "merge_ABC"]
  batch_size: Count
  seq_len: Count = 64
  rows: Count = 16_000

  def __post_init__(self):
    if self.seq_len < 8:
      raise ConfigError(
        f"data.seq_len = {self.seq_len}: wanted 8 or more, room for '#', a text and the end"
      )

  @property
  def vocab_size(self) -> int:
    return byte_t5.VOCAB_SIZE

  @property
  def batch_fields(self) -> dict:
    return encoder_decoder.batch_fields(self.batch_size, self.seq_len, self.seq_len)

  def row_maker(self):
    return lambda rng: encoder_decoder.row(*row(self.task, rng, self.seq_len), padded=False)
