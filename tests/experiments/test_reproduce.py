"""The queue knows every table and orders them; the overall page says what the tables' JSON says."""

import dataclasses
import importlib.util
import json
import pathlib
import re

import pytest

from jaxlm.config import ConfigError
from jaxlm.experiments import Column, Measured, Row, Scale, Table, paper, runner
from jaxlm.experiments.reproduce import pages
from jaxlm.experiments.reproduce.command import declared, main
from jaxlm.experiments.reproduce.queue import Item, Unit, by_value, chosen, left, workdir
from jaxlm.experiments.table import Trained
from jaxlm.training.config import check, load_config, run_config

ROOT = pathlib.Path(__file__).parents[2]
ITEMS, SCRIPTS = declared()
NOT_SMOKE = {"carope/demo", "mrt5/xnli", "mrt5/tydiqa"}  # the demo; tables of scale paper alone


def test_every_table_with_a_scale_smoke_is_in_the_queue_as_a_whole():
  tables = {
    f"{path.parent.name}/{path.stem}"
    for path in (ROOT / "experiments").glob("*/*.py")
    if re.search(r"^TABLE = ", path.read_text(), re.MULTILINE)
  }
  whole = {item.name for item in ITEMS if not item.rows}
  partly = {item.name for item in ITEMS} - whole
  assert tables - NOT_SMOKE == whole | partly
  assert partly == {"lexinvariant/bayes"}  # its rows are in two items
  for item in [*ITEMS, *SCRIPTS]:
    assert (ROOT / getattr(item, "script", "")).exists()


def test_combinations_that_are_refused_say_so():
  spec = importlib.util.spec_from_file_location("m", ROOT / "experiments" / "cross" / "matrix.py")
  matrix = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(matrix)
  assert len(matrix.REFUSED) >= 6
  for what, config, overrides, sentence in matrix.REFUSED:
    with pytest.raises(ConfigError) as refused:
      config = load_config(str(ROOT / config.split(":")[0]) + config[len(config.split(":")[0]) :])
      check(run_config(load_config(config, overrides)), 1)
    assert sentence in str(refused.value), what
  for row in matrix.ROWS:
    smoke = matrix.TABLE.scales["smoke"]
    check(run_config(runner.resolve(matrix.TABLE, row, smoke, "", 0)), 1)


def test_the_most_valuable_per_minute_comes_first_and_no_unit_twice():
  dear, cheap = Item("p/dear.py", 10, 5), Item("p/cheap.py", 1, 2)
  whole = Item("p/cheap.py", 1, 1)

  def units(item, n):
    return [Unit(item, f"row{i}", 0) for i in range(n)]

  found = by_value({dear: units(dear, 2), cheap: units(cheap, 2), whole: units(whole, 3)})
  # 2 in 2 minutes and 1 in the 1 that is left are worth the same; 5 in 20 is worth less.
  assert sorted((i.value, len(u)) for i, u in found[:2]) == [(1, 1), (2, 2)]
  assert (found[2][0].value, len(found[2][1])) == (5, 2)
  assert by_value({dear: []}) == []


def test_what_needs_something_is_left_out_unless_it_is_named():
  free, bound = Item("a/one.py", 1, 1), Item("b/two.py", 1, 1, needs="a GPU")
  assert chosen([free, bound], []) == [free]
  assert chosen([free, bound], ["b"]) == chosen([free, bound], ["b/two"]) == [bound]
  with pytest.raises(ConfigError, match="did you mean 'a/one'"):
    chosen([free, bound], ["a/on"])


@pytest.mark.parametrize(
  "argv, message",
  [
    (["--scale=smok"], "--scale=smok: no table"),
    (["--scale=smoke", "--only=lakt"], "did you mean 'lact'"),
    (["--scale=smoke", "--seeds=0"], "at least one seed"),
  ],
)
def test_a_wrong_request_ends_with_a_sentence_and_code_2(capsys, argv, message):
  assert main(argv) == 2
  assert message in capsys.readouterr().err


@pytest.fixture
def measured(tmp_path, monkeypatch):
  """A table of two rows and three seeds, finished in a work folder, with the item that names it."""
  item = Item("experiments/carope/table1.py", 1, 1, report="{scale}")
  table = Table(
    name="t",
    title="Two rates",
    rows=[
      Row(name, "configs/carope/tiny.py", {"optimizer.learning_rate": rate})
      for name, rate in (("slow", 1e-3), ("fast", 2e-3))
    ],
    columns=[Column("loss", "loss")],
    scales={"smoke": Scale("tiny", num_seeds=3), "small": Scale("larger")},
    measure=lambda trained, at: Measured({"loss": 1.0 / trained.params}, {}, {}),
    published={("fast", "loss"): paper(0.5, "Table 9")},
    claims={"fast is better": lambda t: t["slow", "loss"] - t["fast", "loss"]},
  )
  head = runner.provenance()["revision"].rstrip("+")

  def made_by():
    made = dict(revision=head, command="jaxlm table t.py", date="today", device="1 x cpu")
    return made | dict(cpu="a CPU", cores=1, load=0.5)

  monkeypatch.setattr("jaxlm.experiments.record.made_by", made_by)
  monkeypatch.setattr(pages, "load", lambda path: table)

  def train(config, path):
    path.mkdir(parents=True)
    return Trained(config, 1000 * config["optimizer"]["learning_rate"] + config["seed"], str(path))

  folder = workdir(tmp_path / "runs", table, "smoke")
  runner.run_rows(
    table, "smoke", rows=["slow", "fast"], seeds=range(3), workdir=folder, train=train,
    say=lambda _: None,
  )  # fmt: skip
  return item, table, tmp_path


def test_the_queue_forgets_what_is_finished(measured):
  item, table, path = measured
  assert left(item, table, "smoke", path / "runs") == []
  assert len(left(item, table, "smoke", path / "runs", seeds=4)) == 2
  (workdir(path / "runs", table, "smoke") / "fast" / "seed1" / "measured.json").unlink()
  assert left(item, table, "smoke", path / "runs") == [Unit(item, "fast", 1)]


def test_what_is_recorded_by_a_clean_revision_is_not_left_without_the_runs(measured, capsys):
  item, table, path = measured
  stem = path / item.stem("smoke")
  assert pages.recorded(table, "smoke", stem) == set()
  pages.write([item], path / "runs", "smoke", into=path, declared=[item])
  recorded = pages.recorded(table, "smoke", stem)
  assert recorded == {("", row, seed) for row in ("slow", "fast") for seed in range(3)}
  assert left(item, table, "smoke", path / "nothing", recorded=recorded) == []
  assert len(left(item, table, "smoke", path / "nothing", 4, recorded)) == 2
  other = dataclasses.replace(table, scales={"smoke": Scale("x", overrides={"data.seq_len": 8})})
  assert pages.recorded(other, "smoke", stem) == set()
  file = stem.with_name(stem.name + ".json")
  file.write_text(file.read_text().replace(runner.provenance()["revision"].rstrip("+"), "0" * 8))
  assert pages.recorded(table, "smoke", stem) == set()


def test_the_list_says_what_it_does_not_count_and_what_its_numbers_mean(capsys):
  def listed(*flags):
    assert main(["--scale=smoke", "--list", "--only=lact/figure5", "--runs=nowhere", *flags]) == 0
    return capsys.readouterr().out

  found, again = listed(), listed("--again")
  counted = [re.search(r"left at scale smoke: (\d+)", text)[1] for text in (found, again)]
  skipped = re.search(r"not counted: (\d+) rows x seeds", found)
  assert int(counted[0]) + int(skipped[1] if skipped else 0) == int(counted[1]) > 0
  assert "value: 1 is a detail" in again and "not counted" not in again


def test_the_page_judges_from_the_json_alone_and_drops_other_configurations(measured):
  item, table, path = measured
  pages.write([item], path / "runs", "smoke", into=path, declared=[item])
  page = (path / "REPRODUCTION.md").read_text()
  assert re.search(
    r"\| fast is better \| (not )?shown \(\+0.\d+; .* \| not run \| no such scale \|", page
  )
  stem = path / "experiments" / "carope" / "results" / "smoke"
  saved = json.loads(stem.with_name("smoke.json").read_text())
  run = saved["rows"][0]["runs"]["1"]
  assert run["training"][0]["cpu"] == "a CPU" and run["evaluation"]["core_s"] >= 0
  again = pages.measured(table, "smoke", stem, path / "nothing")
  assert again["", "fast", 2]["numbers"] == {"loss": 0.25}
  other = dataclasses.replace(table, scales={"smoke": Scale("x", overrides={"data.seq_len": 8})})
  assert pages.measured(other, "smoke", stem, path / "nothing") == {}


def test_the_html_shows_claim_ours_theirs_and_verdict(measured):
  pytest.importorskip("jinja2")
  item, _, path = measured
  pages.write([item], path / "runs", "smoke", into=path, declared=[item])
  web = (path / "docs" / "reproduction.html").read_text()
  assert "fast is better" in web and "fast, loss: 0.3611 ± 0.127" in web
  assert "fast, loss: 0.5</li>" in web and "jaxlm table t.py" in web


def test_a_row_of_no_present_revision_has_no_number(measured):
  item, table, path = measured
  stem = path / "experiments" / "carope" / "results" / "smoke"
  results = pages.measured(table, "smoke", stem, workdir(path / "runs", table, "smoke"))
  for seed in range(3):
    results["", "fast", seed]["training"][0]["revision"] = "0" * 40
  draft = runner.provenance()["revision"].endswith("+")
  pages.write_table(table, "smoke", results, stem)
  saved = json.loads(stem.with_name("smoke.json").read_text())
  assert [each["row"] for each in saved["stale"]] == ["fast"] * 3
  assert draft or saved["claims"][0]["verdict"] == "not measured"
