"""Tasks from text to text: the published formats on small files, the character tasks, the mixture
of languages.
"""

import json

import numpy as np
import pytest

from jaxlm.config import ConfigError
from jaxlm.data import DataError, byte_t5
from jaxlm.data.bigram import BigramData
from jaxlm.data.corrupted_text import SpanCorruptionData, shares
from jaxlm.data.tasks.diagnostic import DiagnosticData
from jaxlm.data.tasks.star_graphs import StarGraphData
from jaxlm.data.tasks.text_pairs import SpellingData, TyDiQAData, WordSearchData, XNLIData
from jaxlm.evaluation.answers import answer_scores

DEV = "language\tgold_label\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse\tsentence1\tsentence2\tpromptID\n"


@pytest.fixture
def xnli(tmp_path):
  (tmp_path / "XNLI-1.0").mkdir()
  (tmp_path / "XNLI-MT-1.0/multinli").mkdir(parents=True)
  (tmp_path / "XNLI-1.0/xnli.dev.tsv").write_text(
    DEV
    + 'de\tneutral\t\t\t\t\tEr sagte: "Mama.\tEr rief an.\t1\n'
    + "en\tcontradiction\t\t\t\t\tHe called.\tHe slept.\t1\n"
  )
  (tmp_path / "XNLI-MT-1.0/multinli/multinli.train.en.tsv").write_text(
    "premise\thypo\tlabel\nA cat sits.\tAn animal sits.\tentailment\nA cat.\tA dog.\tcontradictory\n"
  )
  return tmp_path


def text(ids):
  return byte_t5.decode(np.asarray(ids))


def test_xnli_reads_the_published_files(xnli):
  data = XNLIData(batch_size=1, folder=str(xnli), languages=("de",), seq_len=96)
  assert data.pairs("train", 0)[1] == ("Premise: A cat. Hypothesis: A dog.", "2")
  [batch] = data.build("validation", seed=0, repeat=False)
  assert (
    text(batch["tokens"][0]) == 'Premise: Er sagte: "Mama. Hypothesis: Er rief an.'
  )  # a lone quotation mark is text
  assert text(batch["targets"][0]) == "1" and batch["loss_weights"].tolist() == [[1, 1]]
  assert batch["decoder_tokens"][0].tolist() == [0, ord("1") + 3]


def test_xnli_names_what_is_wrong(xnli):
  with pytest.raises(ConfigError, match="'xx' is none of XNLI's"):
    XNLIData(batch_size=1, languages=("xx",))
  with pytest.raises(DataError, match="xnli.test.tsv"):
    XNLIData(batch_size=1, folder=str(xnli)).pairs("test", 0)
  (xnli / "XNLI-1.0/xnli.test.tsv").write_text(DEV + "en\tmaybe\t\t\t\t\ta\tb\t1\n")
  with pytest.raises(DataError, match="line 2: label 'maybe'"):
    XNLIData(batch_size=1, folder=str(xnli)).pairs("test", 0)


def test_tydiqa_reads_the_published_files_and_holds_out_a_fifth(tmp_path):
  def question(i, language):
    return {
      "id": f"{language}-{i}",
      "question": f"who {i}?",
      "answers": [{"text": "Ada", "answer_start": 0}, {"text": "Ada L.", "answer_start": 0}],
    }

  document = {
    "data": [
      {
        "paragraphs": [
          {
            "context": "Ada wrote it.",
            "qas": [*(question(i, "finnish") for i in range(40)), question(0, "english")],
          }
        ]
      }
    ]
  }
  (tmp_path / "tydiqa-goldp-v1.1-train.json").write_text(json.dumps(document))
  (tmp_path / "tydiqa-goldp-v1.1-dev.json").write_text(json.dumps(document))
  data = TyDiQAData(
    batch_size=2, folder=str(tmp_path), languages=("finnish",), seq_len=64, target_len=8
  )
  train, held_out = data.questions("train"), data.questions("validation")
  assert len(train) + len(held_out) == 40 == len(data.questions("test")) and 0 < len(held_out) < 20
  batch = next(iter(data.build("train", seed=0)))
  assert text(batch["tokens"][0]).startswith("Question: who") and text(batch["targets"][0]) == "Ada"
  assert batch["loss_weights"][0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
  (tmp_path / "other").mkdir()
  (tmp_path / "other/train.json").write_text("{}")
  with pytest.raises(DataError, match="SQuAD's format"):
    TyDiQAData(batch_size=2, folder=str(tmp_path / "other")).questions("train")


def test_answers_are_scored_without_case_articles_and_punctuation():
  assert answer_scores("The  Ada!", ["ada", "x"]) == (1.0, 1.0)
  exact, f1 = answer_scores("Ada Byron", ["Ada Lovelace", "Grace"])
  assert (exact, f1) == (0.0, 0.5)


def test_spelling_puts_a_misspelt_word_into_a_phrase(tmp_path):
  (tmp_path / "wrong.txt").write_text(
    "".join(f"{w} {w}x {w[:-1]}\n" for w in ("whale", "ship", "captain", "ocean", "water"))
  )
  data = SpellingData(
    batch_size=1, misspellings=f"text:{tmp_path}/wrong.txt", contexts="mini:moby_dick"
  )
  pairs = {split: data.pairs(split, 0) for split in ("train", "validation", "test")}
  assert sum(map(len, pairs.values())) > 20
  for wrong, right in [p for side in pairs.values() for p in side][:50]:
    a, b = wrong.split(), right.split()
    assert sum(x != y for x, y in zip(a, b)) == 1 and len(a) == len(b) and len(right) < 64
  words = [
    {next(y for x, y in zip(w.split(), r.split()) if x != y) for w, r in side}
    for side in pairs.values()
  ]
  assert not words[0] & words[1] and not words[0] & words[2]


def test_a_word_search_hides_the_defined_word_backwards(tmp_path):
  (tmp_path / "train.txt").write_text("color: a visual property; 'red'")
  for split in ("validation", "test"):
    (tmp_path / f"{split}.txt").write_text("whale: a very large sea animal")
  data = WordSearchData(batch_size=1, definitions=f"text:{tmp_path}/{{split}}.txt")
  source, answer = data.pairs("train", 0)[0]
  gloss, _, letters = source.partition(": ")
  assert (gloss, answer) == ("a visual property", "color") and "roloc" in letters
  assert len(source) < 128


def test_languages_are_drawn_by_a_power_of_their_size(tmp_path):
  np.testing.assert_allclose(shares([1000, 1], 0.3), np.array([1000**0.3, 1]) / (1000**0.3 + 1))
  np.testing.assert_allclose(shares([1000, 1], 0.0), [0.5, 0.5])
  for name, letter, size in (("a", "a", 4000), ("b", "b", 500)):
    for split in ("train", "validation", "test"):
      (tmp_path / f"{name}.{split}.txt").write_text(letter * size)
  data = SpanCorruptionData(
    tuple(f"text:{tmp_path}/{n}.{{split}}.txt" for n in "ab"), seq_len=64, batch_size=50
  )
  batch = next(iter(data.build("train", seed=0)))
  share = (batch["tokens"] == ord("b") + 3).any(1).mean()
  assert abs(share - shares([4001, 501], 0.3)[1]) < 0.2
  again = next(iter(data.build("train", seed=0)))
  np.testing.assert_array_equal(batch["tokens"], again["tokens"])
  assert batch["tokens"].shape == (50, 64) and batch["targets"].shape == (50, data.target_len)


def test_span_corruption_refuses_colliding_sentinels_and_bytes_that_are_not_text(tmp_path):
  with pytest.raises(ConfigError, match="only 11 bytes never occur in UTF-8"):
    SpanCorruptionData(("mini:en",), seq_len=1024, batch_size=1, mean_span=3.0)
  (tmp_path / "x.bin").write_bytes(b"abc\xff" * 500)
  with pytest.raises(DataError, match="not UTF-8: byte 0xff"):
    SpanCorruptionData((f"bytes:{tmp_path}/x.bin",), seq_len=64, batch_size=1).build(
      "train", seed=0
    )


def test_marks_inside_sentences_end_no_line(tmp_path):
  marks = "a\u2028b\x85c\x0cd"
  (tmp_path / "xnli.dev.tsv").write_text(
    f"\ufefflanguage\tgold_label\tsentence1\tsentence2\nen\tneutral\t{marks}\t{marks}\n",
    encoding="utf-8",
  )
  assert XNLIData(batch_size=1, folder=str(tmp_path)).pairs("validation", 0) == [
    (f"Premise: {marks} Hypothesis: {marks}", "1")
  ]
  questions = [dict(id="q", question="?", answers=[dict(text="a")])]
  (tmp_path / "dev.json").write_text(
    json.dumps(
      dict(data=[dict(paragraphs=[dict(context="a\u2028b\x85c", qas=questions)])]),
      ensure_ascii=False,
    ),
    encoding="utf-8",
  )
  assert TyDiQAData(batch_size=1, folder=str(tmp_path)).pairs("test", 0) == [
    ("Question: ? Context: a\u2028b\x85c", "a")
  ]


def test_bytes_of_targets_are_those_of_the_text(xnli):
  """Neither ends nor padding, counted in the loss or not, nor sentinels are bytes."""
  data = XNLIData(batch_size=1, folder=str(xnli), seq_len=96, target_len=6, count_padding=True)
  [batch] = data.build("validation", seed=0, repeat=False)
  assert batch["loss_weights"].sum() == 6 and batch["target_bytes"][0].tolist() == [
    1,
    0,
    0,
    0,
    0,
    0,
  ]
  batch = next(iter(DiagnosticData("copy", batch_size=2).build("train", seed=0)))
  assert (
    [len(text(row)) for row in batch["targets"]]
    == batch["target_bytes"].sum(1).tolist()
    == [63, 63]
  )
  data = SpanCorruptionData(("mini:moby_dick",), seq_len=256, batch_size=2)
  batch = next(iter(data.build("train", seed=0)))
  spans = (batch["targets"] >= 248).sum()
  assert (
    spans >= 2
    and batch["target_bytes"].sum() == batch["targets"].size - spans - (batch["targets"] == 1).sum()
  )


@pytest.mark.parametrize(
  "data", [BigramData(batch_size=2, seq_len=8), StarGraphData(batch_size=2, form="causal")]
)
def test_rows_that_are_no_text_have_no_bytes(data):
  assert not next(iter(data.build("train", seed=0)))["target_bytes"].any()
