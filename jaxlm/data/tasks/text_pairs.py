"""Tasks that map a text to a text, over ByT5's bytes: XNLI, TyDiQA, spelling correction, word
search. docs/specs/mrt5.md, section 8.

XNLI and TyDiQA are read in the format in which they are published. The character tasks stand in for
the suite of Huang et al. (2023), which is not in any package: made from word lists, misspellings
and WordNet's definitions.

Axes: L encoder, T decoder.
"""

import csv
import dataclasses
import functools
import hashlib
import json
import pathlib
import re
from typing import ClassVar, Literal

import grain
import numpy as np

from jaxlm.config import ConfigError, checked
from jaxlm.data import byte_t5
from jaxlm.data.base import DataConfig
from jaxlm.data.errors import DataError
from jaxlm.data.forms import encoder_decoder
from jaxlm.data.pipeline import batches
from jaxlm.data.sources import open_corpus
from jaxlm.data.splits import SPLIT_SEEDS, SPLITS, check_split
from jaxlm.paths import expand
from jaxlm.ranges import Count

XNLI_LANGUAGES = (
  "ar",
  "bg",
  "de",
  "el",
  "en",
  "es",
  "fr",
  "hi",
  "ru",
  "sw",
  "th",
  "tr",
  "ur",
  "vi",
  "zh",
)
TYDIQA_LANGUAGES = (
  "russian",
  "arabic",
  "bengali",
  "telugu",
  "finnish",
  "swahili",
  "korean",
  "indonesian",
  "english",
)
#: The training file says "contradictory".
XNLI_LABELS = {"entailment": 0, "neutral": 1, "contradiction": 2, "contradictory": 2}


@dataclasses.dataclass(frozen=True)
@checked
class Pairs(DataConfig):
  """Base. seq_len, target_len: longest input and answer, the end included; longer ones are cut. A
  subclass gives `pairs`.

  count_padding: the padding of answers counts in the loss, as in the release's question answering;
  for replay only.
  """

  batch_form: ClassVar[str] = "encoder_decoder"

  batch_size: Count
  seq_len: Count
  target_len: Count
  count_padding: bool = False

  @property
  def vocab_size(self) -> int:
    return byte_t5.VOCAB_SIZE

  @property
  def batch_fields(self) -> dict:
    return encoder_decoder.batch_fields(self.batch_size, self.seq_len, self.target_len)

  def pairs(self, split: str, seed: int):
    """Random-access (input text, answer)."""
    raise NotImplementedError(f"{type(self).__name__} names no pairs")

  def build(
    self,
    split: str,
    *,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    repeat: bool = True,
  ) -> grain.IterDataset:
    check_split(split)
    pairs = self.pairs(split, seed)
    if not len(pairs):
      raise DataError(f"{type(self).__name__}: split {split!r} is empty")
    return batches(
      _Rows(self, pairs),
      batch_size=self.batch_size,
      seed=seed,
      shuffle=repeat,
      repeat=repeat,
      process_index=process_index,
      process_count=process_count,
      fingerprint=self._position_of(pairs),
    )

  def _position_of(self, pairs) -> str:
    """What a saved position depends on: every pair, or what rows are made of."""
    digest = hashlib.sha256(str(self).encode())
    for pair in pairs.entries if isinstance(pairs, _Searches) else pairs:
      digest.update(repr(pair).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]

  def row(self, source: str, answer: str) -> dict[str, np.ndarray]:
    tokens = byte_t5.pad([byte_t5.encode(source, self.seq_len)], self.seq_len)[0]
    labels = byte_t5.pad(
      [byte_t5.encode(answer, self.target_len)], self.target_len, byte_t5.IGNORED
    )[0]
    counted = np.ones_like(labels, bool) if self.count_padding else None
    return encoder_decoder.row(tokens, labels, padded=True, counted=counted)


class _Rows:
  def __init__(self, cfg: Pairs, pairs):
    self.cfg, self.texts = cfg, pairs

  def __len__(self) -> int:
    return len(self.texts)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    return self.cfg.row(*self.texts[int(index)])


def _file(folder: str, *names: str) -> pathlib.Path:
  """The first of `names` under folder, as the archives unpack it or flat."""
  for name in names:
    for path in (
      pathlib.Path(expand(folder)) / name,
      pathlib.Path(expand(folder)) / pathlib.Path(name).name,
    ):
      if path.is_file():
        return path
  raise DataError(
    f"data.folder = {folder!r} holds no {' or '.join(names)}; unpack the published archive there"
  )


def _lines(path: pathlib.Path):
  try:
    # Only a line feed ends a line: a sentence may hold U+0085, U+2028 and their like. A byte-order
    # mark is no text.
    return path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
  except UnicodeDecodeError as error:
    raise DataError(f"{path} is not UTF-8 (offset {error.start}); convert it") from None


@dataclasses.dataclass(frozen=True)
@checked
class XNLIData(Pairs):
  """'Premise: ... Hypothesis: ...' -> '0', '1' or '2'. Trained on English (multinli.train.en.tsv of
  XNLI-MT-1.0); validation and test in `languages` (xnli.dev.tsv, xnli.test.tsv of XNLI-1.0)."""

  folder: str = "XNLI"
  languages: tuple[str, ...] = ("en",)
  seq_len: Count = 1024
  target_len: Count = 2

  def __post_init__(self):
    super().__post_init__()
    for language in self.languages:
      if language not in XNLI_LANGUAGES:
        raise ConfigError(
          f"data.languages: {language!r} is none of XNLI's {', '.join(XNLI_LANGUAGES)}"
        )

  def pairs(self, split, seed):
    if split == "train":
      path, columns = (
        _file(self.folder, "XNLI-MT-1.0/multinli/multinli.train.en.tsv"),
        ("premise", "hypo", "label"),
      )

      def keep(row):
        return True
    else:
      name = {"validation": "dev", "test": "test"}[split]
      path, columns = (
        _file(self.folder, f"XNLI-1.0/xnli.{name}.tsv"),
        ("sentence1", "sentence2", "gold_label"),
      )

      def keep(row):
        return row["language"] in self.languages

    rows = csv.DictReader(_lines(path), delimiter="\t", quoting=csv.QUOTE_NONE)
    missing = [c for c in columns if c not in (rows.fieldnames or ())]
    if missing:
      raise DataError(
        f"{path} has no column {missing[0]!r}; wanted a header with {', '.join(columns)}"
      )
    out = []
    for number, row in enumerate(rows, 2):
      if keep(row):
        if row[columns[2]] not in XNLI_LABELS:
          raise DataError(
            f"{path}, line {number}: label {row[columns[2]]!r} is none of {', '.join(XNLI_LABELS)}"
          )
        out.append(
          byte_t5.xnli_texts(
            {
              "premise": row[columns[0]],
              "hypothesis": row[columns[1]],
              "label": XNLI_LABELS[row[columns[2]]],
            }
          )
        )
    return out


@dataclasses.dataclass(frozen=True)
@checked
class TyDiQAData(Pairs):
  """'Question: ... Context: ...' -> the first answer, of TyDiQA-GoldP (or SQuAD, XQuAD: one
  format).

  A fifth of the training file, by hash of the question's id, is for validation; test is the
  published validation file.
  """

  folder: str = "tydiqa"
  languages: tuple[str, ...] = TYDIQA_LANGUAGES
  seq_len: Count = 2048
  target_len: Count = 256

  def questions(self, split: str) -> list[dict]:
    """[{id, question, context, answers}]; the language is the id's prefix."""
    name = "dev" if split == "test" else "train"
    path = _file(self.folder, f"tydiqa-goldp-v1.1-{name}.json", f"{name}.json")
    try:
      document = json.loads("\n".join(_lines(path)))
      found = [
        dict(
          id=qa["id"],
          question=qa["question"],
          context=paragraph["context"],
          answers=[answer["text"] for answer in qa["answers"]],
        )
        for article in document["data"]
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
      ]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
      raise DataError(f"{path} is not in SQuAD's format: {type(error).__name__} {error}") from None

    def of_language(q):
      return q["id"].partition("-")[0] in (*self.languages, q["id"])  # ids without a prefix: SQuAD

    def held_out(q):
      return int(hashlib.sha256(q["id"].encode()).hexdigest()[:8], 16) % 5 == 0

    return [
      q
      for q in found
      if of_language(q)
      and q["answers"]
      and (split == "test" or held_out(q) == (split == "validation"))
    ]

  def pairs(self, split, seed):
    return [byte_t5.qa_texts(q) for q in self.questions(split)]


def _hash_side(key: str) -> str:
  value = int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) % 100
  return "test" if value < 5 else "validation" if value < 10 else "train"


@dataclasses.dataclass(frozen=True)
@checked
class SpellingData(Pairs):
  """A short phrase with one misspelt word -> the phrase: 'the actuall name' -> 'the actual name'.

  misspellings: documents or lines 'word wrong wrong ...' ('prepared:spelling', from people's
  mistakes). contexts: prose in which the words occur; None: the word alone. A word is on one side
  of the split with all its misspellings.
  which: 'dependent' keeps the misspellings that are words themselves, which only the context gives
  away.
  """

  misspellings: str = "prepared:spelling"
  contexts: str | None = "mini:en"
  which: Literal["all", "dependent", "independent"] = "all"
  seq_len: Count = 64
  target_len: Count = 64

  def pairs(self, split, seed):
    corpora = tuple(
      open_corpus(source).fingerprint for source in (self.misspellings, self.contexts) if source
    )
    return _spelling(self, split, seed, corpora)


@functools.lru_cache(maxsize=8)
def _spelling(
  cfg: SpellingData, split: str, seed: int, corpora: tuple[str, ...]
) -> list[tuple[str, str]]:
  """corpora: fingerprints, so that what is kept is that of the texts as they are."""
  wrong_of = {}
  for side in SPLITS:  # sides are by word, whatever the corpus made of it
    for document in open_corpus(cfg.misspellings).documents(side):
      for line in document.decode().splitlines():
        word, *wrong = line.split()
        if wrong and word.isascii() and word.isalpha():
          wrong_of.setdefault(word, []).extend(w for w in wrong if w != word and w.isascii())
  known = {w.lower() for w in wrong_of}
  wanted = {
    "all": lambda w: True,
    "dependent": lambda w: w.lower() in known,
    "independent": lambda w: w.lower() not in known,
  }[cfg.which]
  wrong_of = {
    word: [w for w in wrong if wanted(w)]
    for word, wrong in wrong_of.items()
    if _hash_side(word) == split
  }
  wrong_of = {word: wrong for word, wrong in wrong_of.items() if wrong}
  rng = np.random.default_rng([seed, SPLIT_SEEDS[split]])
  if cfg.contexts is None:
    return [(w, word) for word, wrong in sorted(wrong_of.items()) for w in wrong]
  out = []
  for document in open_corpus(cfg.contexts).documents(split):
    words = re.findall(r"[A-Za-z]+", document.decode())
    for i, word in enumerate(words):
      if word.lower() in wrong_of:
        before, after = int(rng.integers(3)), int(rng.integers(3))
        left, right = words[max(0, i - before) : i], words[i + 1 : i + 1 + after]
        wrong = wrong_of[word.lower()][rng.integers(len(wrong_of[word.lower()]))]

        def phrase(w):
          return " ".join([*left, w, *right]).lower()

        if max(map(len, (phrase(word), phrase(wrong)))) < min(cfg.seq_len, cfg.target_len):
          out.append((phrase(wrong), phrase(word)))
  return [out[i] for i in rng.permutation(len(out))]


@dataclasses.dataclass(frozen=True)
@checked
class WordSearchData(Pairs):
  """'definition: letters' -> the defined word, written backwards somewhere in the letters.

  definitions: documents 'word: gloss' ('prepared:definitions', of WordNet's nouns). The letters are
  words one behind the other, with the wanted one reversed among them; their number fills the input
  as far as it goes.
  """

  definitions: str = "prepared:definitions"
  seq_len: Count = 128
  target_len: Count = 16
  rows: Count = 4096
  num_words: Count = 4

  def pairs(self, split, seed):
    return _Searches(self, split, seed)


class _Searches:
  """Row i hides word i; its neighbours are drawn."""

  def __init__(self, cfg: WordSearchData, split: str, seed: int):
    self.cfg, self.split, self.seed = cfg, split, seed
    longest = cfg.target_len - 1
    self.entries = []
    for document in open_corpus(cfg.definitions).documents(split):
      word, _, gloss = document.decode().partition(": ")
      if (
        word.isascii()
        and word.isalpha()
        and word.islower()
        and 3 <= len(word) <= longest
        and word not in gloss
      ):
        self.entries.append((word, gloss.partition(";")[0].strip()))

    def room(word, gloss):
      return cfg.seq_len - 1 - len(gloss.encode()) - 2 >= len(word)

    self.entries = [e for e in self.entries if room(*e)]
    self.words = [word for word, _ in self.entries]

  def __len__(self) -> int:
    return len(self.entries) if self.split == "train" else min(self.cfg.rows, len(self.entries))

  def __getitem__(self, index: int) -> tuple[str, str]:
    rng = np.random.default_rng([self.seed, SPLIT_SEEDS[self.split], int(index)])
    word, gloss = self.entries[index]
    letters, room = [word[::-1]], self.cfg.seq_len - 1 - len(gloss.encode()) - 2 - len(word)
    for other in rng.choice(self.words, self.cfg.num_words - 1):
      if len(other) <= room:
        letters.insert(int(rng.integers(len(letters) + 1)), str(other))
        room -= len(other)
    return f"{gloss}: {''.join(letters)}", word
