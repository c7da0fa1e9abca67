"""Characters, the vocabulary being those that the training text uses most."""

import collections
import dataclasses
import hashlib
import json
import pathlib
import uuid

import numpy as np

from jaxlm import json_text
from jaxlm.config import ConfigError, checked
from jaxlm.data.errors import DataError
from jaxlm.data.tokenizers.base import Tokenizer
from jaxlm.data.tokenizers.byte_counts import of_characters
from jaxlm.ranges import Count

NUM_SPECIAL = 2
UNKNOWN_BYTES = "\N{REPLACEMENT CHARACTER}".encode()


@dataclasses.dataclass(frozen=True)
@checked
class CharTokenizerConfig:
  """vocab_size ids: the most frequent characters of the train split in code order, then `unknown`,
  then the separator.

  always: characters that have an id even if the text never uses them (a task's symbols). Every
  other character is the one unknown, which decodes to U+FFFD; its bytes are counted as they stand
  in the text.
  """

  vocab_size: Count = 130
  always: str = ""

  def __post_init__(self):
    if self.vocab_size < NUM_SPECIAL + max(1, len(set(self.always))):
      raise ConfigError(
        f"tokenizer.vocab_size = {self.vocab_size}: wanted at least {len(set(self.always))} characters "
        f"and {NUM_SPECIAL} more, for what is unknown and what separates documents"
      )

  def load(self, train_documents, content: str, folder: pathlib.Path) -> "CharTokenizer":
    always = hashlib.sha256(self.always.encode()).hexdigest()[:8]
    path = folder / f"chars-{self.vocab_size}-{always}-{content[:24]}" / "characters.json"
    if not path.is_file():
      counts = collections.Counter()
      for text in train_documents():
        counts.update(_text(text))
      chosen = vocabulary(counts, self.vocab_size - NUM_SPECIAL, self.always)
      path.parent.mkdir(parents=True, exist_ok=True)
      part = path.with_name(f"characters.json.{uuid.uuid4().hex}")
      part.write_text(json_text.dumps(chosen))
      part.rename(path)
    return CharTokenizer(json.loads(path.read_text()), self.vocab_size)


def vocabulary(counts: collections.Counter, number: int, always: str = "") -> list[str]:
  """At most `number` characters in code order: `always`, then the most frequent; of equally
  frequent ones the first.
  """
  wanted = [
    *dict.fromkeys(always),
    *sorted(set(counts) - set(always), key=lambda c: (-counts[c], c)),
  ]
  return sorted(wanted[:number])


class CharTokenizer(Tokenizer):
  """Id of characters[i] is i; ids between the last character and `unknown` are never used."""

  exact_bytes = False

  def __init__(self, characters: list[str], vocab_size: int):
    self.characters, self.vocab_size = characters, vocab_size
    self.unknown, self.separator = vocab_size - 2, vocab_size - 1
    self.fingerprint = (
      f"chars-{vocab_size}-" + hashlib.sha256("".join(characters).encode()).hexdigest()[:24]
    )
    self._codes = np.array([ord(c) for c in characters], np.uint32)

  def encode_batch(self, texts):
    out = []
    for text in texts:
      codes = np.frombuffer(_text(text).encode("utf-32-le"), np.uint32)
      at = np.minimum(np.searchsorted(self._codes, codes), len(self._codes) - 1)
      out.append(np.where(self._codes[at] == codes, at, self.unknown).astype(np.int32))
    return out

  def encode_counted(self, texts):
    codes = [np.frombuffer(_text(text).encode("utf-32-le"), np.uint32) for text in texts]
    return list(zip(self.encode_batch(texts), map(of_characters, codes)))

  def token_bytes(self, token):
    if not 0 <= token < self.vocab_size:
      raise ValueError(f"token {token} is outside the vocabulary of {self.vocab_size}")
    if token == self.unknown:
      return UNKNOWN_BYTES
    return self.characters[token].encode() if token < len(self.characters) else b""

  def ids(self, symbols: str) -> np.ndarray:
    """int32 ids of characters that must all be known."""
    found = self.encode(symbols)
    if (found == self.unknown).any():
      missing = [c for c, i in zip(symbols, found) if i == self.unknown]
      raise DataError(f"the vocabulary has no {missing}; name them in tokenizer.always")
    return found


def _text(text: str | bytes) -> str:
  if isinstance(text, str):
    return text
  try:
    return text.decode("utf-8")
  except UnicodeDecodeError as error:
    raise DataError(
      f"a document is not UTF-8 (byte 0x{text[error.start]:02x} at offset {error.start}); use tokenizer "
      f"kind 'bytes', or convert the file"
    ) from None
