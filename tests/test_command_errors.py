"""What a person mistypes, loses or damages is one sentence with a remedy and the right exit code,
in every command.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from jaxlm import cli
from jaxlm.checkpoint.opening import run_mapping
from jaxlm.commands.flags import parse_flags
from jaxlm.config import ConfigError
from jaxlm.training.config import load_config, run_config
from jaxlm.training.run import train

ROOT = pathlib.Path(__file__).parents[1]
TINY = str(ROOT / "configs" / "carope" / "tiny.py")
SMALL = {
  "model.d_model": 32,
  "model.num_layers": 1,
  "model.mixer.num_heads": 2,
  "data.seq_len": 16,
  "data.batch_size": 8,
  "train.steps": 1,
  "eval.num_tokens": 64,
  "eval.every": 0,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp("runs") / "tiny"
  train(TINY, folder, SMALL, quiet=True)
  return folder


@pytest.fixture
def place(tmp_path, run, monkeypatch):
  """A folder with everything that the commands below name."""
  monkeypatch.setenv("HOME", str(tmp_path))
  (tmp_path / "file").write_text("a file")
  (tmp_path / "empty").mkdir()
  (tmp_path / "torn.py").write_text("def (:\n")
  (tmp_path / "none.py").write_text("def get_config():\n  return None\n")
  (tmp_path / "link").symlink_to(tmp_path / "nowhere")
  for name, text in (
    ("config-empty", ""),
    ("config-list", "[]"),
    ("config-torn", '{"model": {'),
    ("config-none", "{}"),
  ):
    shutil.copytree(run, tmp_path / name)
    (tmp_path / name / "config.json").write_text(text)
  shutil.copytree(run, tmp_path / "no-checkpoints")
  shutil.rmtree(tmp_path / "no-checkpoints" / "checkpoints")
  (tmp_path / "tiny").symlink_to(run)
  monkeypatch.chdir(tmp_path)
  return tmp_path


TRAIN = ["train", f"--config={TINY}", *(f"--config.{key}={value}" for key, value in SMALL.items())]
WRONG = [
  (["train"], "--workdir is missing; for example: jaxlm train --config="),
  (["train", "--workdir", "w"], "no configuration; give --config="),
  (["train", "--config=nothing.py", "--workdir=w"], "config file nothing.py does not exist"),
  ([*TRAIN, "--workdir=w", "--wrokdir=x"], "unknown flag --wrokdir; did you mean --workdir?"),
  ([*TRAIN, "--workdir=file"], "is a file where a folder is wanted"),
  ([*TRAIN, "--workdir=file/below"], "file is a file where a folder is wanted"),
  ([*TRAIN, "--workdir=/proc/nothing"], "/proc/nothing"),
  (
    [*TRAIN, "--workdir=empty", "--config.train.step=3"],
    "unknown key --config.train.step; did you mean 'steps'?",
  ),
  (
    [*TRAIN, "--workdir=w", "--config.train.steps=1.5"],
    "train.steps = 1.5: wanted int, got float (a whole number, like 1000 or 1e3)",
  ),
  ([*TRAIN, "--workdir=w", "--config.train.steps=many"], "wanted int, got str (a whole number"),
  ([*TRAIN, "--workdir=w", "--config.optimizer.learning_rate=-0.1"], "learning_rate = -0.1"),
  ([*TRAIN, "--workdir=w", "--config.train.debug=perhaps"], "wanted bool, got str (True or False)"),
  ([*TRAIN, "--workdir=w", "--config.seed=-1"], "seed = -1"),
  ([*TRAIN, "--workdir=w", "--config.train.init_from=nowhere"], "nowhere"),
  ([*TRAIN, "--workdir=w", "--config.data.source=text:nothing*.txt"], "no file matches"),
  ([*TRAIN, "--workdir=w", "--config.data.source=text:empty"], "empty is a folder"),
  (["train", "--config=~/nothing.py", "--workdir=w"], "config file ~/nothing.py does not exist"),
  (["train", "--config=empty", "--workdir=w"], "config file empty is a folder"),
  (["train", "--config=file", "--workdir=w"], "config file file is neither a Python file (.py)"),
  (
    ["train", "--config=none.py", "--workdir=w"],
    "get_config() returns a NoneType, wanted a ConfigDict or a dict",
  ),
  ([*TRAIN, "--workdir="], "the folder's name is empty"),
  ([*TRAIN, "--workdir=w", "--config.train.init_from="], "the folder's name is empty"),
  (
    [*TRAIN, "--workdir=w", "--config.train.init_from=2024"],
    """train.init_from = 2024: wanted str, got int (a text: write "'2024'\"""",
  ),
  ([*TRAIN, "--workdir=w", "--config.data.source={[1]: 2}"], "no such scheme"),
  ([*TRAIN, "--workdir=w", "--config.model.dtype=float8"], "model.dtype = 'float8'"),
  (
    [*TRAIN, "--workdir=w", "--config.data.num_workers=1e6"],
    "data.num_workers = 1000000: wanted 0 or more, at most 1,024",
  ),
  (["eval", "--run", ""], "the folder's name is empty"),
  (["generate", "--run", ""], "the folder's name is empty"),
  (["eval"], "--run is missing; for example: jaxlm eval --run"),
  (["eval", "--run", "nowhere"], "nowhere is not a run folder: it does not exist"),
  (["eval", "--run", "empty"], "holds no config.json"),
  (["eval", "--run", "."], "is no run folder, it holds some: "),
  (["eval", "--run", "tiny/checkpoints"], "is a part of the folder"),
  (["eval", "--run", "tiny/config.json"], "is a part of the folder"),
  (["probe", "--run", "tiny", "--probe", "heads", "--text", ""], "--text is empty"),
  (["generate", "--run", "tiny", "Call me"], "write --prompt='Call me'"),
  (["generate", "--run", "tiny", "--algorithm=greedy"], "give --temperature=0"),
  (["eval", "--run", "file"], "file"),
  (["eval", "--run", "no-checkpoints"], "has no complete checkpoint"),
  (["eval", "--run", "tiny", "--step", "77"], "no complete checkpoint of step 77"),
  (["eval", "--run", "tiny", "--lengths", "a,b"], "wanted token counts like 512,1024"),
  (
    ["eval", "--run", "tiny", "--num_token=3"],
    "unknown flag --num_token; did you mean --num_tokens?",
  ),
  (["eval", "--run", "tiny", "--step"], "--step has no value"),
  (["generate"], "--run is missing"),
  (["generate", "--run", "nowhere"], "nowhere is not a run folder"),
  (["generate", "--run", "no-checkpoints"], "has no complete checkpoint"),
  (["generate", "--run", "tiny", "--seed", "-1"], "-1"),
  (["generate", "--run", "tiny", "--temperature", "nan"], "temperature"),
  (
    ["generate", "--run", "tiny", "--temperature", "hot"],
    "--temperature=hot: wanted a number, like 0.9",
  ),
  (["generate", "--run", "tiny", "--promt", "a"], "unknown flag --promt; did you mean --prompt?"),
  (["table"], "no table: name its script"),
  (["table", "nothing.py", "--scale=smoke"], "no table script 'nothing.py'"),
  (["table", str(ROOT / "experiments/carope/table1.py")], "--scale is missing; for example"),
  (
    ["table", str(ROOT / "experiments/carope/table1.py"), "--scale=smok"],
    "no scale 'smok'; did you mean 'smoke'?",
  ),
  (
    ["table", str(ROOT / "experiments/carope/table1.py"), "--scale=smoke", "--row=rpe"],
    "no row 'rpe'; did you mean 'rope'?",
  ),
  (["table", "torn.py", "--scale=smoke"], "table script torn.py does not run: SyntaxError"),
  (
    [
      "table",
      str(ROOT / "experiments/carope/table1.py"),
      "--scale=smoke",
      "--draft",
      "--out=file/report",
    ],
    "file is a file where a folder is wanted",
  ),
  (["eval", "--run", "tiny", "--config.model.d_model=64"], "does not fit the model in"),
  (["eval", "--run", "tiny", "--config.model.mixer.num_kv_heads=1"], "does not fit the model in"),
  (["generate", "--run", "tiny", "--config.model.position=rope"], "does not fit the model in"),
  (["preflight", f"--config={TINY}", "--cpu=1", "--hlo=nowhere/x"], "there is no folder nowhere"),
  (["convert"], "are missing; for example"),
  (["convert", "--from", "hf", "nowhere", "--to", "out"], "nowhere"),
  (["convert", "--from", "hf", "empty", "--to", "out"], "config.json"),
  (["convert", "--from", "hf", "empty", "--to", "hf", "out"], "nothing to convert"),
  (
    ["convert", "--from", "hf", "tiny", "--to", "out"],
    "tiny is a run folder of jaxlm, not a Hugging Face folder: leave out 'hf' to convert it",
  ),
  (["convert", "--from", "tiny", "--to", "tiny"], "is not an empty folder"),
  (["convert", "--from", "file", "--to", "out"], "file is neither a run folder"),
  (["verify"], "is missing; for example: jaxlm verify"),
  (["verify", "nowhere"], "nowhere"),
  (["data"], "for example: jaxlm data list"),
  (["data", "lst"], "did you mean"),
  (["data", "info", "nothing"], "nothing"),
  (["preflight"], "no configuration; give --config=FILE"),
  (["preflight", f"--config={TINY}", "--topology=v9:4x4"], "v9"),
  (["trian"], "no command 'trian'; did you mean 'train'?"),
]


@pytest.mark.parametrize(
  "argv, said", WRONG, ids=lambda x: " ".join(map(str, x))[-60:] if isinstance(x, list) else ""
)
def test_a_mistake_is_one_sentence(place, argv, said, capsys):
  code = cli.main(argv)
  out = capsys.readouterr()
  assert code in (1, 2), (code, out)
  assert said in out.err, out.err
  assert "Traceback" not in out.err + out.out
  assert len(out.err.strip().splitlines()) <= 3, out.err


DAMAGE = {
  "empty": "is damaged: it is empty",
  "torn": "is damaged: it is no JSON",
  "list": "is damaged: it holds a list",
  "none": "has no model",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_config_is_taken_from_the_checkpoint(place, damage, capsys, caplog):
  good, folder = json.loads((place / "tiny" / "config.json").read_text()), f"config-{damage}"
  for argv in (
    ["eval", "--run", folder, "--num_tokens=32"],
    ["generate", "--run", folder, "--max_new_tokens=2"],
    ["convert", "--from", folder, "--to", "out"],
    [*TRAIN, f"--workdir={folder}"],
  ):
    assert cli.main(argv) == 0, capsys.readouterr()
  assert (
    DAMAGE[damage] in caplog.text and "the copy in the newest checkpoint is used" in caplog.text
  )
  assert (
    json.loads((place / folder / "config.json").read_text()) == good
  )  # train has written it again


def test_a_digit_that_changed_in_a_config_changes_no_model(place, caplog):
  config = json.loads((place / "tiny" / "config.json").read_text())
  changed = config | {
    "model": config["model"] | {"mixer": config["model"]["mixer"] | {"num_heads": 4}}
  }
  (place / "config-none" / "config.json").write_text(json.dumps(changed))
  assert run_mapping("config-none") == config and "has another model" in caplog.text


@pytest.mark.parametrize(
  "written, key, value",
  [
    ("--config.train.steps=1e3", "steps", 1000),
    ("--config.train.steps=1_000", "steps", 1000),
    ("--config.train.debug=yes", "debug", True),
    ("--config.train.debug=False", "debug", False),
    ("--config.train.debug=1", "debug", True),
    ("--config.train.debug=0", "debug", False),
    ("--config.train.keep_every=none", "keep_every", None),
    ("--config.train.keep_every=null", "keep_every", None),
    ("--config.train.profile=(1, 2)", "profile", (1, 2)),
  ],
)
def test_values_may_be_spelled_as_people_do(written, key, value):
  spec, overrides, rest = parse_flags([f"--config={TINY}", written])
  assert not rest and getattr(run_config(load_config(spec, overrides)).train, key) == value


def test_one_value_is_a_list_of_one():
  cfg = run_config(load_config(TINY, {"eval.lengths": 64}))
  assert cfg.eval.lengths == (64,)
  for none in ("none", "", None, ()):
    assert run_config(load_config(TINY, {"eval.lengths": none})).eval.lengths == ()
  with pytest.raises(ConfigError, match=r"eval.lengths = 'a': wanted int"):
    run_config(load_config(TINY, {"eval.lengths": "a"}))


def test_a_home_is_expanded_wherever_a_path_is_given(place, capsys):
  assert cli.main(["eval", "--run", "~/tiny", "--json"]) == 0
  assert json.loads(capsys.readouterr().out)
  assert (
    cli.main(["convert", "--from", "~/tiny", "--to", "~/weights"]) == 0
    and (place / "weights" / "model.json").is_file()
  )
  assert cli.main([*TRAIN, "--workdir=~/again", "--quiet", "--config.train.init_from=~/tiny"]) == 0
  shutil.copy(TINY, place / "config.py")
  assert run_config(load_config("~/config.py", SMALL)) == run_config(load_config(TINY, SMALL))
  assert (place / "again" / "result.json").is_file() and not (place / "~").exists()


@pytest.mark.parametrize("width", [pytest.param(20, marks=pytest.mark.slow), None])
def test_figures_are_whole_at_any_width(place, width, capsys, monkeypatch):
  monkeypatch.setenv("COLUMNS", str(width)) if width else monkeypatch.delenv(
    "COLUMNS", raising=False
  )
  assert cli.main(["eval", "--run", "tiny", "--lengths=8,16"]) == 0
  out = capsys.readouterr().out
  assert "…" not in out and out.count(".") >= 6  # loss, perplexity and bits per byte of two lengths


@pytest.mark.parametrize("damage", ["", "no JSON", '{"a": 1}'])
def test_a_damaged_list_of_starts_does_not_stop_a_run(place, run, damage):
  shutil.copytree(run, place / "resumed")
  (place / "resumed" / "run.json").write_text(damage)
  assert cli.main([*TRAIN, "--workdir=resumed", "--quiet"]) == 0
  assert len(json.loads((place / "resumed" / "run.json").read_text())) == 1


def test_a_reader_that_goes_away_ends_a_command_quietly(place):
  env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
  script = f"{sys.executable} -c 'import sys; from jaxlm.cli import main; sys.exit(main())' verify {ROOT}/tests/golden/carope/rope_equivalence.npz --verbose"
  done = subprocess.run(
    ["bash", "-c", f"{script} | true; echo ${{PIPESTATUS[0]}}"],
    capture_output=True,
    text=True,
    env=env,
  )
  assert "Traceback" not in done.stderr and done.stdout.strip() in ("0", "141"), done


def test_a_fault_of_the_library_keeps_its_traceback(monkeypatch):
  monkeypatch.setattr("jaxlm.evaluation.command.main", lambda argv: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    cli.main(["eval"])
