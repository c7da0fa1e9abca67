"""Byte-pair encoding: read from the files people have, or trained here on the train split."""

import dataclasses
import functools
import hashlib
import json
import pathlib
import uuid
from typing import Annotated

import numpy as np
import tokenizers as hf

from jaxlm import json_text
from jaxlm.config import checked
from jaxlm.data.errors import DataError
from jaxlm.data.folders import data_dir
from jaxlm.data.tokenizers.base import Tokenizer
from jaxlm.data.tokenizers.byte_counts import by_offsets, by_spelling
from jaxlm.data.tokenizers.cuts import may_be_cut, spells_exactly
from jaxlm.data.tokenizers.failures import answered
from jaxlm.data.tokenizers.letters import for_documents
from jaxlm.data.tokenizers.marks import COMPANIONS, Marks, declared_specials, read_marks
from jaxlm.data.tokenizers.words import WordEncoder, encodes_words
from jaxlm.paths import expand
from jaxlm.ranges import Range

END_OF_TEXT = "<|endoftext|>"
MOST_IDS = (
  1 << 24
)  # a table has a row for each id; published ones have up to a quarter of a million
ENCODE_BYTES = (
  100_000  # longer texts are encoded in pieces: a third faster, and all cores share them
)


@dataclasses.dataclass(frozen=True)
class BPEFileConfig:
  """path: a `tokenizer.json`; a folder that holds one, or GPT-2's `encoder.json` + `vocab.bpe`; or
  'prepared:NAME'.

  begin: the token in front of every document and prompt. end: the token that ends a text;
  generation stops at it.
  separator: the token between documents of training rows; generation stops at it too.
  None: what the file's post-processor and the files beside it say (`jaxlm.data.tokenizers.marks`).
  begin = "" and end = "": none. A prompt is encoded as Hugging Face's tokenizer of the folder does,
  special tokens that it spells included; in a document they are letters.
  """

  path: str = "prepared:gpt2-tokenizer"
  separator: str | None = None
  begin: str | None = None
  end: str | None = None

  @property
  def vocab_size(self) -> int:
    return self.load().vocab_size

  def load(self, train_documents=None, content: str = "", folder=None) -> "BPETokenizer":
    path = _resolve(self.path)
    return _load(str(path), self.separator, self.begin, self.end, state=_state(path))


@dataclasses.dataclass(frozen=True)
@checked
class TrainedBPEConfig:
  """Byte-level BPE of `vocab_size` entries, separator included, trained on the train split and kept
  in the cache.
  """

  vocab_size: Annotated[int, Range(257)]

  def load(self, train_documents, content: str, folder: pathlib.Path) -> "BPETokenizer":
    path = folder / f"bpe-{self.vocab_size}-{content[:24]}" / "tokenizer.json"
    if not path.is_file():
      trained = train_bpe(
        (text.decode("utf-8", "replace") for text in train_documents()), self.vocab_size
      )
      path.parent.mkdir(parents=True, exist_ok=True)
      part = path.with_name(f"tokenizer.json.{uuid.uuid4().hex}")
      trained.save(str(part))
      part.rename(path)
    return _load(str(path), END_OF_TEXT, END_OF_TEXT, END_OF_TEXT, self.vocab_size)


def train_bpe(texts, vocab_size: int) -> hf.Tokenizer:
  """Byte-level BPE with GPT-2's split pattern; the same texts in the same order give the same
  merges.
  """
  tokenizer = hf.Tokenizer(hf.models.BPE())
  tokenizer.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = hf.decoders.ByteLevel()
  tokenizer.train_from_iterator(
    texts,
    hf.trainers.BpeTrainer(
      vocab_size=vocab_size,
      special_tokens=[END_OF_TEXT],
      show_progress=False,
      initial_alphabet=hf.pre_tokenizers.ByteLevel.alphabet(),
    ),
  )
  return tokenizer


class BPETokenizer(Tokenizer):
  """size: entries of the table that the model should have, where training found fewer merges than
  it was allowed.
  """

  def __init__(
    self, tokenizer: hf.Tokenizer, marks: Marks, fingerprint: str, size: int | None = None
  ):
    # A document may contain the letters of a special token; they are letters there.
    self._tokenizer, self._documents, self._marks = tokenizer, for_documents(tokenizer), marks
    self.separator, self.closing = marks.separator, marks.closing
    letters = "" if self._documents is tokenizer else " letters"
    self.fingerprint = f"{fingerprint}{letters} {marks.begin} {marks.closing} {marks.separator}"
    self.vocab_size = size or 1 + max(
      tokenizer.get_vocab(with_added_tokens=True).values()
    )  # ids may have gaps

  @property
  def begin(self):
    return self._marks.begin

  @property
  def stops(self):
    return tuple(dict.fromkeys([*self._marks.ends, self.separator]))

  @functools.cached_property
  def _described(self) -> dict:
    return json.loads(self._tokenizer.to_str())

  @functools.cached_property
  def _byte_level(self) -> bool:
    return any(
      '"ByteLevel"' in json_text.dumps(self._described.get(part))
      for part in ("decoder", "pre_tokenizer")
    )

  @functools.cached_property
  def exact_bytes(self):
    return spells_exactly(self._described, set(byte_letters()))

  @functools.cached_property
  def _may_be_cut(self) -> bool:
    return may_be_cut(self._described)

  @functools.cached_property
  def _word_pieces(self) -> bool:
    return (self._described.get("decoder") or {}).get("type") == "WordPiece"

  @functools.cached_property
  def _bytes(self) -> list[bytes]:
    """Bytes of each id. Byte-level tables spell bytes as printable letters, but for added tokens,
    which are their own text; byte fallback writes <0xNN>, '▁' is space.

    WordPiece (BERT) begins a word with a blank unless the piece says '##': its texts come back
    lower case, blanks around every mark.
    """
    added = {t["id"]: t["special"] for t in self._described["added_tokens"]}
    byte_level = self._byte_level
    letters, out = byte_letters(), [b""] * self.vocab_size
    for token, i in self._tokenizer.get_vocab(with_added_tokens=True).items():
      if added.get(i):
        continue
      if byte_level and i not in added and all(c in letters for c in token):
        out[i] = bytes(letters[c] for c in token)
      elif self._word_pieces:
        out[i] = (token[2:] if token.startswith("##") else f" {token}").encode()
      elif not byte_level and len(token) == 6 and token.startswith("<0x"):
        out[i] = bytes([int(token[3:5], 16)])
      else:
        out[i] = token.replace("▁", " ").encode()
    return out

  def encode_batch(self, texts):
    texts = list(map(_text, texts))
    if self._words is None:
      return self._encode_texts(texts)
    with answered("the tokenizer"):
      found = self._words(texts)
    left = [i for i, ids in enumerate(found) if ids is None]
    for i, ids in zip(left, self._encode_texts([texts[i] for i in left])):
      found[i] = ids
    return found

  @functools.cached_property
  def _words(self) -> WordEncoder | None:
    """None where a text is not encoded word by word."""
    if not encodes_words(json.loads(self._documents.to_str())):
      return None
    return WordEncoder(
      lambda words: [
        e.ids for e in self._documents.encode_batch_fast(words, add_special_tokens=False)
      ]
    )

  def _encode_texts(self, texts: list[str]) -> list[np.ndarray]:
    return self._whole(
      texts,
      lambda pieces: [
        np.asarray(encoding.ids, np.int32)
        for encoding in self._documents.encode_batch_fast(pieces, add_special_tokens=False)
      ],
    )

  def encode_counted(self, texts):
    texts = list(map(_text, texts))
    found = self.encode_batch(texts)
    counts = [
      by_spelling(text.encode(), ids, self._bytes, self._sizes) for text, ids in zip(texts, found)
    ]
    # Offsets cost more than tokens, and few tokenizers need them for every text.
    unclear = [i for i, count in enumerate(counts) if count is None]
    for i, count in zip(unclear, self._whole([texts[i] for i in unclear], self._count)):
      counts[i] = count
    return list(zip(found, counts))

  def _count(self, pieces: list[str]) -> list[np.ndarray]:
    encodings = self._documents.encode_batch(pieces, add_special_tokens=False)
    return [
      by_offsets(piece, e.offsets, self._sizes[np.asarray(e.ids, np.int32)])
      for piece, e in zip(pieces, encodings)
    ]

  @functools.cached_property
  def _sizes(self) -> np.ndarray:
    return self.num_bytes()

  def _whole(self, texts: list[str], of_pieces) -> list[np.ndarray]:
    """`of_pieces` of the texts, each in the pieces that it may be cut into, put together again."""
    owned = [_pieces(text) if self._may_be_cut else [text] for text in texts]
    with answered("the tokenizer"):
      done = iter(of_pieces([piece for pieces in owned for piece in pieces]))
    return [np.concatenate([next(done) for _ in pieces]) for pieces in owned]

  def prompt(self, text):
    self._tokenizer.encode_special_tokens = False
    try:
      with answered("the tokenizer"):
        own = self._tokenizer.encode(text, add_special_tokens=False).ids
    finally:
      self._tokenizer.encode_special_tokens = True
    ids = [*self.begin, *own, *self.closing]
    return np.asarray(ids or self.frame[0], np.int32)

  def token_bytes(self, token):
    if not 0 <= token < self.vocab_size:
      raise ValueError(f"token {token} is outside the vocabulary of {self.vocab_size}")
    return self._bytes[token]


@functools.cache
def byte_letters() -> dict[str, int]:
  """GPT-2's table, letter -> byte: printable Latin-1 stands for itself, the other 68 bytes for
  U+0100 upwards.
  """
  plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
  others = [b for b in range(256) if b not in plain]
  return {chr(b): b for b in plain} | {chr(0x100 + i): b for i, b in enumerate(others)}


def _text(text: str | bytes) -> str:
  if isinstance(text, str):
    return text
  try:
    return text.decode("utf-8")
  except UnicodeDecodeError as error:
    raise DataError(
      f"a document is not UTF-8 (byte 0x{text[error.start]:02x} at offset {error.start}), and BPE reads "
      f"text; use tokenizer kind 'bytes', or convert the file"
    ) from None


def _pieces(text: str) -> list[str]:
  """The text in pieces of at most about ENCODE_BYTES, cut at "x\\n|y" with letters x and y: no
  token spans that.
  """
  out, start = [], 0
  while len(text) - start > ENCODE_BYTES:
    cut = text.rfind("\n", start + 1, start + ENCODE_BYTES)
    while cut > 0 and not (text[cut - 1].isalpha() and text[cut + 1].isalpha()):
      cut = text.rfind("\n", start + 1, cut)
    if cut < 0:
      break
    out.append(text[start : cut + 1])
    start = cut + 1
  return [*out, text[start:]]


def _resolve(path: str) -> pathlib.Path:
  if path.startswith("prepared:"):
    name = path.removeprefix("prepared:")
    found = data_dir() / "prepared" / name
    if not found.is_dir():
      raise DataError(
        f"tokenizer {name!r} is not in {data_dir()}; make it with `jaxlm data prepare {name}`"
      )
    return found
  return pathlib.Path(expand(path))


def _state(path: pathlib.Path) -> tuple:
  """Names, sizes and times of the files that say what a tokenizer is."""
  folder = path if path.is_dir() else path.parent
  files = {
    path,
    *(folder / name for name in ("tokenizer.json", "encoder.json", "vocab.bpe", *COMPANIONS)),
  }
  return tuple(
    (file.name, file.stat().st_size, file.stat().st_mtime_ns)
    for file in sorted(files)
    if file.is_file()
  )


@functools.lru_cache(maxsize=4)
def _load(
  path: str,
  separator: str | None = None,
  begin: str | None = None,
  end: str | None = None,
  size: int | None = None,
  state: tuple = (),
) -> BPETokenizer:
  """state: of the files, so that changed ones are read again."""
  path = pathlib.Path(path)
  if path.is_dir():
    files = [path / "tokenizer.json"]
    if not files[0].is_file():
      files = [path / "encoder.json", path / "vocab.bpe"]
    missing = [f.name for f in files if not f.is_file()]
    if missing:
      raise DataError(
        f"{path} holds neither tokenizer.json nor GPT-2's encoder.json and vocab.bpe "
        f"(missing: {', '.join(missing)})"
      )
  elif path.is_file():
    files = [path]
  else:
    raise DataError(
      f"tokenizer file {path} does not exist; set tokenizer.path to a tokenizer.json or to a folder"
    )
  digest = hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()
  try:
    tokenizer = hf.Tokenizer.from_file(str(files[0])) if len(files) == 1 else gpt2_tokenizer(*files)
  except Exception as error:  # the library raises a bare Exception
    raise DataError(f"{path} is not a tokenizer: {str(error).splitlines()[0]}") from None
  largest = max(
    tokenizer.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1], default=("", 0)
  )
  if largest[1] >= MOST_IDS:
    raise DataError(
      f"{path}: token {largest[0][:40]!r} has the id {largest[1]:,}; ids below {MOST_IDS:,} are read"
    )
  # A file may hold the length to which its owner padded or cut batches.
  tokenizer.no_padding()
  tokenizer.no_truncation()
  with answered(f"the tokenizer of {path}"):
    tokenizer.add_special_tokens(declared_specials(tokenizer, files[0].parent))
    marks = read_marks(
      tokenizer, files[0].parent, str(path), begin=begin, end=end, separator=separator
    )
    return BPETokenizer(tokenizer, marks, f"bpe-{digest[:24]}", size)


def gpt2_tokenizer(encoder: pathlib.Path, merges: pathlib.Path) -> hf.Tokenizer:
  """GPT-2's two files. The end-of-text entry is the only special."""
  vocabulary = json.loads(encoder.read_text("utf-8"))
  pairs = [
    tuple(line.split(" "))
    for line in merges.read_text("utf-8").split("\n")
    if line and not line.startswith("#version")
  ]
  tokenizer = hf.Tokenizer(hf.models.BPE(vocabulary, pairs))
  tokenizer.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = hf.decoders.ByteLevel()
  if END_OF_TEXT in vocabulary:
    tokenizer.add_special_tokens([END_OF_TEXT])
  return tokenizer
