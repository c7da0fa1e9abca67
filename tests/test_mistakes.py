"""What newcomers get wrong is one sentence with the remedy, and code 2 (or 130), before anything long
begins.
"""

import gzip
import json
import os
import pathlib
import subprocess
import sys

import flax.linen as nn
import jax
import numpy as np
import pytest

from jaxlm import cli
from jaxlm.commands.exits import ending
from jaxlm.models.base import abstract_params
from jaxlm.training.config import load_config, resolved, run_config

ROOT = pathlib.Path(__file__).parents[1]
TRAIN = ["train", "--config=carope/tiny", "--workdir=w", "--quiet"]
#: Runs that were never trained: {folder: (configuration, overrides)}.
SMALL = {"model.d_model": 48, "model.num_layers": 1}
RUNS = {
  "ilm": ("ilm/star_easy", SMALL),
  "masked": ("ilm/star_easy:masked_diffusion", SMALL),
  "lact": ("lact/micro", {}),
  "views": ("lact/nvs_toy", {"model.d_model": 64, "model.num_layers": 1}),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """A folder with a run of each family; of those that get as far as a prompt, all parameters are 0."""
  import types

  from jaxlm.checkpoint.steps import Checkpoints

  root = tmp_path_factory.mktemp("runs")
  for name, (spec, overrides) in RUNS.items():
    cfg = run_config(load_config(spec, overrides))
    (root / name).mkdir()
    (root / name / "config.json").write_text(json.dumps(resolved(cfg)))
    if name in ("lact", "views"):  # refused by their configuration
      continue
    shapes = nn.unbox(abstract_params(cfg.model))
    params = jax.tree.map(lambda x: jax.numpy.asarray(np.zeros(x.shape, x.dtype)), shapes)
    nowhere = types.SimpleNamespace(get_state=dict)
    with Checkpoints(root / name / "checkpoints") as saved:
      saved.save(
        1, {"params": params, "ema": None}, nowhere, {"config": resolved(cfg), "bucket": 0}
      )
  return root


@pytest.fixture
def place(tmp_path, monkeypatch):
  """The working folder, with files that people have."""
  (tmp_path / "empty").mkdir()
  (tmp_path / "config.yaml").write_text("seed: 0\n")
  (tmp_path / "config.json").write_text('{"model": 3}')
  (tmp_path / "config.toml").write_text('sede = 1\n[model]\nkind = "decoder"\n')
  (tmp_path / "torn.toml").write_text("seed = \n")
  (tmp_path / "book.txt").write_text("once upon a time " * 400)
  (tmp_path / "book.txt.gz").write_bytes(gzip.compress(b"once upon a time " * 400))
  (tmp_path / "lines.txt").write_text('{"text": "a"}\n{"text": "b"}\n')
  (tmp_path / "wide.jsonl").write_text('{"id": "7", "story": "once upon a time", "year": 1901}\n')
  (tmp_path / "lines.jsonl").write_text('{"body": "a"}\n')
  (tmp_path / "list.json").write_text('[{"text": "a"}, {"text": "b"}]')
  (tmp_path / "table.txt").write_bytes(b"PAR1" + bytes(64))
  (tmp_path / "paper.txt").write_bytes(b"%PDF-1.7\n")
  (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 100)
  monkeypatch.chdir(tmp_path)
  return tmp_path


def of_train(**given):
  return [*TRAIN, *(f"--config.{key.replace('__', '.')}={value}" for key, value in given.items())]


MISTAKES = [
  # a word without its flag
  (["train", "carope/tiny", "--workdir=w"], "stands without its flag; write --config=carope/tiny"),
  (["train", "configs/carope/tiny.py"], "write --config=configs/carope/tiny.py"),
  (["eval", "runs/tiny"], "'runs/tiny' stands without its flag; write --run=runs/tiny"),
  (["generate", "runs/tiny"], "write --run=runs/tiny"),
  # what a configuration is
  (["train", "--config=carope/tinny", "--workdir=w"], "did you mean 'carope/tiny'?"),
  (
    ["train", "--config=carope/tiny:big", "--workdir=w"],
    "carope/tiny takes no argument; leave out ':big'",
  ),
  (
    ["train", "--config=config.yaml", "--workdir=w"],
    "YAML, which is not read; write it as TOML or JSON",
  ),
  (["train", "--config=config.json", "--workdir=w"], "model = 3: wanted a model"),
  (["train", "--config=config.toml", "--workdir=w"], "unknown key 'sede'; did you mean 'seed'?"),
  (["train", "--config=torn.toml", "--workdir=w"], "torn.toml is no TOML: "),
  (["train", "--config=empty", "--workdir=w"], "config file empty is a folder, and no run's"),
  # keys by their names elsewhere, or in another section
  (
    of_train(optimizer__lr=1e-3),
    "unknown key --config.optimizer.lr; did you mean 'learning_rate'?",
  ),
  (of_train(model__num_heads=4), "did you mean 'model.mixer.num_heads'?"),
  (of_train(model__n_layer=4), "did you mean 'num_layers'?"),
  (of_train(learning_rate=1e-3), "did you mean 'optimizer.learning_rate'?"),
  (of_train(train__max_steps=4), "did you mean 'steps'?"),
  (of_train(model__scores="views"), "unknown key --config.model.scores"),
  # values
  (of_train(model__dtype="fp16"), "model.dtype = 'fp16'; did you mean 'float16'?"),
  (of_train(model__dtype="float64"), "unless JAX_ENABLE_X64=1 is set"),
  (
    of_train(model__d_model=130),
    "--config.model.d_model=130 makes it so; without it the configuration is good",
  ),
  (
    of_train(optimizer="adam"),
    "optimizer.kind = 'adam' is not an optimizer; did you mean 'adamw'?",
  ),
  (of_train(model__vocab_size=100), "set model.vocab_size to at least 257"),
  (of_train(train__tracker="mlflow"), "train.tracker = 'mlflow'"),
  (of_train(mesh__fsdp=3), "set one axis to -1"),
  # data
  (of_train(data__source="book.txt"), "says not how to read it; write 'text:book.txt'"),
  (of_train(data__source="text:book.txt.gz"), "is compressed by gzip; unpack it (gunzip)"),
  (of_train(data__source="text:lines.txt"), "would be trained on with its braces; name the column"),
  (of_train(data__source="text:list.json"), "holds a list of JSON objects"),
  (of_train(data__source="text:lines.jsonl"), "behind '#': 'text:lines.jsonl#body'"),
  (of_train(data__source="text:wide.jsonl"), "behind '#': 'text:wide.jsonl#story'"),
  (of_train(data__source="text:wide.jsonl#sotry"), "behind '#': 'text:wide.jsonl#story'"),
  (of_train(data__source="jsonl:lines.jsonl#body"), "write 'text:lines.jsonl#body'"),
  (of_train(data__source="gs://bucket/a.txt"), "write 'text:gs://bucket/a.txt'"),
  (of_train(data__source="https://example.com/a.txt"), "fetch the file, and write 'text:FILE'"),
  (of_train(data__source="hf:wikitext"), "jaxlm downloads nothing"),
  # flags that are keys, words too many, variants
  ([*TRAIN, "--steps=10"], "keys of the configuration are written --config.train.steps=VALUE"),
  ([*TRAIN, "--lr", "1e-3"], "are written --config.optimizer.learning_rate=VALUE"),
  ([*TRAIN, "--model.d_model=64"], "are written --config.model.d_model=VALUE"),
  ([*TRAIN, "carope/demo"], "'carope/demo' is not expected here"),
  (["train", "--config=lact/tiny:widow", "--workdir=w"], "did you mean 'window'?"),
  (["train", "--config=ilm/text:insertions", "--workdir=w"], "did you mean 'insertion'?"),
  (["train", "--config=decoding/tasks:7", "--workdir=w"], "no variant '7'; known: "),
  (
    ["data", "tokenize", "--config=carope/tiny", "--out=x", "--hosts=2"],
    "say which of them this is, --host=0 to --host=1",
  ),
  # models
  (of_train(train__init_from="empty"), "empty is neither a run folder"),
  (of_train(train__init_from="book.txt"), "it is a file"),
  (
    ["convert", "--from", "hf", "gpt2", "--to", "out"],
    "jaxlm downloads nothing: fetch the model first",
  ),
  (of_train(data__source="text:table.txt"), "it is a Parquet table; read it with 'parquet:'"),
  (of_train(data__source="text:paper.txt"), "it is a PDF document; extract its text"),
  (of_train(data__source="text:latin.txt"), "is not UTF-8 (byte 0xe9 at offset 3)"),
  (of_train(data__source="prepared:nothing"), "make it with `jaxlm data prepare nothing`"),
  # tables and lists
  (
    ["table", "carope/tabel1", "--scale=smoke"],
    "no table 'carope/tabel1'; did you mean 'carope/table1'?",
  ),
  (["table", "carope/table1"], "--scale is missing"),
  (["table", "carope", "--scale=smoke"], "tables of carope: carope/controls, "),
  (["table", "experiments/lact/", "--scale=smoke"], "tables of lact: "),
  (["table", "book.txt", "--scale=smoke"], "`jaxlm list tables` names those that are there"),
  (
    ["table", str(ROOT / "experiments/icl_linear/transformer.py"), "--scale=smoke"],
    "`jaxlm list tables` names those that are there",
  ),
  *(
    (
      ["preflight", "--config=carope/tiny", f"--topology={name}"],
      f"of the form chip:AxB or chip:AxBxC; {said}",
    )
    for name, said in (
      ("v5e-16", "write v5e:4x4 for v5e-16"),
      ("v5litepod-16", "write v5e:4x4 for v5litepod-16"),
      ("v5p-8", "write v5p:2x2x1 for v5p-8"),
      ("v5e-7", "known: "),
    )
  ),
  (["list", "mixer"], "no list of 'mixer'; did you mean 'mixers'?"),
  (["list"], "list what? One of: models, mixers"),
  (["runs", "nowhere"], "there is no folder nowhere"),
  (["runs", "."], ". holds no run"),
  (["report", "nowhere"], "is not a run folder: it does not exist"),
  (["config", "carope/tiny", "--only=modl"], "--only=modl: no such key; did you mean 'model'?"),
  (["config", "--config.seed=1"], "changes a configuration and none is given"),
  (["completion", "bsh"], "did you mean 'bash'?"),
  (of_train(data__kind="txt"), "'txt' is not a kind of data; did you mean 'text'?"),
  (["preflight", "--config=carope/tiny", "--topology=v5e"], "known: v5e:1x1, "),
  (["preflight", "--config=carope/tiny", "--topology=h100"], "GPUs of this machine are --gpu"),
  (["reproduce", "--scale=smoke", "--minutes=-1"], "--minutes=-1: wanted a number above 0"),
  (["reproduce", "--scale=smoke", "--only=", "--list"], "`jaxlm list tables` names the tables"),
  (["report", "empty", "--out=nowhere/x.html"], "there is no folder for it"),
  (["data", "show"], "'show' is not known here; known: check, info"),
  (["data", "prepare"], "NAME is missing"),
  (["verify", "nowhere"], "golden arrays in tests/golden"),
  (["kernels", "--config=zzzz"], "`jaxlm list configs` prints the names"),
  (["--config=carope/tiny"], "the command comes first, as in: jaxlm train --config=carope/tiny"),
]


def one_sentence(argv, said, capsys, codes=(2,)):
  code = cli.main(argv)
  out = capsys.readouterr()
  assert code in codes, (code, out)
  assert said in out.err, out.err
  assert "Traceback" not in out.err + out.out and len(out.err.strip().splitlines()) <= 3, out.err


@pytest.mark.parametrize(
  "argv, said", MISTAKES, ids=lambda x: " ".join(x[-2:])[-60:] if isinstance(x, list) else ""
)
def test_a_mistake_is_one_sentence_with_the_remedy(place, argv, said, capsys):
  one_sentence(argv, said, capsys)


def test_weights_that_are_not_there_leave_no_run_behind(place, capsys):
  said = "train.init_from = 'empty'"
  one_sentence([*TRAIN, "--config.train.init_from=empty"], said, capsys)
  assert not (place / "w").exists()


@pytest.mark.parametrize(
  "run, argv, said",
  [
    (
      "ilm",
      ["eval", "--lengths=8"],
      "--lengths: loss by position and length is of models of the next token",
    ),
    ("masked", ["eval", "--by_position"], "scores masked_tokens; leave it out"),
    ("views", ["eval", "--tables=2"], "NVSConfig scores views; leave it out"),
    ("lact", ["generate", "--prompt=ab"], "data of kind 'pairs': rows of token numbers"),
    ("views", ["generate"], "no decoding engine serves it"),
    ("ilm", ["generate", "--prompt=ab"], "give token numbers between blanks"),
    ("masked", ["generate", "--prompt=ab"], "give token numbers between blanks"),
  ],
)
def test_what_a_family_cannot_do_is_one_sentence(runs, run, argv, said, capsys):
  one_sentence([argv[0], f"--run={runs / run}", *argv[1:]], said, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("run", ["ilm", "masked"])
def test_eval_measures_what_does_not_predict_the_next_token(runs, run, capsys):
  assert cli.main(["eval", f"--run={runs / run}", "--num_tokens=32", "--json"]) == 0
  found = json.loads(capsys.readouterr().out)["metrics"]
  assert found["loss"] > 0 and all(np.isfinite(value) for value in found.values())


def test_a_run_folder_repeats_its_run(runs):
  cfg = run_config(load_config("lact/micro"))
  assert run_config(load_config(str(runs / "lact"))) == cfg


def test_toml_is_a_configuration(tmp_path):
  text = '[model]\nkind = "decoder"\nvocab_size = 257\nd_model = 32\nnum_layers = 1\n'
  text += 'mixer = {kind = "attention", num_heads = 2}\n[objective]\nkind = "next_token"\n'
  text += '[data]\nkind = "text"\nsource = "mini:moby_dick"\nseq_len = 16\nbatch_size = 8\n'
  text += '[optimizer]\nkind = "adamw"\nlearning_rate = 1e-3\n[schedule]\nkind = "constant"\n'
  (tmp_path / "mine.toml").write_text(text + "[train]\nsteps = 3\n")
  assert run_config(load_config(tmp_path / "mine.toml")).train.steps == 3


def test_ctrl_c_ends_a_table_with_a_sentence(place, monkeypatch, capsys):
  def interrupted(*args, **options):
    raise KeyboardInterrupt

  monkeypatch.setattr("jaxlm.experiments.runner.run_rows", interrupted)
  argv = ["table", "carope/table1", "--scale=smoke"]
  one_sentence(argv, "jaxlm table: interrupted", capsys, codes=(130,))


def test_a_row_that_the_user_has_made_wrong_is_named_without_a_traceback(place, capsys):
  from jaxlm.experiments import Column, Row, Scale, Table, runner

  table = Table(
    name="t",
    title="t",
    measure=lambda trained: None,
    rows=[Row("one", str(ROOT / "configs" / "carope" / "tiny.py"), {"model.d_modl": 3})],
    columns=[Column("loss", "eval/loss")],
    scales={"smoke": Scale("tiny")},
  )
  failed = runner.run_rows(table, "smoke", rows=["one"], seeds=[0], workdir=place / "table")
  assert len(failed) == 1 and "did you mean 'd_model'" in next(iter(failed.values()))
  assert "Traceback" not in capsys.readouterr().out


@pytest.mark.parametrize("text", ["Unable to initialize backend 'cuda': no device", ""])
def test_a_platform_that_is_not_there_is_a_sentence(text, monkeypatch, capsys):
  monkeypatch.setenv("JAX_PLATFORMS", "cuda")
  if text:
    error = RuntimeError(text)
  else:  # what JAX raises where nothing of JAX_PLATFORMS starts: an assertion without a word
    try:
      exec(compile("assert False", "jax/_src/xla_bridge.py", "exec"))
    except AssertionError as raised:
      error = raised
  assert ending("jaxlm eval", error) == 2
  said = capsys.readouterr().err
  assert "JAX_PLATFORMS=cuda: JAX finds no such device here" in said and "jaxlm[gpu]" in said


@pytest.mark.slow
def test_a_platform_that_is_not_there_is_a_sentence_in_a_process():
  code = "import sys; from jaxlm.cli import main; sys.exit(main())"
  done = subprocess.run(
    [sys.executable, "-c", code, "train", "--config=carope/tiny", "--workdir=/nowhere/w"],
    capture_output=True,
    text=True,
    env=os.environ | {"JAX_PLATFORMS": "cuda"},
  )
  assert done.returncode == 2 and "finds no such device here" in done.stderr, done.stderr
  assert "Traceback" not in done.stderr
