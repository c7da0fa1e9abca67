"""config, list, runs, report and completion say what there is, completely."""

import json
import pathlib
import re
import subprocess
import sys
import time

import pytest

from jaxlm import cli
from jaxlm.config import ConfigError
from jaxlm.discover import report, runs
from jaxlm.discover.configs import entries
from jaxlm.discover.fields import Key, keys
from jaxlm.discover.listing import LISTS
from jaxlm.training import metric_names
from jaxlm.training.config import load_config, resolved, run_config
from jaxlm.training.config_files import PACKAGED, packaged

ROOT = pathlib.Path(__file__).parents[1]
OBJECTIVES = ROOT / "jaxlm" / "objectives"


def test_every_key_of_every_configuration_is_explained():
  from test_ranges import classes

  silent = [f"{cls.__name__}.{k.name}" for cls in classes() for k in keys(cls) if not k.help]
  assert not silent, f"say it in the docstring, a comment or discover/help_texts.py: {silent}"


def test_a_key_has_its_type_range_default_and_kinds():
  from jaxlm.models import DecoderConfig
  from jaxlm.training import AdamW

  found = {key.name: key for key in keys(DecoderConfig)}
  assert found["d_model"] == Key("d_model", "int", "1 or more", None, True, "width of the model")
  assert "carope" in found["position"].kinds and found["position"].type == "position"
  assert found["remat"].allowed == "none | full | minimal | dots"
  b1 = next(key for key in keys(AdamW) if key.name == "b1")
  assert (b1.type, b1.allowed, b1.default) == ("float", "0 or more, below 1", 0.9)


def test_config_prints_every_key_and_stars_what_is_not_a_default(capsys):
  assert cli.main(["config", "carope/tiny", "--config.model.position=alibi", "--short"]) == 0
  said = capsys.readouterr().out.splitlines()
  cfg = run_config(load_config("carope/tiny", {"model.position": "alibi"}))
  assert [line.split(" = ")[0] for line in said] == [entry.path for entry in entries(cfg)]
  assert "model.position = alibi  *" in said and "seed = 0" in said
  assert "model.mixer.num_heads = 2  *" in said and "mesh.fsdp = -1" in said


def test_config_explains_the_keys_below_one(capsys):
  assert cli.main(["config", "carope/tiny", "--only=optimizer"]) == 0
  said = capsys.readouterr().out
  assert "optimizer = adamw  *" in said and "kinds: adamw, lion, muon, sgd" in said
  assert (
    "optimizer.b2 = 0.95\n    decay of the average of squared gradients\n    float; 0 or more"
    in said
  )
  assert "model" not in said


def test_config_writes_what_train_reads(tmp_path, capsys):
  assert cli.main(["config", "hnet/tiny", "--config.seed=3", "--json"]) == 0
  (tmp_path / "mine.json").write_text(capsys.readouterr().out)
  again = run_config(load_config(tmp_path / "mine.json"))
  assert again == run_config(load_config("hnet/tiny", {"seed": 3}))


def test_config_alone_prints_the_sections(capsys):
  assert cli.main(["config"]) == 0
  said = capsys.readouterr().out
  assert all(f"\n{name}" in f"\n{said}" for name in ("model", "data", "train", "schedule", "mesh"))
  assert "train.steps" in said and "kinds: decoder, " in said


@pytest.mark.parametrize("what", LISTS)
def test_every_entry_of_a_list_has_a_line(what, capsys):
  assert cli.main(["list", what, "--json"]) == 0
  found = json.loads(capsys.readouterr().out)
  assert found and all(text and len(text) > 3 for text in found.values()), found


def test_the_lists_hold_what_is_there():
  assert {name for name, _ in LISTS["configs"]()} == {
    f"{p.parent.name}/{p.stem}" for p in (ROOT / "configs").glob("*/*.py")
  }
  assert "carope/table1" in dict(LISTS["tables"]()) and "carope/demo" in dict(LISTS["tables"]())
  assert set(dict(LISTS["kernels"]())) == {
    p.parent.name for p in ROOT.glob("jaxlm/kernels/*/api.py")
  }
  assert "star_graphs" in dict(LISTS["tasks"]()) and "text" not in dict(LISTS["tasks"]())


def test_packaged_configurations_are_those_of_the_checkout():
  assert PACKAGED.resolve() == ROOT / "configs" and "carope/tiny" in packaged()


@pytest.mark.parametrize("spec", ["carope/tiny", "configs/carope/tiny.py", "lact/micro:gla"])
def test_a_configuration_is_found_by_name_from_anywhere(spec, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert run_config(load_config(spec)).train.steps > 0


@pytest.fixture
def folder(tmp_path):
  """Three runs, as training leaves them: finished, interrupted, damaged; and one that failed."""
  config = resolved(run_config(load_config("carope/tiny")))
  records = [{"step": 10, "loss": 3.5, "tokens_per_s": 1e5}, {"step": 20, "loss": 3.0}]
  for name, position, result in (
    ("one", "carope", {"step": 20, "finished": True}),
    ("deep/two", "rope", None),
    ("three", "carope", {"step": 20, "finished": False, "failed": "10 steps in a row"}),
  ):
    run = tmp_path / name
    (run / "checkpoints").mkdir(parents=True)
    changed = config | {"model": config["model"] | {"position": {"kind": position}}}
    (run / "config.json").write_text(json.dumps(changed))
    (run / "run.json").write_text("[]")
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    if result:
      (run / "result.json").write_text(json.dumps(result))
  (tmp_path / "torn" / "checkpoints").mkdir(parents=True)
  (tmp_path / "torn" / "config.json").write_text("{")
  return tmp_path


def test_runs_says_where_each_stands_and_in_what_they_differ(folder, capsys):
  assert cli.main(["runs", str(folder)]) == 0
  said = capsys.readouterr().out
  rows = {line.split()[0]: line for line in said.splitlines()[1:]}
  assert set(rows) == {"one", "deep/two", "three", "torn"}
  for name, state in (("one", "finished"), ("deep/two", "interrupted"), ("three", "failed")):
    assert state in rows[name] and "20/1000" in rows[name] and "3.0000" in rows[name]
  assert "damaged" in rows["torn"] and "model.position" in said
  assert rows["deep/two"].endswith("rope") or "rope" in rows["deep/two"].split()


def test_a_run_that_is_written_to_is_running(folder):
  from jaxlm.training.run_lock import hold

  with hold(folder / "deep" / "two"):
    assert runs.look(folder / "deep" / "two").state == "running"
  assert runs.look(folder / "deep" / "two").state == "interrupted"


def test_ages_are_said_in_the_largest_unit():
  now = time.time()
  said = [runs.age(now - s, now) for s in (5, 300, 7200, 3 * 86_400)]
  assert said == ["5 s", "5 min", "2 h", "3 d"]


def test_report_is_one_page_with_numbers_curves_configuration_and_the_reason_for_no_samples(
  folder, capsys
):
  pytest.importorskip("jinja2")
  assert cli.main(["report", str(folder / "one"), "--num_samples=1"]) == 0
  page = (folder / "one" / "report.html").read_text()
  assert "<h1>one</h1>" in page and f'<p class="quiet">{folder / "one"}</p>' in page
  assert "finished at step 20 of 1000" in page and "data:image/png;base64," in page
  assert "<code>model.position</code>" in page and "training speed over all devices" in page
  assert "no complete checkpoint" in page and 'src="http' not in page
  assert "<code>train.steps</code>" in page
  words = re.sub(r"<(pre|code)>.*?</\1>", "", page.partition("<h2>Numbers")[2], flags=re.DOTALL)
  assert "`" not in words


def test_backticks_become_code_and_everything_else_is_escaped():
  pytest.importorskip("jinja2")
  assert report.marked("at `a<b` & `c`") == "at <code>a&lt;b</code> &amp; <code>c</code>"
  assert report.marked("one ` alone") == "one ` alone"


def test_every_number_that_an_objective_reports_is_explained():
  names = {"loss", "objective", "grad_norm", "tokens_per_s", "perplexity@512", "ppl@1x", "skipped"}
  for file in OBJECTIVES.glob("*.py"):
    names |= set(re.findall(r"\"([a-z_]+)\": (?:Pair|mean|nll|reported)", file.read_text()))
    names |= {n + "_0" for n in re.findall(r"f\"([a-z_]+)_\{s\}\"", file.read_text())}
  assert {"capacity_0", "accuracy", "gate_mean"} <= names
  assert not [name for name in sorted(names) if not metric_names.meaning(name)]
  assert metric_names.meaning("eval/ppl@4x") == "exp(loss) per token at 4 times the training length"
  assert metric_names.explained(["eval/loss", "eval/own"]) == [
    ("eval/loss", metric_names.meaning("loss"))
  ]


def test_a_first_loss_above_the_uniform_guess_is_explained():
  from jaxlm.training.run import above_uniform

  cfg = run_config(load_config("carope/tiny"))
  assert "above ln 257 = 5.55" in above_uniform(cfg, 20, 6.0)
  assert not above_uniform(cfg, 20, 5.0) and not above_uniform(cfg, 400, 6.0)


def test_python_m_jaxlm_is_the_command():
  done = subprocess.run(
    [sys.executable, "-m", "jaxlm", "--version"], capture_output=True, text=True
  )
  assert done.returncode == 0 and done.stdout.startswith("jaxlm ")


def test_completion_knows_every_command_and_flag():
  from jaxlm.discover.completion.command import whole_parser

  commands = next(a.choices for a in whole_parser()._actions if a.choices)
  assert set(commands) == set(cli.COMMANDS)
  assert {"--workdir", "--config"} <= set(commands["train"]._option_string_actions)


def test_flags_have_one_spelling_and_both_are_read():
  from jaxlm.commands.flags import Parser
  from jaxlm.discover.completion.command import whole_parser

  for name, parser in next(a.choices for a in whole_parser()._actions if a.choices).items():
    assert not [f for f in parser._option_string_actions if "-" in f.lstrip("-")], name
  parser = Parser("x")
  parser.add_argument("--two_words")
  assert parser.parse_args(["--two-words=1"]).two_words == "1"
  with pytest.raises(ConfigError, match="did you mean --two_words"):
    parser.parse_args(["--two_wrods=1"])
