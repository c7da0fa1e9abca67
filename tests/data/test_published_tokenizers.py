"""Tokenizers as people have them: begin, end and separator, bytes of a text, and long texts; the
library is the test.
"""

import json
import types

import numpy as np
import pytest
import tokenizers as hf
from tokenizers import (
  AddedToken,
  decoders,
  models,
  normalizers,
  pre_tokenizers,
  processors,
  trainers,
)

from jaxlm.checkpoint import opening
from jaxlm.data.errors import DataError
from jaxlm.data.passages import PassageData
from jaxlm.data.text import TextData
from jaxlm.data.tokenizers import bpe
from jaxlm.data.tokenizers.bpe import BPEFileConfig

TEXTS = [
  "naïve 漢字 😀",
  "Hello world",
  "  two  blanks\n\nand lines\n",
  "Ünïcode ﬁ ①",
  "x",
  "<unknown> ☃☃",
]
MARKED = [
  "a</s>b",
  "<s>hello",
  "<|im_start|>user\nhello<|im_end|>\n",
  "a <|endoftext|> b",
  "[CLS] x [SEP]",
  "<bos><eos>",
]
CORPUS = [
  "hello world the naive cat\n" * 5,
  "two blanks and lines",
  "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789 .,!?",
]
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
      single=single, special_tokens=[(name, tokenizer.token_to_id(name)) for name in names]
    )
  return tokenizer


def sentencepiece(special, post, *, prepend):
  """BPE with byte fallback and ▁ for blanks: Llama and Mistral (a blank in front), Gemma (none)."""
  steps = [normalizers.Prepend("▁")] if prepend else []
  return train(
    models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True),
    trainers.BpeTrainer(vocab_size=400, special_tokens=[*special, *BYTES], show_progress=False),
    normalizer=normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")]),
    post=post,
    decoder=decoders.Sequence(
      [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    ),
  )


def byte_level(special, post=None, *, prefix=False, normalizer=None, added=()):
  return train(
    models.BPE(),
    trainers.BpeTrainer(
      vocab_size=330,
      special_tokens=special,
      show_progress=False,
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    ),
    pre=pre_tokenizers.ByteLevel(add_prefix_space=prefix),
    decoder=decoders.ByteLevel(),
    post=post,
    normalizer=normalizer,
    added=added,
  )


KINDS = {  # name -> (tokenizer, tokenizer_config.json, ids by name of begin, separator; names of what ends a text)
  "llama": lambda: (
    sentencepiece(["<unk>", "<s>", "</s>"], ("<s> $A", ["<s>"]), prepend=True),
    dict(bos_token="<s>", eos_token="</s>"),
    ["<s>"],
    {"</s>"},
  ),
  "gemma": lambda: (
    sentencepiece(["<pad>", "<eos>", "<bos>", "<unk>"], ("<bos> $A", ["<bos>"]), prepend=False),
    dict(bos_token="<bos>", eos_token="<eos>"),
    ["<bos>"],
    {"<eos>"},
  ),
  "llama3": lambda: (
    byte_level(
      ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"],
      ("<|begin_of_text|> $A", ["<|begin_of_text|>"]),
    ),
    dict(bos_token="<|begin_of_text|>", eos_token="<|eot_id|>"),
    ["<|begin_of_text|>"],
    {"<|eot_id|>"},
  ),
  "qwen": lambda: (
    byte_level(
      ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
      normalizer=normalizers.NFC(),
      added=[AddedToken("<tool é>", normalized=False)],
    ),
    dict(eos_token="<|im_end|>"),
    [],
    {"<|im_end|>"},
  ),
  "gpt2": lambda: (
    byte_level(["<|endoftext|>"]),
    dict(bos_token="<|endoftext|>", eos_token="<|endoftext|>"),
    [],
    {"<|endoftext|>"},
  ),
  "roberta": lambda: (
    byte_level(["<s>", "</s>", "<unk>"], ("<s> $A </s>", ["<s>", "</s>"]), prefix=True),
    dict(bos_token="<s>", eos_token="</s>"),
    ["<s>"],
    {"</s>"},
  ),
  "t5": lambda: (
    train(
      models.Unigram(),
      trainers.UnigramTrainer(
        vocab_size=90,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
      ),
      normalizer=normalizers.NFKC(),
      pre=pre_tokenizers.Metaspace(),
      decoder=decoders.Metaspace(),
      post=("$A </s>", ["</s>"]),
    ),
    dict(eos_token="</s>"),
    [],
    {"</s>"},
  ),
  "bert": lambda: (
    train(
      models.WordPiece(unk_token="[UNK]"),
      trainers.WordPieceTrainer(
        vocab_size=90, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"], show_progress=False
      ),
      normalizer=normalizers.BertNormalizer(lowercase=True),
      pre=pre_tokenizers.BertPreTokenizer(),
      decoder=decoders.WordPiece(),
      post=("[CLS] $A [SEP]", ["[CLS]", "[SEP]"]),
    ),
    dict(sep_token="[SEP]"),
    ["[CLS]"],
    {"[SEP]"},
  ),
}


@pytest.fixture(params=KINDS)
def folder(request, tmp_path):
  tokenizer, config, begin, ends = KINDS[request.param]()
  tokenizer.save(str(tmp_path / "tokenizer.json"))
  (tmp_path / "tokenizer_config.json").write_text(
    json.dumps(config | {"tokenizer_class": "PreTrainedTokenizerFast"})
  )
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
  cfg = TextData(
    source=f"text:{tmp_path}/text/{{split}}.txt",
    seq_len=16,
    batch_size=1,
    tokenizer=BPEFileConfig(str(folder[0])),
  )
  size = len(("naïve 漢字 😀 und mehr\n" * 30).encode())
  rows = list(cfg.build("validation", seed=0, repeat=False))
  assert sum(int((row["target_bytes"] * (row["loss_weights"] > 0)).sum()) for row in rows) == size


def test_begin_and_end_are_those_of_the_files(folder):
  path, tokenizer, begin, ends = folder
  ours = BPEFileConfig(str(path)).load()
  assert ours.begin == tuple(map(tokenizer.token_to_id, begin))
  assert {tokenizer.token_to_id(name) for name in ends} <= set(ours.stops)
  assert not set(ours.begin) & set(ours.stops)  # what begins a text does not end one


def test_prompts_are_encoded_as_the_library_does(folder):
  transformers = pytest.importorskip("transformers")
  path, _, _, _ = folder
  theirs = transformers.AutoTokenizer.from_pretrained(str(path), local_files_only=True)
  ours = BPEFileConfig(str(path)).load()
  for text in TEXTS + MARKED:
    assert ours.prompt(text).tolist() == theirs(text)["input_ids"], text


def test_names_in_the_configuration_replace_those_of_the_files(tmp_path):
  tokenizer, *_ = KINDS["llama"]()
  tokenizer.save(str(tmp_path / "tokenizer.json"))

  def by(**names):
    return BPEFileConfig(str(tmp_path / "tokenizer.json"), **names).load()

  s, end = tokenizer.token_to_id("<s>"), tokenizer.token_to_id("</s>")
  assert (
    by(separator="<s>").separator == s and end in by(separator="<s>").stops
  )  # a separator is no end
  assert (
    by(begin="").begin == ()
    and by(begin="").prompt("x").tolist() == tokenizer.encode("x", add_special_tokens=False).ids
  )
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


def test_a_special_token_spelled_in_a_document_is_letters(folder):
  path, tokenizer, _, _ = folder
  ours = BPEFileConfig(str(path)).load()
  special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
  special -= {tokenizer.token_to_id(name) for name in ("<unk>", "[UNK]", *BYTES)}
  for text in MARKED:
    assert not special & set(ours.encode(text).tolist())
  assert [int(counts.sum()) for _, counts in ours.encode_counted(MARKED)] == list(map(len, MARKED))


def test_the_length_to_which_a_file_pads_and_cuts_is_no_part_of_a_text(tmp_path):
  tokenizer, *_ = KINDS["bert"]()
  text = "hello world and two lines"
  wanted = tokenizer.encode(text).ids
  tokenizer.enable_padding(length=8, pad_id=0, pad_token="[PAD]")
  tokenizer.enable_truncation(4)
  tokenizer.save(str(tmp_path / "tokenizer.json"))
  ours = BPEFileConfig(str(tmp_path)).load()
  assert ours.closing == (tokenizer.token_to_id("[SEP]"),) and ours.prompt(text).tolist() == wanted


def test_tokens_that_only_the_configuration_calls_special_are_special(tmp_path):
  transformers = pytest.importorskip("transformers")
  tokenizer, config, _, _ = KINDS["gpt2"]()
  described = json.loads(tokenizer.to_str()) | {"added_tokens": []}
  (tmp_path / "tokenizer.json").write_text(json.dumps(described))
  before = BPEFileConfig(str(tmp_path)).load()
  (tmp_path / "tokenizer_config.json").write_text(
    json.dumps(config | {"tokenizer_class": "PreTrainedTokenizerFast"})
  )
  ours = BPEFileConfig(str(tmp_path)).load()  # the files have changed: they are read again
  theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path), local_files_only=True)
  for text in TEXTS + MARKED:
    assert ours.prompt(text).tolist() == theirs(text)["input_ids"]
  end = ours.separator
  assert before.token_bytes(end) and not ours.token_bytes(end)


def test_ends_are_those_of_the_generation_configuration_too(tmp_path):
  tokenizer, config, _, _ = KINDS["llama3"]()
  tokenizer.save(str(tmp_path / "tokenizer.json"))
  end, turn = map(tokenizer.token_to_id, ("<|end_of_text|>", "<|eot_id|>"))
  (tmp_path / "special_tokens_map.json").write_text(
    json.dumps({"eos_token": {"content": "<|eot_id|>", "lstrip": False}})
  )
  assert set(BPEFileConfig(str(tmp_path), separator="<|begin_of_text|>").load().stops) == {
    turn,
    tokenizer.token_to_id("<|begin_of_text|>"),
  }
  (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [end, turn, 10**6]}))
  assert set(BPEFileConfig(str(tmp_path)).load().stops) == {end, turn}


def test_ids_with_gaps_and_behind_the_vocabulary(tmp_path):
  tokenizer = hf.Tokenizer(models.WordLevel({"[UNK]": 0, "</s>": 1, "a": 7}, unk_token="[UNK]"))
  tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  tokenizer.add_special_tokens(["[UNK]", "</s>"])
  tokenizer.save(str(tmp_path / "tokenizer.json"))
  ours = BPEFileConfig(str(tmp_path)).load()
  assert ours.vocab_size == 8 and ours.encode("a </s> a").tolist() == [7, 0, 7]
  assert ours.decode([7, 8, 7]) == "aa" and ours.stream().push(9) == ""


def test_a_name_that_is_no_token_is_answered(tmp_path):
  KINDS["llama"]()[0].save(str(tmp_path / "tokenizer.json"))
  for field in ("begin", "end", "separator"):
    with pytest.raises(
      DataError, match=f"tokenizer.{field} = '<nothing>'.*its special tokens are '<unk>', '<s>'"
    ):
      BPEFileConfig(str(tmp_path), **{field: "<nothing>"}).load()


@pytest.mark.parametrize("packing", ["windows", "packed"])
def test_rows_begin_as_a_text_begins_and_that_token_is_never_scored(tmp_path, monkeypatch, packing):
  monkeypatch.setenv("JAXLM_DATA", str(tmp_path / "cache"))
  tokenizer, *_ = KINDS["llama"]()
  tokenizer.save(str(tmp_path / "tokenizer.json"))
  documents = ["hello world " * 8, "x", "naïve 漢字 😀"]
  for split in ("train", "validation", "test"):
    (tmp_path / split).mkdir()
    for i, text in enumerate(documents):
      (tmp_path / split / f"{i}.txt").write_text(text)
  cfg = TextData(
    source=f"text:{tmp_path}/{{split}}/*.txt",
    seq_len=9,
    batch_size=1,
    tokenizer=BPEFileConfig(str(tmp_path)),
    packing=packing,
  )
  begin, end = map(tokenizer.token_to_id, ("<s>", "</s>"))
  stored = cfg.store("validation").tokens.tolist()
  assert stored == [
    i
    for text in documents
    for i in (begin, *tokenizer.encode(text, add_special_tokens=False).ids, end)
  ]
  scored = []
  for batch in cfg.build("validation", seed=0, repeat=False):
    row = {name: values[0] for name, values in batch.items()}
    firsts = np.flatnonzero((row["positions"] == 0) & (row["segment_ids"] > 0))
    assert (row["tokens"][firsts] == begin).all()
    scored += row["targets"][row["loss_weights"] > 0].tolist()
  assert sorted(scored) == sorted(
    i for i in stored if i != begin
  )  # every other token once, the end included


def test_a_text_of_which_no_token_is_left_keeps_its_bytes(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXLM_DATA", str(tmp_path / "cache"))
  KINDS["bert"]()[0].save(str(tmp_path / "tokenizer.json"))
  for split in ("train", "validation", "test"):
    (tmp_path / split).mkdir()
    for i, text in enumerate(("hello", "   \n", "two")):
      (tmp_path / split / f"{i}.txt").write_text(text)
  store = TextData(
    source=f"text:{tmp_path}/{{split}}/*.txt",
    seq_len=4,
    batch_size=1,
    tokenizer=BPEFileConfig(str(tmp_path)),
  ).store("validation")
  sums = [store.bytes_between(a, b).sum() for a, b in zip(store.starts, store.starts[1:])]
  assert sums == [5, 4, 3]


def test_passages_have_their_own_bytes_and_no_frame(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXLM_DATA", str(tmp_path / "cache"))
  tokenizer, *_ = KINDS["bert"]()
  tokenizer.save(str(tmp_path / "tokenizer.json"))
  for split in ("train", "validation", "test"):
    (tmp_path / f"{split}.txt").write_text("Naïve 漢字 😀 cats")
  cfg = PassageData(
    source=f"text:{tmp_path}/{{split}}.txt",
    seq_len=40,
    batch_size=1,
    form="causal",
    tokenizer=BPEFileConfig(str(tmp_path)),
  )
  [batch] = cfg.build("validation", seed=0, repeat=False)
  assert batch["target_bytes"].sum() == len("Naïve 漢字 😀 cats".encode())
  ids = tokenizer.encode("Naïve 漢字 😀 cats", add_special_tokens=False).ids
  assert cfg.passages("validation")[0].tolist() == ids


def test_generate_feeds_the_ids_of_the_library_and_stops_at_the_end(folder, monkeypatch, capsys):
  from jaxlm.generation import command
  from jaxlm.generation.base import Generations, Options, Row
  from jaxlm.generation.left_to_right import LeftToRight

  path, tokenizer, _, ends = folder
  fed = {}

  def generate(engine, params, prompts, max_new_tokens, *, seed):
    fed.update(stops=engine.stops, prompts=prompts)
    return Generations([Row(np.asarray(p, np.int32), len(p), 0) for p in prompts], 0, 0)

  monkeypatch.setattr(LeftToRight, "generate", generate)
  monkeypatch.setattr(opening, "open_model", lambda *_, **__: types.SimpleNamespace(params={}))
  cfg = types.SimpleNamespace(
    model=types.SimpleNamespace(decodes=True, scores="next_token"),
    data=TextData(
      source="mini:moby_dick", seq_len=8, batch_size=1, tokenizer=BPEFileConfig(str(path))
    ),
  )
  args = types.SimpleNamespace(
    run="",
    draft=None,
    step=None,
    ema=False,
    prompt=["Hello world", "x"],
    num_samples=1,
    json=True,
    max_new_tokens=1,
    seed=0,
  )
  assert command._continue(cfg, args, LeftToRight.from_command(cfg.model, cfg.data, Options())) == 0
  assert fed["prompts"] == [tokenizer.encode(text).ids for text in args.prompt]
  assert {tokenizer.token_to_id(name) for name in ends} <= set(fed["stops"])
  capsys.readouterr()
