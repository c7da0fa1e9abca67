"""Passages and gaps: nothing is cut but where it is said, folds share no document, and gaps close
to what is left.
"""

import numpy as np
import pytest

from jaxlm.config import ConfigError
from jaxlm.data.infilling import InfillingSet, cut_segments, insertion_prompt, masked_prompt
from jaxlm.data.passages import PassageData, cut, sentences


@pytest.fixture
def source(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXLM_DATA", str(tmp_path / "cache"))
  for split in ("train", "validation", "test"):
    (tmp_path / split).mkdir()
    for i in range(6):
      text = f"The {split} number {i} is said by Mr. Smith. It is short!\n\nA second paragraph, number {i}, ends here."
      (tmp_path / split / f"{i}.txt").write_text(text)
  return f"text:{tmp_path}/{{split}}/*.txt"


def test_sentences_joined_with_blanks_are_the_text_and_titles_end_none():
  text = 'Mr. Bennet replied that he had not. "But it is," returned she; "for Mrs. Long has been here." Mr. J. Bell left!'
  parts = sentences(text)
  assert " ".join(parts) == text and len(parts) == 3


def test_units_of_a_document_are_all_of_it():
  document = b"One is here. Two is there.\n\nThree\nis broken."
  assert list(cut(iter([document]), "sentence")) == [
    b"One is here.",
    b"Two is there.",
    b"Three is broken.",
  ]
  assert list(cut(iter([document]), "paragraph")) == [
    b"One is here. Two is there.",
    b"Three is broken.",
  ]
  assert list(cut(iter([document]), "document")) == [document]


def test_two_folds_have_no_document_in_common_and_together_are_all(source):
  texts = {}
  for fold in ((0, 2), (1, 2), None):
    data = PassageData(source, seq_len=80, batch_size=1, unit="sentence", fold=fold)
    passages = data.passages("train")
    texts[fold] = [data.decode(passages[i]) for i in range(len(passages))]
  assert not set(texts[0, 2]) & set(texts[1, 2]) - {"It is short!"} and len(texts[None]) == 18
  assert sorted(texts[0, 2] + texts[1, 2]) == sorted(texts[None])


@pytest.mark.parametrize(
  "form", ["insertion", "insertion_transformer", "causal", "masked_diffusion"]
)
def test_a_row_holds_a_whole_passage_in_every_form(source, form):
  data = PassageData(source, seq_len=64, batch_size=2, unit="sentence", form=form)
  whole = {tuple(data.passages("test")[i]) for i in range(len(data.passages("test")))}
  batch = next(iter(data.build("test", seed=0, repeat=False)))
  for row in range(2):
    inside = batch["segment_ids"][row] > 0
    tokens = batch["tokens"][row][inside]
    if form.startswith("insertion"):
      n = int(batch["num_missing"][row, 0])
      given = batch["missing"][row, :n]
      found = [*tokens[2:], *given[given < 256]]
      assert sorted(found) in [sorted(w) for w in whole] and list(tokens[:2]) == [
        data.special_tokens.cls,
        data.special_tokens.bos,
      ]
    else:
      assert (
        tuple(t for t in tokens[1:] if t != data.special_tokens.eos) in whole
        and tokens[0] == data.special_tokens.bos
      )
  if form == "causal":
    last = int(batch["loss_weights"][0].sum()) - 1
    assert batch["targets"][0, last] == data.special_tokens.eos


def test_passages_that_do_not_fit_are_left_out_and_counted(source):
  data = PassageData(source, seq_len=20, batch_size=1, unit="sentence")
  assert len(data.passages("train")) == 6 and data.left_out("train") == 12
  assert data.decode(data.passages("train")[0]) == "It is short!"
  with pytest.raises(ConfigError, match="no passage has at most 3 tokens"):
    PassageData(source, seq_len=5, batch_size=1).build("train", seed=0)


def test_a_fold_outside_its_number_is_refused():
  with pytest.raises(ConfigError, match="0 <= k < n"):
    PassageData("mini:en", seq_len=8, batch_size=1, fold=(2, 2))


def test_removed_segments_are_as_many_and_as_long_as_asked():
  rng = np.random.default_rng(0)
  for _ in range(300):
    T, k = int(rng.integers(2, 40)), int(rng.integers(1, 5))
    removed = cut_segments(T, k, 0.2, rng)
    n = min(max(round(0.2 * T), 1), T - 1)
    runs = int((np.diff(np.concatenate([[False], removed]).astype(int)) == 1).sum())
    assert removed.sum() == n and runs == min(k, n, T - n + 1)


def test_every_place_of_a_single_segment_is_equally_likely():
  rng, seen = np.random.default_rng(0), np.zeros(9)
  for _ in range(3600):
    seen[np.flatnonzero(cut_segments(10, 1, 0.2, rng))[0]] += 1
  assert ((seen - 400) ** 2 / 400).sum() < 26.1  # 8 degrees of freedom, p = 0.001


@pytest.mark.parametrize("kind", ["single", "multi", "sentence"])
def test_a_prompt_opens_exactly_the_gaps_and_a_mask_stands_for_each_removed_token(source, kind):
  data = PassageData(source, seq_len=128, batch_size=1, unit="paragraph")
  for example in InfillingSet(data, kind).examples("test", seed=0):
    prompt, closed = insertion_prompt(example, data.special_tokens)
    np.testing.assert_array_equal(prompt[2:], example.left)
    assert (
      closed[0]
      and (~closed).sum()
      == (np.diff(np.concatenate([[0], example.removed.astype(int)])) == 1).sum()
    )
    masked = masked_prompt(example, data.special_tokens)
    assert (masked == data.special_tokens.mask).sum() == example.removed.sum()
    np.testing.assert_array_equal(masked[masked != data.special_tokens.mask][1:], example.left)
    if kind == "sentence":
      assert data.decode(example.tokens[example.removed]) in sentences(data.decode(example.tokens))


def test_a_published_infilling_set_is_read(source, tmp_path):
  (tmp_path / "gaps.jsonl").write_text('{"tokenized_text": [5, 6, 7], "mask": [0, 1, 0]}')
  data = PassageData(source, seq_len=16, batch_size=1)
  [example] = InfillingSet(data, path=str(tmp_path / "gaps.jsonl")).examples("test", seed=0)
  ids = data.special_tokens
  assert list(insertion_prompt(example, ids)[0]) == [ids.cls, ids.bos, 5, 7]
