"""`jaxlm verify`: what passes, what fails, and that nothing fails silently."""

import json
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.interop import verify
from jaxlm.interop.golden import CHECKS
from jaxlm.interop.golden.case import Case, DamagedCase, Tolerance, float64


def double(case):
  case.compare("out/y", 2 * jnp.asarray(case["in/x"]), Tolerance(atol=1e-6))
  if case.config.get("gradients", True):
    case.compare("grad/x", jnp.full(3, 2.0), Tolerance(rtol_max=1e-6))


def leave_out(case):
  case.compare("out/y", 2 * jnp.asarray(case["in/x"]))
  case.skip("grad/x", "no gradient here")


def broken(case):
  raise RuntimeError("the check itself is broken")


@float64(when=lambda case: case.config.get("dtype") == "float64")
def precision(case):
  case.require("is_float64", jnp.zeros(()).dtype == case.config["dtype"], "wrong precision")


@pytest.fixture(autouse=True)
def toy_checks(monkeypatch):
  module = types.ModuleType("toy_checks")
  for check in (double, leave_out, broken, precision):
    setattr(module, check.__name__, check)
    monkeypatch.setitem(CHECKS, ("toy", check.__name__), f"toy_checks:{check.__name__}")
  monkeypatch.setitem(sys.modules, "toy_checks", module)


def write(path, kind="double", *, y=None, **config):
  x = np.arange(3, dtype=np.float32)
  y = 2 * x if y is None else y
  path.parent.mkdir(parents=True, exist_ok=True)
  np.savez(
    path,
    config=json.dumps({"system": "toy", "kind": kind} | config),
    **{"in/x": x, "out/y": y, "grad/x": np.full(3, 2, np.float32)},
  )


def run(capsys, *argv):
  """(exit code, report as parsed JSON)."""
  code = verify.main([*map(str, argv), "--json"])
  return code, json.loads(capsys.readouterr().out)


def test_every_file_below_the_folder_is_a_row(tmp_path, capsys):
  write(tmp_path / "a.npz")
  write(tmp_path / "deep" / "er" / "b.npz")
  code, report = run(capsys, tmp_path)
  assert code == 0 and report["passed"]
  assert [row["file"] for row in report["rows"]] == ["a.npz", "deep/er/b.npz"]
  assert [len(row["comparisons"]) for row in report["rows"]] == [2, 2]


def test_a_number_out_of_tolerance_fails_its_row_only(tmp_path, capsys):
  write(tmp_path / "good.npz")
  write(tmp_path / "bad.npz", y=np.array([0, 2, 4.001], np.float32))
  code, report = run(capsys, tmp_path)
  assert code == 1
  assert {row["file"]: row["passed"] for row in report["rows"]} == {
    "bad.npz": False,
    "good.npz": True,
  }
  bad = report["rows"][0]
  assert bad["worst"]["outputs"] == pytest.approx(1e-3, rel=1e-2) and bad["worst"]["ratio"] > 100


@pytest.mark.parametrize(
  "y", [np.array([0, 2, np.nan], np.float32), np.zeros(4, np.float32)], ids=["nan", "shape"]
)
def test_not_a_number_and_a_wrong_shape_fail(tmp_path, capsys, y):
  write(tmp_path / "bad.npz", y=y)
  assert run(capsys, tmp_path)[0] == 1


def test_a_stored_result_that_nobody_read_is_a_failure_unless_allowed(tmp_path, capsys):
  write(tmp_path / "gap.npz", gradients=False)
  code, report = run(capsys, tmp_path)
  assert code == 1 and report["rows"][0]["unread"] == ["grad/x"]
  assert "grad/x" in report["rows"][0]["message"]
  assert run(capsys, tmp_path, "--allow-unread")[0] == 0


def test_a_result_left_out_with_a_reason_passes_and_is_counted(tmp_path, capsys):
  write(tmp_path / "a.npz", "leave_out")
  code, report = run(capsys, tmp_path)
  assert code == 0 and report["rows"][0]["skipped"] == {"grad/x": "no gradient here"}


def test_an_unknown_kind_fails_and_names_the_nearest(tmp_path, capsys):
  write(tmp_path / "a.npz", "duble")
  code, report = run(capsys, tmp_path)
  assert code == 1 and "'toy/double'" in report["rows"][0]["message"]


def test_a_check_that_raises_fails_with_its_message_and_a_traceback_only_on_request(
  tmp_path, capsys
):
  write(tmp_path / "a.npz", "broken")
  write(tmp_path / "b.npz")
  assert verify.main([str(tmp_path)]) == 1
  out = capsys.readouterr().out
  assert (
    "the check itself is broken" in out and "Traceback" not in out and "1 of 2 cases pass" in out
  )
  assert verify.main([str(tmp_path), "--verbose"]) == 1
  assert "Traceback" in capsys.readouterr().out


def damage_text(path):
  path.write_text("not a zip file")


def damage_truncated(path):
  write(path)
  path.write_bytes(path.read_bytes()[:-100])


def damage_bytes(path):
  write(path)
  data = bytearray(path.read_bytes())
  at = data.index(b"in/x.npy") + 200  # inside the array: the checksum no longer fits
  data[at] ^= 0xFF
  path.write_bytes(bytes(data))


def damage_single_array(path):
  with open(path, "wb") as file:
    np.save(file, np.zeros(3))


def damage_no_config(path):
  np.savez(path, x=np.zeros(3))


def damage_bad_json(path):
  np.savez(path, config="{not json")


def damage_no_kind(path):
  np.savez(path, config='{"system": "toy"}')


def damage_pickle(path):
  np.savez(path, config='{"system": "toy", "kind": "double"}', x=np.array([{}], dtype=object))


@pytest.mark.parametrize(
  "damage",
  [
    damage_text,
    damage_truncated,
    damage_bytes,
    damage_single_array,
    damage_no_config,
    damage_bad_json,
    damage_no_kind,
    damage_pickle,
  ],
  ids=lambda f: f.__name__,
)
def test_a_damaged_file_is_a_failed_row_and_the_others_still_run(tmp_path, capsys, damage):
  damage(tmp_path / "damaged.npz")
  write(tmp_path / "good.npz")
  code, report = run(capsys, tmp_path)
  assert code == 1
  assert [row["passed"] for row in report["rows"]] == [False, True]
  assert report["rows"][0]["message"].startswith("damaged:")


@pytest.mark.parametrize("given", ["empty", "absent", "notes.txt"])
def test_nothing_to_verify_is_refused_with_a_sentence(tmp_path, capsys, given):
  (tmp_path / "empty").mkdir()
  (tmp_path / "notes.txt").write_text("hello")
  assert verify.main([str(tmp_path / given)]) == 2
  captured = capsys.readouterr()
  assert given in captured.err and captured.out == ""


def test_one_row_per_case_is_printed_with_its_worst_errors(tmp_path, capsys):
  write(tmp_path / "a.npz")
  write(tmp_path / "b.npz", y=np.array([0, 2, 5], np.float32))
  assert verify.main([str(tmp_path)]) == 1
  header, first, second, *rest = capsys.readouterr().out.splitlines()
  assert header.split()[:2] == ["system/kind", "file"]
  assert first.split() == ["toy/double", "a.npz", "0", "0", "0.000", "pass", "2", "0"]
  assert second.split() == ["toy/double", "b.npz", "1.0e+00", "0", ">", "1000", "FAIL", "2", "0"]
  assert rest[-1].startswith("1 of 2 cases pass; 4 arrays compared, 0 skipped")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_check_runs_in_64_bits_only_where_it_asks(tmp_path, dtype):
  write(tmp_path / "a.npz", "precision", dtype=dtype)
  row = verify.verify(tmp_path / "a.npz", allow_unread=True)
  assert row.passed, row
  assert not jax.config.jax_enable_x64


def test_a_tolerance_adds_absolute_relative_and_maximum_parts():
  want = np.array([1.0, -10.0])
  np.testing.assert_allclose(
    Tolerance(0.5, 0.1, 0.01).limit(want), [0.5 + 0.1 + 0.1, 0.5 + 1.0 + 0.1]
  )


def test_a_mask_restricts_the_comparison(tmp_path):
  write(tmp_path / "a.npz", y=np.array([0, 2, 99], np.float32))
  case = Case(tmp_path / "a.npz")
  case.compare("out/y", np.array([0, 2, 4]), where=np.array([True, True, False]))
  case.compare("grad/x", np.full(3, 2))
  assert case.passed
  case.compare("out/y", np.array([0, 2, 4]))
  assert not case.passed


def test_asking_for_an_array_that_is_not_there_names_the_nearest(tmp_path):
  write(tmp_path / "a.npz")
  with pytest.raises(DamagedCase, match="'in/x'"):
    Case(tmp_path / "a.npz")["in/xx"]
