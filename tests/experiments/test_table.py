"""The table machinery on runs that are arithmetic instead of training."""

import dataclasses
import json
import pathlib

import pytest

from jaxlm.config import ConfigError
from jaxlm.experiments import (
  Column,
  Figure,
  Measured,
  Row,
  Scale,
  Table,
  Trained,
  by_step,
  command,
  figure,
  from_memory,
  paper,
  report,
  runner,
)

CONFIG = """
import ml_collections as mlc
def get_config():
  c = mlc.ConfigDict()
  c.model = dict(kind="decoder", vocab_size=256, d_model=8, num_layers=1, mixer=dict(kind="attention", num_heads=1),
                 position=dict(kind="rope", theta=1e4))
  c.objective = dict(kind="next_token")
  c.data = dict(kind="text", source="mini:en", seq_len=4, batch_size=2)
  c.optimizer = dict(kind="adamw", learning_rate=1.0)
  c.schedule = dict(kind="constant")
  c.train = dict(steps=1)
  return c.lock()
"""


@pytest.fixture
def table(tmp_path):
  config = tmp_path / "config.py"
  config.write_text(CONFIG)

  def measure(trained, overrides_at):
    gain = trained.params
    numbers = {
      f"ppl@{m}x": gain * m / overrides_at(m).get("model.position.theta", 1) for m in (1, 2)
    }
    notes = {}
    if trained.config["model"]["position"]["kind"] == "learned":
      del numbers["ppl@2x"]
      notes["ppl@2x"] = "table of 4 positions"
    return Measured(numbers, notes, {"by_position": [gain] * 8})

  return Table(
    name="t",
    title="A table",
    source="A paper, v1",
    rows=[
      Row("rope", str(config)),
      Row("big", str(config), {"optimizer.learning_rate": 3.0}, label="Big gain"),
      Row("learned", str(config), {"model.position": {"kind": "learned", "max_len": 4}}),
      Row("pi", evaluate_from="rope", overrides_at=lambda m: {"model.position.theta": float(m)}),
    ],
    columns=[Column("1x", "ppl@1x"), Column("2x", "ppl@2x")],
    scales={
      "smoke": Scale("tiny, really", overrides={"data.seq_len": 2}),
      "paper": Scale(
        "the real one",
        sizes={"s": {"optimizer.learning_rate": 5.0}, "m": {"optimizer.learning_rate": 7.0}},
      ),
    },
    measure=measure,
    published={
      ("rope", "1x"): (paper(1.25, "Table 1", size="s"), paper(2.5, "Table 1", size="m")),
      ("big", "2x"): from_memory(9.0, "somewhere"),
    },
    claims={
      "PI undoes the length": lambda t: t["rope", "2x"] - t["pi", "2x"],
      "learned extrapolates": lambda t: t["learned", "2x"] < 1,
    },
    figure=Figure("by_position", "Loss", "x", "y", marks=lambda c: {c["data"]["seq_len"]: "train"}),
  )


class Trainer:
  """Training that returns gain + seed, and remembers what it was asked for."""

  def __init__(self, fail=()):
    self.calls, self.fail = [], set(fail)

  def train(self, config, path):
    row = path.parent.name
    self.calls.append((path.parts[-3], row, config["seed"]))
    if row in self.fail:
      raise RuntimeError(f"{row} exploded")
    path.mkdir(parents=True, exist_ok=True)
    (path / "gain").write_text(str(config["optimizer"]["learning_rate"] + config["seed"]))
    return self.restore(path, config)

  def restore(self, path, config=None):
    return Trained(
      config or {"model": {"position": {"kind": "rope"}}},
      float((path / "gain").read_text()),
      str(path),
    )

  def run(self, table, workdir, **kwargs):
    kwargs = {"rows": [r.name for r in table.rows], "seeds": [0], **kwargs}
    return runner.run_rows(
      table,
      kwargs.pop("scale", "smoke"),
      workdir=workdir,
      train=self.train,
      restore=self.restore,
      say=lambda _: None,
      **kwargs,
    )


def summarise(table, workdir, failed=(), scale="smoke"):
  return report.summarise(
    table, scale, runner.results(table, scale, workdir), dict(failed), runner.provenance()
  )


def test_a_checkpoint_row_evaluates_another_rows_parameters_and_trains_nothing(table, tmp_path):
  trainer = Trainer()
  assert trainer.run(table, tmp_path / "w", rows=["pi"]) == {}
  assert [row for _, row, _ in trainer.calls] == ["rope"]
  results = runner.results(table, "smoke", tmp_path / "w")
  assert results["", "rope", 0]["numbers"] == {"ppl@1x": 1.0, "ppl@2x": 2.0}
  assert results["", "pi", 0]["numbers"] == {"ppl@1x": 1.0, "ppl@2x": 1.0}


def test_a_row_of_settings_computes_and_one_that_reads_a_checkpoint_is_told_its_own(
  table, tmp_path
):
  seen = []

  def measure(trained, overrides_at):
    seen.append((dict(trained.config), trained.params, dict(trained.settings)))
    return Measured({"ppl@1x": 3.0}, {}, {})

  alone = dataclasses.replace(
    table,
    rows=[Row("a", settings={"n": 1, "m": 2})],
    scales={"smoke": Scale("", overrides={"n": 7, "k": 5})},
    published={},
    claims={},
    figure=None,
    measure=measure,
  )
  assert Trainer().run(alone, tmp_path / "w") == {}
  assert seen == [({"n": 1, "k": 5, "m": 2, "seed": 0}, None, {})]
  result = runner.results(alone, "smoke", tmp_path / "w")["", "a", 0]
  assert result["numbers"] == {"ppl@1x": 3.0} and len(result["training"]) == 1
  assert Trainer().run(alone, tmp_path / "w") == {} and len(seen) == 1  # finished
  other = dataclasses.replace(alone, rows=[Row("a", settings={"n": 2, "m": 2})])
  assert "another configuration" in Trainer().run(other, tmp_path / "w")["", "a", 0]
  told = Row("pi", evaluate_from="rope", settings={"reading": "x"})
  rows = [table.row("rope"), told]
  of_rope = dataclasses.replace(table, rows=rows, published={}, claims={}, measure=measure)
  assert Trainer().run(of_rope, tmp_path / "v") == {}
  assert [settings for *_, settings in seen[1:]] == [{}, {"reading": "x"}]
  with pytest.raises(ConfigError, match="or settings to compute with"):
    Row("nothing")


def test_a_row_begins_from_another_row_s_checkpoint_which_is_trained_first(table, tmp_path):
  rows = [
    dataclasses.replace(table.row("big"), name="second", begins_from="first"),
    dataclasses.replace(table.row("big"), name="first", begins_from="rope"),
    *table.rows[:1],
  ]
  chain = dataclasses.replace(table, rows=rows, published={}, claims={}, figure=None)
  begun = {}

  class Begun(Trainer):
    def train(self, config, path):
      begun[path.parent.name] = config["train"].get("init_from")
      return super().train(config, path)

  trainer = Begun()
  assert trainer.run(chain, tmp_path / "w", rows=["second"]) == {}
  assert [row for _, row, _ in trainer.calls] == ["rope", "first", "second"]
  assert begun["rope"] is None
  assert begun["second"] == str(runner.folder(tmp_path / "w", "", "first", 0))
  again = Trainer()
  assert again.run(chain, tmp_path / "w") == {} and not again.calls
  # What it begins from is a part of what it is.
  rows[2] = dataclasses.replace(rows[2], overrides={"optimizer.learning_rate": 2.0})
  failed = again.run(dataclasses.replace(chain, rows=rows), tmp_path / "w", rows=["second"])
  assert set(failed) == {("", name, 0) for name in ("rope", "first", "second")}
  failed = Trainer(fail=["rope"]).run(chain, tmp_path / "v", rows=["second"])
  assert "'rope', whose checkpoint it begins from, has not finished" in failed["", "first", 0]


@pytest.mark.parametrize(
  "begins_from, message",
  [("nothing", "which no row trains"), ("first", "begins from itself"), ("pi", "no row trains")],
)
def test_a_row_that_cannot_begin_there_is_refused(table, begins_from, message):
  first = dataclasses.replace(table.row("big"), name="first", begins_from=begins_from)
  with pytest.raises(ConfigError, match=message):
    dataclasses.replace(table, rows=[*table.rows, first])
  with pytest.raises(ConfigError, match="trains nothing"):
    Row("x", evaluate_from="rope", begins_from="rope")


def test_finished_rows_are_skipped_and_their_checkpoints_read_back(table, tmp_path):
  Trainer().run(table, tmp_path / "w", rows=["rope", "big"])
  again = Trainer()
  assert again.run(table, tmp_path / "w") == {}
  assert [row for _, row, _ in again.calls] == ["learned"]
  assert ("", "pi", 0) in runner.results(table, "smoke", tmp_path / "w")


def test_a_finished_row_of_another_configuration_is_neither_reused_nor_overwritten(table, tmp_path):
  Trainer().run(table, tmp_path / "w", rows=["big"])
  changed = Table(
    **{**table.__dict__, "scales": {"smoke": Scale("other", overrides={"data.seq_len": 3})}}
  )
  trainer = Trainer()
  failed = trainer.run(changed, tmp_path / "w", rows=["big"])
  assert "another configuration" in failed["", "big", 0] and not trainer.calls


def test_a_finished_row_is_not_reused_when_its_text_was_edited(table, tmp_path):
  text = tmp_path / "mine.txt"
  text.write_text("One day. ")
  mine = dataclasses.replace(
    table, scales={"smoke": Scale("mine", overrides={"data.source": f"text:{text}"})}
  )
  Trainer().run(mine, tmp_path / "w", rows=["rope"])
  again = Trainer()
  assert again.run(mine, tmp_path / "w", rows=["rope"]) == {} and not again.calls
  text.write_text("Two days.")
  [message] = again.run(mine, tmp_path / "w", rows=["rope"]).values()
  assert "or of another text; remove that folder" in message and not again.calls


def test_a_failing_row_is_reported_and_the_others_go_on(table, tmp_path):
  failed = Trainer(fail=["rope"]).run(table, tmp_path / "w")
  assert set(failed) == {("", "rope", 0), ("", "pi", 0)}  # pi has no checkpoint to evaluate
  page = report.markdown(table, summarise(table, tmp_path / "w", failed))
  assert "| rope (failed) | smoke |  |  |" in page and "rope exploded" in page
  assert "| Big gain | smoke | 3.00 | 6.00 |" in page


def test_the_page_shows_ours_beside_theirs_with_scale_spread_and_reasons(table, tmp_path):
  Trainer().run(table, tmp_path / "w", seeds=[0, 1, 2])
  summary = summarise(table, tmp_path / "w")
  page = report.markdown(table, summary)
  assert "| rope | smoke | 2.00 ± 1.00 | 4.00 ± 2.00 | 1.25 (s)<br>2.50 (m) |  |" in page
  assert (
    "| learned | smoke | 2.00 ± 1.00 | n/a [1] |  |  |" in page
    and "[1] table of 4 positions" in page
  )
  assert "9.00?" in page and "from memory" in page
  assert "PI undoes the length: **not shown** (margin +2, 95 % interval -0.484 to +4.48" in page
  assert "learned extrapolates: **not measured**" in page
  assert (
    summary["revision"] in page and summary["versions"]["jax"] in page and "tiny, really" in page
  )
  assert summary["rows"][0]["cells"]["1x"]["values"] == {"0": 1.0, "1": 2.0, "2": 3.0}
  json.dumps(summary, allow_nan=False)


def test_at_paper_scale_each_size_is_compared_with_its_own_number(table, tmp_path):
  Trainer().run(table, tmp_path / "w", scale="paper")
  rows = {(r["size"], r["row"]): r for r in summarise(table, tmp_path / "w", scale="paper")["rows"]}
  assert [n["value"] for n in rows["s", "rope"]["published"]["1x"]] == [1.25]
  assert [n["value"] for n in rows["m", "rope"]["published"]["1x"]] == [2.5]
  assert rows["m", "rope"]["cells"]["1x"]["mean"] == 7.0


def test_rows_never_run_leave_empty_cells(table, tmp_path):
  Trainer().run(table, tmp_path / "w", rows=["big"])
  page = report.markdown(table, summarise(table, tmp_path / "w"))
  assert "| learned | smoke |  |  |" in page


def test_the_figure_is_drawn_from_what_is_finished(table, tmp_path):
  assert figure.draw(table, {}, tmp_path / "none.png") is None
  Trainer().run(table, tmp_path / "w", rows=["rope", "big"], seeds=[0, 1])
  path = figure.draw(table, runner.results(table, "smoke", tmp_path / "w"), tmp_path / "f.png")
  assert path.read_bytes().startswith(b"\x89PNG")


def test_a_curve_of_logged_metrics_is_drawn_over_training_steps(table, tmp_path, monkeypatch):
  from matplotlib.axes import Axes

  drawn, plot = [], Axes.plot
  monkeypatch.setattr(
    Axes,
    "plot",
    lambda self, x, *args, **options: drawn.append(list(x)) or plot(self, x, *args, **options),
  )
  steps = dataclasses.replace(
    table,
    figure=dataclasses.replace(table.figure, spacing=by_step),
    scales={"smoke": Scale("tiny", overrides={"train.log_every": 50})},
  )
  Trainer().run(steps, tmp_path / "w", rows=["rope", "big"])
  figure.draw(steps, runner.results(steps, "smoke", tmp_path / "w"), tmp_path / "f.png")
  assert drawn == [[50 * i for i in range(1, 9)]] * 2


def test_overrides_replace_subtrees_see_the_configuration_and_refuse_unknown_keys(table):
  config = runner.resolve(table, table.row("learned"), table.scales["smoke"], "", 4)
  assert config["model"]["position"] == {"kind": "learned", "max_len": 4}
  assert (config["seed"], config["data"]["seq_len"]) == (4, 2)
  with pytest.raises(ConfigError, match="modle"):
    runner.override(config, {"modle.d_model": 1})
  assert (
    runner.override(config, {"model.d_model": lambda c: c["data"]["seq_len"] * 10})["model"][
      "d_model"
    ]
    == 20
  )


def test_a_scale_may_have_its_own_configuration_file(table, tmp_path):
  other = tmp_path / "other.py"
  other.write_text(CONFIG.replace("learning_rate=1.0", "learning_rate=11.0"))
  scale = Scale("other file", config=str(other))
  assert (
    runner.resolve(table, table.row("rope"), scale, "", 0)["optimizer"]["learning_rate"] == 11.0
  )


def test_a_scale_may_have_a_row_of_another_configuration_file(table, tmp_path):
  other = tmp_path / "other.py"
  other.write_text(CONFIG.replace("learning_rate=1.0", "learning_rate=11.0"))
  changed = dataclasses.replace(
    table, scales={"smoke": Scale("ours", configs={"rope": str(other)})}
  )
  rates = [
    runner.resolve(changed, changed.row(name), changed.scales["smoke"], "", 0)["optimizer"][
      "learning_rate"
    ]
    for name in ("rope", "big", "learned")
  ]
  assert rates == [11.0, 3.0, 1.0]
  with pytest.raises(
    ConfigError, match="scale 'smoke' has a configuration for 'pi', which no row trains"
  ):
    dataclasses.replace(table, scales={"smoke": Scale("ours", configs={"pi": str(other)})})


def test_declarations_that_cannot_be_meant_are_refused(table):
  with pytest.raises(ConfigError, match="evaluate_from"):
    Row("nothing")
  with pytest.raises(ConfigError, match="which is not in the table"):
    Table(**{**table.__dict__, "published": {("rope", "3x"): paper(1.0, "Table 1")}})
  with pytest.raises(ConfigError, match="did you mean 'rope'"):
    table.row("roope")


@pytest.mark.parametrize(
  "argv, message",
  [
    (["--scale=smok"], "no scale 'smok'; did you mean 'smoke'"),
    (["--scale=smoke", "--row=bog"], "no row 'bog'"),
    (["--scale=smoke", "--seeds=0"], "at least one seed"),
  ],
)
def test_a_wrong_request_ends_with_a_sentence_and_code_2(table, capsys, argv, message):
  assert command.run_table(table, argv) == 2
  assert message in capsys.readouterr().err


def test_a_missing_script_ends_with_a_sentence_and_code_2(capsys, tmp_path):
  assert command.main([str(tmp_path / "none.py"), "--scale=smoke"]) == 2
  assert "no table script" in capsys.readouterr().err


def test_an_interrupted_write_leaves_no_result(table, tmp_path):
  Trainer().run(table, tmp_path / "w", rows=["big"])
  path = runner.folder(tmp_path / "w", "", "big", 0) / "measured.json"
  path.rename(path.with_suffix(".json.tmp"))
  trainer = Trainer()
  trainer.run(table, tmp_path / "w", rows=["big"])
  assert len(trainer.calls) == 1 and pathlib.Path(path).exists()
