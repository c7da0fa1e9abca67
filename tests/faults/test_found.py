"""What the fault tests have found, one small case of each kind, in the default suite."""

import gzip
import types

import formats
import pytest

from jaxlm import cli
from jaxlm.checkpoint import weight_files
from jaxlm.commands.exits import refuse, without_closed_loops
from jaxlm.config import ConfigError, check_number
from jaxlm.data.errors import DataError
from jaxlm.data.prepare.packages import unpack
from jaxlm.data.tokenizers.bpe import BPEFileConfig
from jaxlm.interop import huggingface
from jaxlm.ranges import Count, Finite
from jaxlm.training import metrics
from jaxlm.training.config import load_config, run_config

pytestmark = pytest.mark.default
TINY = str(formats.ROOT / "configs/carope/tiny.py")
LLAMA = dict(
  architectures=["LlamaForCausalLM"],
  hidden_size=8,
  intermediate_size=16,
  num_attention_heads=2,
  num_hidden_layers=1,
  vocab_size=9,
)


@pytest.mark.parametrize(
  "changes",
  [
    {"architectures": "LlamaForCausalLM"},
    {"architectures": 3},
    {"architectures": [["x"]]},
    {"architectures": [None]},
    {"architectures": [], "model_type": {}},
    {"hidden_act": ["silu"]},
    {"rope_scaling": {"rope_type": {}}},
    {"hidden_act": 3},
    {"partial_rotary_factor": "x"},
    {"partial_rotary_factor": float("nan")},
    {"rms_norm_eps": float("nan")},
    {"hidden_size": [8]},
    {"architectures": ["MrT5ForConditionalGeneration"], "sigmoid_mask_scale": "x"},
    {"architectures": ["MrT5ForConditionalGeneration"], "deletion_threshold": {}},
  ],
  ids=str,
)
def test_a_foreign_config_with_a_value_of_another_kind_is_a_sentence(changes):
  with pytest.raises(ConfigError):
    huggingface.read_config(LLAMA | changes)


@pytest.mark.parametrize("number", [10**400, -(10**400), 1 << 63])
def test_a_number_that_no_array_holds_is_refused(number):
  for kind in (Count, Finite):
    with pytest.raises(ConfigError, match="bits: wanted one of 64"):
      check_number(number, kind, "x")
  with pytest.raises(ConfigError, match="wanted one of 64"):
    run_config(load_config(TINY, {"optimizer.learning_rate": number}))


def test_layers_have_a_bound_for_each_has_an_entry_before_anything_is_allocated():
  with pytest.raises(
    ConfigError, match="model.num_layers = 2147483648: wanted 1 or more, at most 100,000"
  ):
    run_config(load_config(TINY, {"model.num_layers": 1 << 31}))


def test_configurations_that_are_no_mappings_or_have_names_with_dots_are_refused():
  for value in (3, [1], None, "x"):
    with pytest.raises(ConfigError, match="wanted a mapping"):
      run_config(value)
  with pytest.raises(ConfigError, match="cannot be read"):
    load_config({"mod.el": {"kind": "decoder"}})


def test_a_tokenizer_that_loads_and_cannot_encode_is_a_sentence(tmp_path):
  import tokenizers as hf

  unigram = hf.Tokenizer(hf.models.Unigram([("a", -1.0), ("<s>", -2.0)]))
  unigram.add_special_tokens(["<s>"])
  unigram.save(str(tmp_path / "tokenizer.json"))
  with pytest.raises(DataError, match="cannot encode a text"):
    BPEFileConfig(str(tmp_path), separator="<s>").load().encode("a b")


@pytest.mark.parametrize(
  "line",
  [
    b"\xe8\xff",
    b"[" * 5000,
    b'{"step": ' + b"9" * 5000 + b"}",
    b"3",
    b"[1]",
    b'{"loss": 1}',
    b'{"step": null}',
  ],
)
def test_a_damaged_line_of_metrics_is_a_sentence(tmp_path, line):
  good = b'{"step": 1, "loss": 2.0}\n'
  (tmp_path / metrics.JSONL).write_bytes(good + line + b"\n" + good)
  with pytest.raises(ConfigError, match="line 2, is not JSON that a run has written"):
    metrics.read(tmp_path)
  (tmp_path / metrics.JSONL).write_bytes(good + line)  # half written when the machine died
  assert [record["step"] for record in metrics.read(tmp_path)] == [1]


def test_an_archive_with_places_that_cannot_be_is_a_sentence(tmp_path):
  data = bytearray(gzip.compress(b"x" * 5000))
  data[0] = 0
  (tmp_path / "a.tar.gz").write_bytes(b"\x1f\x8b" + bytes(data))
  with pytest.raises(DataError, match="a.tar.gz cannot be unpacked"):
    unpack(tmp_path / "a.tar.gz", tmp_path / "files")


def test_a_sentence_shows_the_control_characters_of_what_it_quotes(capsys):
  refuse("jaxlm", ConfigError("a\x1b[31mb\0c\nd é"), 2)
  assert capsys.readouterr().err == "jaxlm: a\\x1b[31mb\\x00c\nd é\n"


def test_a_full_disk_under_a_safetensors_file_is_an_os_error(tmp_path, monkeypatch):
  import errno

  import safetensors.numpy
  from safetensors import SafetensorError

  def full(*_):
    raise SafetensorError(
      "Error while serializing: I/O error: No space left on device (os error 28)"
    )

  monkeypatch.setattr(safetensors.numpy, "save_file", full)
  with pytest.raises(OSError) as error:
    weight_files.write_weights(tmp_path / "w", formats._state())
  assert error.value.errno == errno.ENOSPC and not list((tmp_path / "w").glob("*"))


@pytest.mark.parametrize(
  "line, sentence",
  [
    (["eval", "--run", "a\0b"], "holds a zero byte"),
    (["generate", "--run=x", "--top_p=--"], "--top_p has no value"),
    (["generate", "--run=x", "--max_new_tokens=1e30"], "are at most 10,000,000"),
    (["generate", "--run=x", "--seed=" + "9" * 400], "wanted one of 64"),
  ],
)
def test_command_lines_that_were_tracebacks(line, sentence, capsys):
  assert cli.main(line) == 2 and sentence in capsys.readouterr().err


def test_a_loop_that_was_closed_before_its_last_message_is_not_reported(capsys):
  def report(text):
    return without_closed_loops(
      types.SimpleNamespace(
        exc_type=RuntimeError,
        exc_value=RuntimeError(text),
        exc_traceback=None,
        err_msg=None,
        object=None,
      )
    )

  report("Event loop is closed")
  assert not capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name in formats.FORMATS if "model.json" not in name])
def test_a_few_damaged_files_of_each_format(name, tmp_path):
  import random

  form, rng = formats.FORMATS[name], random.Random(1)
  good = form.make()
  for number in range(10):
    folder = tmp_path / str(number)
    folder.mkdir()
    form.beside(folder)
    formats.read_damaged(form, form.damage(rng.choice(good), rng)[1], folder)  # sentences only
