"""What goes in comes out."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.config import ConfigError
from jaxlm.data import DATA, DataError
from jaxlm.data.tokenizers import TOKENIZERS
from jaxlm.data.tokenizers.bpe import (
  END_OF_TEXT,
  BPEFileConfig,
  _pieces,
  byte_letters,
  gpt2_tokenizer,
  train_bpe,
)

TEXT = (
  "It was the best of times, it was the worst of times; naïve café, 東京 – שלום 👩‍🚀\r\n\tend\n"
)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
  """A vocabulary of bytes, two merges and the end of text, in GPT-2's two files."""
  folder = tmp_path_factory.mktemp("gpt2")
  letters = {byte: letter for letter, byte in byte_letters().items()}
  entries = [letters[b] for b in range(256)] + ["th", "Ġth", END_OF_TEXT]
  (folder / "encoder.json").write_text(json.dumps({e: i for i, e in enumerate(entries)}))
  (folder / "vocab.bpe").write_text("#version: 0.2\nt h\nĠ th\n")
  return folder


@pytest.fixture(scope="module", params=["bytes", "hnet", "byt5", "gpt2", "trained"])
def tokenizer(request, gpt2, tmp_path_factory):
  if request.param == "gpt2":
    return TOKENIZERS.build({"kind": "bpe", "path": str(gpt2)}).load()
  if request.param == "trained":
    cfg = TOKENIZERS.build({"kind": "trained_bpe", "vocab_size": 300})
    return cfg.load(lambda: [TEXT.encode()] * 4, "x", tmp_path_factory.mktemp("trained"))
  layout = {
    "bytes": {},
    "hnet": {"separator": 254},
    "byt5": {"offset": 3, "separator": 1, "size": 384},
  }[request.param]
  return TOKENIZERS.build({"kind": "bytes", **layout}).load()


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_text_survives(tokenizer, text):
  ids = tokenizer.encode(text)
  assert ids.dtype == np.int32 and (ids >= 0).all() and (ids < tokenizer.vocab_size).all()
  assert tokenizer.decode_bytes(ids) == text.encode()
  assert tokenizer.num_bytes()[ids].sum() == len(text.encode())


def test_streaming_prints_whole_characters_only(tokenizer):
  stream = tokenizer.stream()
  pieces = [stream.push(t) for t in [tokenizer.separator, *tokenizer.encode(TEXT)]]
  assert "".join(pieces) + stream.close() == TEXT
  assert "\ufffd" not in "".join(pieces)
  stream = tokenizer.stream()
  assert stream.push(tokenizer.encode("é")[0]) in ("", "é")


def test_special_tokens_in_a_text_are_text(tokenizer):
  ids = tokenizer.encode(f"a{END_OF_TEXT}b")
  assert tokenizer.separator not in ids and tokenizer.decode(ids) == f"a{END_OF_TEXT}b"
  with pytest.raises(ValueError, match="outside the vocabulary"):
    tokenizer.token_bytes(tokenizer.vocab_size)


def test_gpt2_files_give_gpt2_ids(gpt2):
  tokenizer = TOKENIZERS.build({"kind": "bpe", "path": str(gpt2)}).load()
  assert tokenizer.encode("the th").tolist() == [256, ord("e"), 257]
  assert tokenizer.separator == 258 and tokenizer.vocab_size == 259
  assert gpt2_tokenizer(gpt2 / "encoder.json", gpt2 / "vocab.bpe").decode([257]) == " th"


def test_training_twice_gives_the_same_merges():
  assert train_bpe([TEXT] * 3, 290).to_str() == train_bpe([TEXT] * 3, 290).to_str()


def test_only_the_train_split_is_seen():
  cfg = DATA.build(
    dict(
      kind="text",
      source="mini:pride_and_prejudice",
      seq_len=64,
      batch_size=4,
      tokenizer={"kind": "trained_bpe", "vocab_size": 400},
    )
  )
  tokenizer, store = cfg.load_tokenizer(), cfg.store("validation")
  assert cfg.vocab_size == tokenizer.vocab_size == 400
  text = tokenizer.decode(store.tokens)
  from jaxlm.data.mini import mini

  assert text.encode() == b"".join(mini("pride_and_prejudice")[1]["validation"])
  assert len(store.tokens) < 0.75 * len(text)
  batch = next(iter(cfg.build("train", seed=0)))
  assert 1.3 < batch["target_bytes"].mean() < 3


def test_cutting_long_texts_changes_no_token(monkeypatch):
  import jaxlm.data.tokenizers.bpe as bpe

  text = "alpha beta\n\n  gamma\ndelta epsilon \nzeta\neta 1\n2 theta\n" * 20
  cfg = TOKENIZERS.build({"kind": "trained_bpe", "vocab_size": 280})
  import pathlib
  import tempfile

  with tempfile.TemporaryDirectory() as folder:
    tokenizer = cfg.load(lambda: [text.encode()], "y", pathlib.Path(folder))
  whole = tokenizer.encode(text)
  monkeypatch.setattr(bpe, "ENCODE_BYTES", 50)
  assert len(_pieces(text)) > 10 and "".join(_pieces(text)) == text
  np.testing.assert_array_equal(tokenizer.encode(text), whole)


def test_wrong_tokenizers_are_answered(tmp_path):
  with pytest.raises(ConfigError, match="byte 0x61, which text contains"):
    TOKENIZERS.build({"kind": "bytes", "separator": 97})
  with pytest.raises(ConfigError, match="set it to 257 or more"):
    TOKENIZERS.build({"kind": "bytes", "size": 256})
  with pytest.raises(DataError, match="missing: encoder.json, vocab.bpe"):
    TOKENIZERS.build({"kind": "bpe", "path": str(tmp_path)}).load()
  (tmp_path / "tokenizer.json").write_text("{}")
  with pytest.raises(DataError, match="is not a tokenizer"):
    TOKENIZERS.build({"kind": "bpe", "path": str(tmp_path)}).load()
  with pytest.raises(DataError, match="0xfe"):
    TOKENIZERS.build({"kind": "bytes", "separator": 254}).load().encode(b"\xfe")


def test_word_pieces_come_back_as_words(tmp_path):
  import tokenizers as hf

  vocabulary = {"[UNK]": 0, "[SEP]": 1, "the": 2, "play": 3, "##ing": 4}
  made = hf.Tokenizer(hf.models.WordPiece(vocabulary, unk_token="[UNK]"))
  made.pre_tokenizer, made.decoder = hf.pre_tokenizers.BertPreTokenizer(), hf.decoders.WordPiece()
  made.add_special_tokens(["[UNK]", "[SEP]"])
  made.save(str(tmp_path / "tokenizer.json"))
  tokenizer = BPEFileConfig(str(tmp_path)).load()
  assert tokenizer.encode("the playing").tolist() == [2, 3, 4]
  assert tokenizer.decode([2, 3, 4]) == " the playing" and tokenizer.separator == 1
