"""A run's numbers go to a tracking service too, and a resumed run goes on in the same place."""

import math
import sys
import types

import pytest

from jaxlm.config import ConfigError
from jaxlm.training import tracker
from jaxlm.training.metrics import Writer, read


@pytest.fixture(params=["wandb", "trackio"])
def service(request, monkeypatch):
  """A module in the service's place, that keeps what it is told."""
  told = []
  module = types.ModuleType(request.param)
  module.init = lambda **options: told.append(("init", options))
  module.log = lambda values, step: told.append(("log", step, values))
  module.finish = lambda: told.append(("finish",))
  monkeypatch.setitem(sys.modules, request.param, module)
  return request.param, told


def test_numbers_are_written_to_the_service_and_to_the_folder(service, tmp_path, monkeypatch):
  kind, told = service
  monkeypatch.setenv(f"{kind.upper()}_PROJECT", "mine")
  for step in (1, 2):  # the second is the run resumed
    writer = Writer(tmp_path, step, tracker.Tracker(kind, tmp_path, {"seed": 3}))
    writer.write(step, {"loss": 1.5, "grad_norm": math.nan})
    writer.close()
  begun = [options for what, *rest in told if what == "init" for options in rest]
  assert (
    begun[0] == begun[1] and begun[0]["project"] == "mine" and begun[0]["config"] == {"seed": 3}
  )
  assert begun[0]["resume"] == "allow"
  assert [t for t in told if t[0] == "log"] == [("log", s, {"loss": 1.5}) for s in (1, 2)]
  assert told[-1] == ("finish",) and [r["loss"] for r in read(tmp_path)] == [1.5, 1.5]


def test_a_service_that_is_not_installed_is_refused_before_the_run(monkeypatch):
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  with pytest.raises(ConfigError, match=r"train.tracker = 'wandb': .*pip install 'jaxlm\[wandb\]'"):
    tracker.check("wandb")
  tracker.check(None)
