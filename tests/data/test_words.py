"""Texts that are encoded word by word have the tokens that the library gives them whole."""

import json
import random

import numpy as np
import pytest

from jaxlm.data import mini
from jaxlm.data.tokenizers.bpe import _load, train_bpe
from jaxlm.data.tokenizers.words import RANGES, encodes_words


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  text = b"".join(mini.mini("moby_dick")[1]["validation"]).decode()
  path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
  train_bpe([text], 1000).save(str(path))
  return _load(str(path))


def test_words_have_the_tokens_of_the_whole_text(tokenizer):
  rng, known = random.Random(0), [chr(c) for a, b in RANGES for c in range(a, b)]
  blanks = list(" \n\t\r\x1c\x85\u2028\u205f'sdlvremt01aB._-½²é")
  texts = [
    "".join(rng.choices(known if i % 2 else blanks, k=rng.randrange(30))) for i in range(2000)
  ]
  texts += ["<|endoftext|> the <|endoftext|>x", "", "'s's''s  's\n\n's "]
  found, whole = tokenizer._words(texts), tokenizer._encode_texts(texts)
  assert all(ids is not None for ids in found)
  for text, ids, wanted in zip(texts, found, whole):
    np.testing.assert_array_equal(ids, wanted, err_msg=ascii(text))


def test_texts_of_other_alphabets_are_left_to_the_library(tokenizer):
  texts = ["plain", "中文 and ２", "नमस्ते", "plain again"]
  assert [ids is None for ids in tokenizer._words(texts)] == [False, True, True, False]
  for text, ids in zip(texts, tokenizer.encode_batch(texts)):
    assert tokenizer.decode(ids) == text


def test_tokenizers_with_other_rules_do_not_go_word_by_word(tokenizer):
  described = json.loads(tokenizer._tokenizer.to_str())
  assert encodes_words(described)
  for change in (
    {"normalizer": {"type": "NFC"}},
    {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}},
    {"added_tokens": [{**described["added_tokens"][0], "special": False}]},
    {"model": described["model"] | {"dropout": 0.1}},
  ):
    assert not encodes_words(described | change)
