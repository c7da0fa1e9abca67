"""Tokenizers as people have them: begin, end and separator, bytes of a text, and long texts; the library is the test."""

import json

import numpy as np
import pytest
import tokenizers as hf
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from jaxlm.data.text import TextData
from jaxlm.data.tokenizers import bpe
from jaxlm.data.tokenizers.bpe import BPEFileConfig

TEXTS = ["naïve 漢字 😀", "Hello world", "  two  blanks\n\nand lines\n", "Ünïcode ﬁ ①", "x", "<unknown> ☃☃"]
CORPUS = ["hello world the naive cat\n" * 5, "two blanks and lines", "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789 .,!?"]
BYTES = [f"<0x{i:02X}>" for i in range(256)]


def train(model, trainer, normalizer=None, pre=None, decoder=None, post=None, added=()):
  tokenizer = hf.Tokenizer(model)
  for name, part in (("normalizer", normalizer), ("pre_tokenizer", pre), ("decoder", decoder)):
    if part is not None:
      setattr(tokenizer, name, part)
  tokenizer.train_from_iterator(CORPUS, trainer)
  tokenizer.add_tokens(list(added))
  if post:
    single, names = post
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[(name, tokenizer.token_to_id(name)) for name in names])
  return tokenizer


def sentencepiece(special, post, *, prepend):
  """BPE with byte fallback and ▁ for blanks: Llama and Mistral (a blank in front), Gemma (none)."""
  steps = [normalizers.Prepend("▁")] if prepend else []
  return train(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True), trainers.BpeTrainer(
      vocab_size=400, special_tokens=[*special, *BYTES], show_progress=False),
      normalizer=normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")]), post=post,
      decoder=decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]))


def byte_level(special, post=None, *, prefix=False, normalizer=None, added=()):
  return train(models.BPE(), trainers.BpeTrainer(vocab_size=330, special_tokens=special, show_progress=False,
                                                 initial_alphabet=pre_tokenizers.ByteLevel.alphabet()),
               pre=pre_tokenizers.ByteLevel(add_prefix_space=prefix), decoder=decoders.ByteLevel(), post=post, normalizer=normalizer,
               added=added)


KINDS = {      # name -> (tokenizer, tokenizer_config.json, ids by name of begin, separator; names of what ends a text)
    "llama": lambda: (sentencepiece(["<unk>", "<s>", "</s>"], ("<s> $A", ["<s>"]), prepend=True),
                      dict(bos_token="<s>", eos_token="</s>"), ["<s>"], {"</s>"}),
    "gemma": lambda: (sentencepiece(["<pad>", "<eos>", "<bos>", "<unk>"], ("<bos> $A", ["<bos>"]), prepend=False),
                      dict(bos_token="<bos>", eos_token="<eos>"), ["<bos>"], {"<eos>"}),
    "llama3": lambda: (byte_level(["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"], ("<|begin_of_text|> $A", ["<|begin_of_text|>"])),
                       dict(bos_token="<|begin_of_text|>", eos_token="<|eot_id|>"), ["<|begin_of_text|>"], {"<|eot_id|>"}),
    "qwen": lambda: (byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], normalizer=normalizers.NFC(),
                                added=[AddedToken("<tool é>", normalized=False)]), dict(eos_token="<|im_end|>"), [], {"<|im_end|>"}),
    "gpt2": lambda: (byte_level(["<|endoftext|>"]), dict(bos_token="<|endoftext|>", eos_token="<|endoftext|>"), [], {"<|endoftext|>"}),
    "roberta": lambda: (byte_level(["<s>", "</s>", "<unk>"], ("<s> $A </s>", ["<s>", "</s>"]), prefix=True),
                        dict(bos_token="<s>", eos_token="</s>"), ["<s>"], {"</s>"}),
    "t5": lambda: (train(models.Unigram(), trainers.UnigramTrainer(
        vocab_size=90, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False), normalizer=normalizers.NFKC(),
        pre=pre_tokenizers.Metaspace(), decoder=decoders.Metaspace(), post=("$A </s>", ["</s>"])), dict(eos_token="</s>"), [], {"</s>"}),
    "bert": lambda: (train(models.WordPiece(unk_token="[UNK]"), trainers.WordPieceTrainer(
        vocab_size=90, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"], show_progress=False),
        normalizer=normalizers.BertNormalizer(lowercase=True), pre=pre_tokenizers.BertPreTokenizer(), decoder=decoders.WordPiece(),
        post=("[CLS] $A [SEP]", ["[CLS]", "[SEP]"])), dict(sep_token="[SEP]"), ["[CLS]"], {"[SEP]"}),
}


@pytest.fixture(params=KINDS)
def folder(request, tmp_path):
  tokenizer, config, begin, ends = KINDS[request.param]()
  tokenizer.save(str(tmp_path / "tokenizer.json"))
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "PreTrainedTokenizerFast"}))
  return tmp_path, tokenizer, begin, ends


def test_bytes_of_a_text_are_its_own_whatever_the_tokenizer(folder):
  ours = BPEFileConfig(str(folder[0])).load()
  for text, (ids, counts) in zip(TEXTS, ours.encode_counted(TEXTS)):
    np.testing.assert_array_equal(ids, ours.encode(text))
    if len(ids):
      assert counts.sum() == len(text.encode()) and counts.min() >= 0, text
  assert ours.encode_counted(["naïve 漢字 😀"])[0][1].sum() == 18


def test_the_targets_of_a_split_have_its_bytes(folder, tmp_path, monkeypatch):
  monkeypatch.setenv("JAXLM_DATA", str(tmp_path / "cache"))
  (tmp_path / "text").mkdir()
  for split in ("train", "validation", "test"):
    (tmp_path / "text" / f"{split}.txt").write_text("naïve 漢字 😀 und mehr\n" * 30)
  cfg = TextData(source=f"text:{tmp_path}/text/{{split}}.txt", seq_len=16, batch_size=1, tokenizer=BPEFileConfig(str(folder[0])))
  size = len(("naïve 漢字 😀 und mehr\n" * 30).encode())
  rows = list(cfg.build("validation", seed=0, repeat=False))
  assert sum(int((row["target_bytes"] * (row["loss_weights"] > 0)).sum()) for row in rows) == size


def test_begin_and_end_are_those_of_the_files(folder):
  path, tokenizer, begin, ends = folder
  ours = BPEFileConfig(str(path)).load()
  assert ours.begin == tuple(map(tokenizer.token_to_id, begin))
  assert {tokenizer.token_to_id(name) for name in ends} <= set(ours.stops)
  assert not set(ours.begin) & set(ours.stops)      # what begins a text does not end one


def test_prompts_are_encoded_as_the_library_does(folder):
  transformers = pytest.importorskip("transformers")
  path, _, _, _ = folder
  theirs = transformers.AutoTokenizer.from_pretrained(str(path), local_files_only=True)
  ours = BPEFileConfig(str(path)).load()
  for text in TEXTS:
    assert ours.prompt(text).tolist() == theirs(text)["input_ids"], text


def test_names_in_the_configuration_replace_those_of_the_files(tmp_path):
  tokenizer, *_ = KINDS["llama"]()
  tokenizer.save(str(tmp_path / "tokenizer.json"))
  by = lambda **names: BPEFileConfig(str(tmp_path / "tokenizer.json"), **names).load()
  s, end = tokenizer.token_to_id("<s>"), tokenizer.token_to_id("</s>")
  assert by(separator="<s>").separator == s and end in by(separator="<s>").stops      # a separator is no end
  assert by(begin="").begin == () and by(begin="").prompt("x").tolist() == tokenizer.encode("x", add_special_tokens=False).ids
  assert len({by(separator=name).fingerprint for name in ("<s>", "</s>", None)}) >= 2


def test_a_long_text_in_pieces_has_the_tokens_of_the_whole(folder, monkeypatch):
  ours = BPEFileConfig(str(folder[0])).load()
  text = "alpha beta\n\n  gamma\ndelta epsilon \nzeta\neta 1\n2 theta\nnaïve 漢字\n" * 20
  monkeypatch.setattr(bpe, "ENCODE_BYTES", 10**9)
  whole, [(_, counts)] = ours.encode(text), ours.encode_counted([text])
  monkeypatch.setattr(bpe, "ENCODE_BYTES", 50)
  np.testing.assert_array_equal(ours.encode(text), whole)
  np.testing.assert_array_equal(ours.encode_counted([text])[0][1], counts)


def test_added_tokens_decode_to_their_own_text(tmp_path):
  tokenizer, config, _, _ = KINDS["qwen"]()
  tokenizer.save(str(tmp_path / "tokenizer.json"))
  ours = BPEFileConfig(str(tmp_path / "tokenizer.json")).load()
  text = "call <tool é> now é"
  assert ours.decode(ours.encode(text)) == text
  assert tokenizer.token_to_id("<tool é>") in ours.encode(text)
