"""Every kind of file that jaxlm reads from others: good examples, how each is damaged, and its
readers.

`make()` returns bytes of good files; `read(path, folder)` reads one through the library's own
readers.
"""

import dataclasses
import importlib.util
import io
import json
import pathlib
import random
import tarfile
import zipfile
from collections.abc import Callable

import jax
import mutate
import numpy as np

import jaxlm
from jaxlm.checkpoint import weights_folder
from jaxlm.checkpoint.errors import CheckpointError, CheckpointFileError, WeightsError
from jaxlm.checkpoint.model_json import described
from jaxlm.checkpoint.weight_files import read_json, read_weights, write_weights
from jaxlm.config import ConfigError
from jaxlm.layers.attention import AttentionConfig
from jaxlm.models import base
from jaxlm.models.decoder import DecoderConfig

#: What a reader may answer with; anything else is a fault of jaxlm.
SENTENCES = (ConfigError, CheckpointFileError, CheckpointError, WeightsError, OSError)
ROOT = pathlib.Path(__file__).parents[2]
MODEL = DecoderConfig(vocab_size=16, d_model=8, num_layers=1, mixer=AttentionConfig(num_heads=2))


@dataclasses.dataclass(frozen=True)
class Format:
  """name: of the file in its folder. beside(folder): writes what stands around it. damage: of
  mutate.
  """

  name: str
  make: Callable[[], list[bytes]]
  read: Callable[[pathlib.Path], object]
  damage: Callable = mutate.damaged
  beside: Callable[[pathlib.Path], None] = lambda folder: None


def parameters(scale: float = 1.0):
  import flax.linen as nn

  leaves, tree = jax.tree.flatten(nn.unbox(base.abstract_params(MODEL)))
  rng = np.random.default_rng(0)
  return jax.tree.unflatten(
    tree, [scale * rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves]
  )


def _state() -> dict:
  rng = np.random.default_rng(0)
  return {
    "a": rng.normal(size=(3, 4)).astype(np.float32),
    "b.c": rng.integers(0, 9, (5,)),
    "d": np.zeros((2, 0), np.float16),
  }


def _of_folder(write, name: str) -> Callable[[], list[bytes]]:
  def make():
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
      write(pathlib.Path(folder))
      return [(pathlib.Path(folder) / name).read_bytes()]

  return make


def _all(arrays) -> None:
  for name in arrays:
    np.asarray(arrays[name]).sum()


def _torch_files() -> list[bytes]:
  """`torch.save` of `_state()`, as a zip file and as torch 1.5 and older wrote it;
  tests/faults/torch_files.py makes them.
  """
  return [
    (pathlib.Path(__file__).parent / "torch_files" / name).read_bytes()
    for name in ("zip.bin", "legacy.bin")
  ]


def _zip() -> list[bytes]:
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("a/b.txt", b"text " * 200)
    archive.writestr("c.txt", random.Random(0).randbytes(500))
  return [file.getvalue()]


def _tar(mode: str) -> list[bytes]:
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode=f"w:{mode}") as archive:
    for name, content in (("a/b.txt", b"text " * 200), ("c.txt", random.Random(0).randbytes(500))):
      info = tarfile.TarInfo(name)
      info.size = len(content)
      archive.addfile(info, io.BytesIO(content))
    link = tarfile.TarInfo("d.txt")
    link.type, link.linkname = tarfile.SYMTYPE, "c.txt"
    archive.addfile(link)
  return [file.getvalue()]


def _unpacked(path: pathlib.Path) -> None:
  from jaxlm.data.prepare.packages import unpack

  folder = path.parent / "unpacked"
  folder.mkdir(exist_ok=True)
  before = {p for p in path.parent.parent.iterdir()}
  unpack(path, folder)
  assert {p for p in path.parent.parent.iterdir()} == before, (
    "something was written outside the folder"
  )


def _tokenizer_files() -> list[bytes]:
  import tokenizers as hf

  from jaxlm.data.tokenizers.bpe import train_bpe

  unigram = hf.Tokenizer(
    hf.models.Unigram(
      [("<unk>", 0.0), ("a", -1.0), ("▁b", -2.0), ("c", -3.0)], unk_id=0, byte_fallback=False
    )
  )
  unigram.pre_tokenizer = hf.pre_tokenizers.Metaspace()
  unigram.decoder = hf.decoders.Metaspace()
  words = hf.Tokenizer(
    hf.models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2, "[CLS]": 3, "[SEP]": 4}, unk_token="[UNK]")
  )
  words.pre_tokenizer, words.decoder = hf.pre_tokenizers.BertPreTokenizer(), hf.decoders.WordPiece()
  words.normalizer = hf.normalizers.BertNormalizer()
  words.post_processor = hf.processors.BertProcessing(("[SEP]", 4), ("[CLS]", 3))
  words.add_special_tokens(["[CLS]", "[SEP]"])
  return [
    t.to_str().encode() for t in (train_bpe(["the cat sat on the mat"] * 3, 270), unigram, words)
  ]


def _tokenized(path: pathlib.Path) -> None:
  from jaxlm.data.tokenizers.bpe import BPEFileConfig

  tokenizer = BPEFileConfig(str(path)).load()
  for text in ("the cat", "", "a b\nc é \U0001f600 [CLS] <|endoftext|>"):
    ((ids, _),) = tokenizer.encode_counted([text])
    tokenizer.decode(ids.tolist())
    tokenizer.prompt(text)
  assert (
    tokenizer.frame
    and isinstance(tokenizer.stops, tuple)
    and isinstance(tokenizer.exact_bytes, bool)
  )


def huggingface_configs() -> list[bytes]:
  """As published, and as jaxlm writes the models of its own configurations."""
  spec = importlib.util.spec_from_file_location(
    "published", ROOT / "tests/interop/test_published_configs.py"
  )
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  out = [config for config, *_ in module.PUBLISHED.values()]
  from jaxlm.interop.huggingface import ARCHITECTURES, converter
  from jaxlm.training.config import load_config, run_config

  for file in sorted((ROOT / "configs").glob("*/*.py")):
    model = run_config(load_config(str(file))).model
    for name in ARCHITECTURES:
      try:
        arch = converter(name)
        config = arch.write(model, 128) | (
          {} if arch.bare else {"architectures": [name], "model_type": arch.model_type}
        )
        out.append(json.loads(json.dumps(config)))
      except (ConfigError, AttributeError, KeyError, TypeError):  # it cannot say this model
        continue
  return [json.dumps(config).encode() for config in out]


def _foreign_config(path: pathlib.Path) -> None:
  from jaxlm.interop import huggingface

  config = read_json(path)
  cfg = huggingface.read_config(config)
  if (
    max(
      getattr(cfg, name, 0) for name in ("num_layers", "num_encoder_layers", "num_decoder_layers")
    )
    < 100
  ):
    huggingface.converter_of(config).table(cfg)


def _run_config(path: pathlib.Path) -> None:
  from jaxlm.training.saved_config import config_of

  config_of(path.parent)


def run_configs() -> list[bytes]:
  from jaxlm.training.config import load_config, resolved, run_config

  return [
    json.dumps(resolved(run_config(load_config(str(file))))).encode()
    for file in sorted((ROOT / "configs").glob("*/*.py"))
  ]


def _lines(path: pathlib.Path) -> None:
  from jaxlm.data.plain_files import documents_of, json_lines
  from jaxlm.data.records import read_columns
  from jaxlm.training import metrics

  for read in (
    lambda: list(json_lines(str(path), "text")),
    lambda: read_columns(path, ["text", "n"]),
    lambda: list(documents_of([str(path)], text=True, column=None)),
  ):
    try:
      read()
    except SENTENCES:
      pass
  (path.parent / metrics.JSONL).write_bytes(path.read_bytes())
  metrics.read(path.parent)


def _json_lines() -> list[bytes]:
  rows = [{"text": f"line {i} é", "n": i, "step": i, "loss": 1.5} for i in range(6)]
  return ["".join(json.dumps(row) + "\n" for row in rows).encode(), json.dumps(rows).encode()]


FORMATS = {
  "safetensors": Format(
    "model.safetensors",
    _of_folder(lambda f: write_weights(f, _state()), "model.safetensors"),
    lambda path: _all(read_weights(path.parent)),
  ),
  "index json": Format(
    "model.safetensors.index.json",
    _of_folder(
      lambda f: write_weights(f, _state(), shard_bytes=60), "model.safetensors.index.json"
    ),
    lambda path: _all(read_weights(path.parent)),
    mutate.json_damaged,
    lambda folder: write_weights(folder, _state(), shard_bytes=60),
  ),
  "model.json": Format(
    "model.json",
    _of_folder(lambda f: weights_folder.save(f, MODEL, parameters()), "model.json"),
    lambda path: jaxlm.open_model(path.parent),
    mutate.json_damaged,
    lambda folder: weights_folder.save(folder, MODEL, parameters()),
  ),
  "model.json without a digest": Format(
    "model.json",
    lambda: [
      json.dumps(weights_folder.FORMAT | {"version": 1, "model": described(MODEL)}).encode()
    ],
    lambda path: jaxlm.open_model(path.parent),
    mutate.json_damaged,
    lambda folder: weights_folder.save(folder, MODEL, parameters()),
  ),
  "config.json of a run": Format("config.json", run_configs, _run_config, mutate.json_damaged),
  "config.json of Hugging Face": Format(
    "config.json", huggingface_configs, _foreign_config, mutate.json_damaged
  ),
  "tokenizer.json": Format("tokenizer.json", _tokenizer_files, _tokenized, mutate.json_damaged),
  "torch .bin": Format(
    "pytorch_model.bin", _torch_files, lambda path: _all(read_weights(path.parent))
  ),
  "zip": Format("a.zip", _zip, _unpacked),
  "tar.gz": Format("a.tar.gz", lambda: _tar("gz"), _unpacked),
  "tar": Format(
    "a.tar.xz", lambda: _tar(""), _unpacked
  ),  # the reader looks at the bytes, not at the name
  "jsonl": Format("a.jsonl", _json_lines, _lines, mutate.json_damaged),
}


def read_damaged(form: Format, data: bytes, folder: pathlib.Path) -> str | None:
  """'read' or the sentence's type; any other exception goes through. folder: an empty one, with
  `beside` written.
  """
  path = folder / form.name
  path.write_bytes(data)
  try:
    form.read(path)
  except SENTENCES as error:
    return type(error).__name__
  return "read"
