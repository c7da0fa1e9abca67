"""Characters as tokens."""

import collections

import numpy as np
import pytest

from jaxlm.config import ConfigError
from jaxlm.data.errors import DataError
from jaxlm.data.tokenizers.chars import CharTokenizerConfig, vocabulary

TEXTS = ["abba ça\n", "aab>"]


def tokenizer(tmp_path, **fields):
  return CharTokenizerConfig(**fields).load(
    lambda: iter(t.encode() for t in TEXTS), "content", tmp_path
  )


def test_known_characters_come_back_and_the_rest_is_one_unknown(tmp_path):
  tok = tokenizer(tmp_path, vocab_size=12)
  for text in TEXTS:
    assert tok.decode(tok.encode(text)) == text
    assert tok.num_bytes()[tok.encode(text)].sum() == len(text.encode())
  assert (
    tok.encode("aZb").tolist()[1] == tok.unknown and tok.decode(tok.encode("aZb")) == "a\ufffdb"
  )
  assert tok.separator == 11 and tok.token_bytes(11) == b""
  # From the cache, whatever the text now is.
  again = CharTokenizerConfig(vocab_size=12).load(lambda: iter([]), "content", tmp_path)
  assert again.fingerprint == tok.fingerprint


def test_the_vocabulary_keeps_what_is_asked_for_and_then_what_is_frequent():
  counts = collections.Counter("aaabbcd")
  assert vocabulary(counts, 3) == ["a", "b", "c"] and vocabulary(counts, 3, "z") == ["a", "b", "z"]


def test_a_symbol_without_an_id_is_refused(tmp_path):
  np.testing.assert_array_equal(
    np.diff(tokenizer(tmp_path, vocab_size=5, always=";>").ids(";>")), [1]
  )
  with pytest.raises(DataError, match="tokenizer.always"):
    tokenizer(tmp_path, vocab_size=12).ids("a;")
  with pytest.raises(ConfigError, match="vocab_size = 3"):
    CharTokenizerConfig(vocab_size=3, always="ab")
