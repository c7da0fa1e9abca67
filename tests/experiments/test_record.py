"""What a measured row keeps of its making, and when it is stale."""

import json
import pathlib
import subprocess

import pytest

from jaxlm.experiments import record

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def here(monkeypatch):
  monkeypatch.setattr(
    record, "made_by", lambda: {"revision": "abc", "command": "jaxlm table x.py", "cpu": "a CPU"}
  )


def test_every_start_of_a_training_is_kept_with_its_cost(tmp_path, here):
  run = tmp_path / "seed0"
  with pytest.raises(KeyboardInterrupt):
    with record.training(run):
      raise KeyboardInterrupt
  with record.training(run):
    run.mkdir()
    (run / "result.json").write_text('{"finished": true}')
  with record.training(run):  # nothing is trained: no third start
    pass
  found = record.starts(run)
  assert len(found) == 2 and found[0]["cpu"] == "a CPU"
  assert all(each["wall_s"] >= 0 and each["core_s"] >= 0 for each in found)
  assert record.total(found, "wall_s") == pytest.approx(sum(f["wall_s"] for f in found), abs=0.1)


def test_a_start_that_was_killed_has_no_cost_and_neither_has_the_sum(tmp_path, here):
  with record.training(tmp_path / "seed0"):
    during = record.starts(tmp_path / "seed0")
  assert during[0]["wall_s"] is None
  assert record.total([during[0], {"wall_s": 1.0}], "wall_s") is None


def test_a_row_is_stale_if_its_revision_cannot_be_checked_out_from_here():
  head = subprocess.run(
    ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True
  ).stdout.strip()
  if not head:
    pytest.skip("not a git repository")
  assert record.stale([{"revision": head}]) == ""
  assert "not an ancestor of HEAD" in record.stale([{"revision": head}, {"revision": "0" * 40}])
  assert "differed" in record.stale([{"revision": head + "+"}])
  assert record.stale([]) == "its training was not recorded"


def test_outside_a_repository_nothing_is_stale(monkeypatch):
  monkeypatch.setattr(record, "is_ancestor", lambda revision: False)
  assert record.stale([{"revision": "unknown"}]) == record.stale([]) == ""


def test_the_trace_of_the_loss_is_thinned(tmp_path):
  assert record.loss_trace(tmp_path) == {}
  lines = [json.dumps({"step": i, "loss": 1 / i}) for i in range(1, 201)]
  (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
  found = record.loss_trace(tmp_path)
  assert len(found["step"]) == len(found["loss"]) <= record.TRACE_POINTS
  assert found["step"][:2] == [1, 5] and found["loss"][1] == 0.2
