"""`data.kind = "passages"`: one sentence, paragraph or document per row, whole, for models of
complete sequences.

Axes: T position. docs/specs/ilm.md, section 7.3. LM1B's documents are sentences and TinyStories'
are stories (`source` "tfds:lm1b", "text:stories/{split}/*.txt", ..); a corpus of chapters is cut
with `unit`.

Five ids follow the tokenizer's: CLS, BOS, EOS, PAD, MASK.
"""

import dataclasses
import hashlib
import re
from collections.abc import Iterator
from typing import Annotated, Literal

import grain
import numpy as np

from jaxlm.config import ConfigError, checked
from jaxlm.data.base import FramedDataConfig
from jaxlm.data.errors import DataError
from jaxlm.data.folders import data_dir
from jaxlm.data.forms import LAYOUTS, Form, check_constraint, framed, framed_length, row
from jaxlm.data.pipeline import batches
from jaxlm.data.sources import Corpus, open_corpus
from jaxlm.data.special_tokens import SpecialTokens
from jaxlm.data.splits import check_split
from jaxlm.data.store import TokenStore, token_store
from jaxlm.data.tokenizers import TOKENIZERS, Tokenizer
from jaxlm.data.tokenizers.bytes import ByteTokenizerConfig
from jaxlm.ranges import Count, Natural

# A full stop (or the like) with what closes after it, then white space, then what opens a sentence.
SENTENCE_END = re.compile(r"(?<=[.!?])([\"'”’)]*)\s+(?=[\"'“‘(]*[A-Z])")
ABBREVIATED = re.compile(r"(?:\b(?:Mr|Mrs|Ms|Dr|St|Messrs|Capt|Rev|No|vs|etc)|\b[A-Z])\.$")


#: Special tokens in the order of their ids, which follow the tokenizer's.
NAMES = ("cls", "bos", "eos", "pad", "mask")
FOLD_RULE = 2  # of which document is in which fold: another rule is another store
#: Bytes of text that each special token stands for.
NO_BYTES = SpecialTokens(cls=0, bos=0, eos=0, pad=0, mask=0)


@dataclasses.dataclass(frozen=True)
@checked
class PassageData(FramedDataConfig):
  """source, tokenizer: as of "text". unit: what a row is. form: what the model's objective reads.

  seq_len: places of a row, special tokens included; longer passages are left out
  (`PassageData.left_out` counts them), never cut. fold: (k, n) keeps the documents of every split
  whose text's hash is k modulo n: (0, 2) and (1, 2) have no document in common, whatever is added,
  so that a judge can be trained on what the judged model never saw. constraint: as in
  `forms.corrupted`.
  """

  source: str
  seq_len: Count
  batch_size: Count
  form: Form = "insertion"
  unit: Literal["sentence", "paragraph", "document"] = "document"
  tokenizer: Annotated[object, TOKENIZERS] = ByteTokenizerConfig()
  fold: tuple[Natural, Count] | None = None
  shuffle: bool = True
  constraint: bool = False

  def __post_init__(self):
    check_constraint(self.constraint, self.form)
    if self.seq_len < 3:
      raise ConfigError(
        f"data.seq_len = {self.seq_len}: wanted room for CLS, BOS and a token, 3 or more"
      )
    if self.fold is not None and not 0 <= self.fold[0] < self.fold[1]:
      raise ConfigError(f"data.fold = {self.fold}: wanted (k, n) with 0 <= k < n")

  @property
  def vocab_size(self) -> int:
    return self.tokenizer.vocab_size + len(NAMES)

  @property
  def special_tokens(self) -> SpecialTokens:
    return SpecialTokens.after(self.tokenizer.vocab_size, NAMES)

  @property
  def batch_fields(self) -> dict:
    """{name: (shape, dtype)} of a batch; no corpus is read."""
    ids = SpecialTokens.after(
      0, NAMES
    )  # the tokenizer's file may be elsewhere, and shapes do not depend on it
    fields = row(*framed([], [], ids, self.form), form=self.form, seq_len=self.seq_len, pad=ids.pad)
    if LAYOUTS[self.form].corrupts:
      fields = self._corrupt(fields, np.random.default_rng(0), ids)
    return {name: ((self.batch_size, *x.shape), x.dtype) for name, x in fields.items()}

  def load_tokenizer(self) -> Tokenizer:
    """The tokenizer; one that is trained here reads the whole train split the first time, whatever
    the fold.
    """
    corpus = open_corpus(self.source)
    return self.tokenizer.load(
      lambda: corpus.documents("train"), corpus.fingerprint, data_dir() / "tokenizers"
    )

  def store(self, split: str) -> TokenStore:
    check_split(split)
    corpus = open_corpus(self.source)
    name = f"{corpus.fingerprint} {FOLD_RULE} {self.unit} {self.fold}"
    passages = Corpus(
      self.source,
      hashlib.sha256(name.encode()).hexdigest(),
      lambda split: cut(corpus.documents(split), self.unit, self.fold),
    )
    return token_store(passages, split, self.load_tokenizer(), data_dir() / "tokens")

  def passages(self, split: str) -> "Passages":
    """Token ids of every passage that fits, without special tokens, in corpus order."""
    return Passages(self.store(split), self.seq_len - framed_length(0, 0, self.form))

  def left_out(self, split: str) -> int:
    """Passages too long for seq_len."""
    found = self.passages(split)
    return len(found.store.starts) - 1 - len(found)

  def decode(self, tokens) -> str:
    """Text of ids; special ones vanish."""
    return self.load_tokenizer().decode(t for t in tokens if t < self.special_tokens.cls).strip()

  def build(
    self, split, *, seed, process_index=0, process_count=1, repeat=True
  ) -> grain.IterDataset:
    found = self.passages(split)
    transform = self._corrupt if LAYOUTS[self.form].corrupts else None
    return batches(
      Rows(self, found),
      batch_size=self.batch_size,
      seed=seed,
      shuffle=self.shuffle and repeat,
      repeat=repeat,
      process_index=process_index,
      process_count=process_count,
      transform=transform,
      fingerprint=f"passages {found.store.fingerprint} {self.seq_len} {self.form} {self.shuffle}",
    )

  def _corrupt(self, row, rng, ids: SpecialTokens | None = None):
    ids = ids or self.special_tokens
    return LAYOUTS[self.form].corrupted(
      row,
      rng,
      seq_len=self.seq_len,
      longest_answer=self.seq_len,
      ids=ids,
      constraint=self.constraint,
    )


class Passages:
  """Random access to the passages of a store that have at most `longest` tokens."""

  def __init__(self, store: TokenStore, longest: int):
    self.store, self.longest = store, longest
    # The tokenizer's frame is no part of the passage.
    lengths = np.diff(store.starts) - len(store.front) - len(store.behind)
    self.index = np.flatnonzero((lengths <= longest) & (lengths > 0))
    if not len(self.index):
      raise DataError(
        f"no passage has at most {longest} tokens (the shortest has {lengths.min()}); raise data.seq_len or "
        f"cut smaller units"
      )

  def __len__(self) -> int:
    return len(self.index)

  def __getitem__(self, i: int) -> np.ndarray:
    start, stop = self._span(i)
    return np.asarray(self.store.tokens[start:stop], np.int32)

  def num_bytes(self, i: int) -> np.ndarray:
    """int32: bytes of the text that each token of passage i stands for."""
    return self.store.bytes_between(*self._span(i))

  def _span(self, i: int) -> tuple[int, int]:
    at, store = self.index[int(i)], self.store
    return store.starts[at] + len(store.front), store.starts[at + 1] - len(store.behind)


class Rows:
  """Passages as rows of one form."""

  def __init__(self, cfg: PassageData, passages: Passages):
    self.cfg, self.passages = cfg, passages

  def __len__(self) -> int:
    return len(self.passages)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    cfg = self.cfg
    tokens, types = framed([], self.passages[index], cfg.special_tokens, cfg.form)
    num_bytes = framed([], self.passages.num_bytes(index), NO_BYTES, cfg.form)[0]
    return row(
      tokens,
      types,
      form=cfg.form,
      seq_len=cfg.seq_len,
      pad=cfg.special_tokens.pad,
      num_bytes=num_bytes,
    )


def cut(
  documents: Iterator[bytes], unit: str, fold: tuple[int, int] | None = None
) -> Iterator[bytes]:
  """The units of a fold's documents, white space run together; documents are taken as they are."""
  for document in documents:
    # Other digits than those that decide the side.
    if (
      fold is not None and int(hashlib.sha256(document).hexdigest()[8:24], 16) % fold[1] != fold[0]
    ):
      continue
    if unit == "document":
      yield document.strip()
      continue
    for paragraph in re.split(r"\n\s*\n", document.decode("utf-8", "replace")):
      paragraph = " ".join(paragraph.split())
      for part in sentences(paragraph) if unit == "sentence" else [paragraph]:
        if part:
          yield part.encode()


def sentences(text: str) -> list[str]:
  """`text` cut behind . ! ? where a capital follows, but not behind titles and initials; joined
  with blanks it is `text`.
  """
  out, start = [], 0
  for match in SENTENCE_END.finditer(text):
    here = text[start : match.end(1)]
    if not ABBREVIATED.search(here):
      out.append(here)
      start = match.end()
  return [*out, text[start:]]
