"""Files, overrides and checks: what is meant is built, what cannot be meant is refused with a
sentence.
"""

import pytest
import tiny_run

from jaxlm.commands.flags import parse_flags
from jaxlm.config import ConfigError
from jaxlm.training.config import check, differences, load_config, resolved, run_config
from jaxlm.training.optimizers import Lion
from jaxlm.training.schedules import InverseSqrt

FILE = """
import ml_collections

def get_config(size="8"):
  c = ml_collections.ConfigDict()
  c.model = dict(kind="tiny", d_model=int(size))
  c.objective, c.data = dict(kind="tiny"), dict(kind="tiny")
  c.optimizer = dict(kind="adamw", learning_rate=1e-3, eps=1e-7)
  c.schedule = dict(kind="cosine", warmup_steps=2)
  c.train = dict(steps=5)
  return c
"""


@pytest.fixture
def file(tmp_path):
  path = tmp_path / "config.py"
  path.write_text(FILE)
  return str(path)


def test_a_file_with_its_argument_and_overrides_becomes_frozen_dataclasses(file):
  spec, overrides, rest = parse_flags(
    [
      f"--config={file}:16",
      "--config.train.steps=7",
      "--new",
      "--config.optimizer.learning_rate",
      "3e-4",
      "--config.train.debug=true",
    ]
  )
  cfg = run_config(load_config(spec, overrides))
  assert (cfg.model.d_model, cfg.train.steps, cfg.optimizer.learning_rate, cfg.train.debug) == (
    16,
    7,
    3e-4,
    True,
  )
  assert cfg.optimizer.eps == 1e-7 and rest == ["--new"]


def test_the_loaded_config_is_locked(file):
  with pytest.raises(AttributeError):
    load_config(file).train.stpes = 3


def test_a_key_that_the_file_leaves_to_its_default_can_be_given(file):
  cfg = run_config(
    load_config(file, {"train.accumulation": 2, "mesh.fsdp": 1, "eval.lengths": (8, 16)})
  )
  assert (cfg.train.accumulation, cfg.mesh.fsdp, cfg.eval.lengths) == (2, 1, (8, 16))


@pytest.mark.parametrize("override", [{"optimizer": "lion"}, {"optimizer.kind": "lion"}])
def test_a_kind_can_be_changed_and_keeps_the_fields_it_shares(file, override):
  cfg = run_config(load_config(file, override | {"schedule": "inverse_sqrt"}))
  assert isinstance(cfg.optimizer, Lion) and cfg.optimizer.learning_rate == 1e-3  # eps is dropped
  assert isinstance(cfg.schedule, InverseSqrt) and cfg.schedule.warmup_steps == 2


def test_a_whole_section_can_be_given_as_a_mapping(file):
  cfg = run_config(load_config(file, {"optimizer": dict(kind="sgd", learning_rate=0.5)}))
  assert cfg.optimizer.learning_rate == 0.5 and type(cfg.optimizer).__name__ == "SGD"


@pytest.mark.parametrize(
  "override, said",
  [
    ({"train.step": 3}, r"unknown key --config.train.step; did you mean 'steps'"),
    ({"trian.steps": 3}, r"unknown key --config.trian; did you mean 'train'"),
    (
      {"optimizer.learning_rte": 3},
      r"unknown key --config.optimizer.learning_rte; did you mean 'learning_rate'",
    ),
    ({"optimizer": "adam"}, r"optimizer.* 'adam'.*did you mean 'adamw'"),
    ({"train.steps": "many"}, r"train.steps = 'many': wanted int, got str"),
    ({"train.steps": 1.5}, r"train.steps = 1.5: wanted int, got float"),
    ({"train.steps": 0}, r"train.steps = 0: wanted 1 or more"),
    ({"train.steps.more": 1}, r"train.steps = 5 has no fields"),
    ({"optimizer.decay": "some"}, r"decay = 'some'"),
  ],
)
def test_what_cannot_be_meant_is_refused_with_the_nearest_right_thing(file, override, said):
  with pytest.raises(ConfigError, match=said):
    run_config(load_config(file, override))


@pytest.mark.parametrize(
  "text, said",
  [
    ("def get_config(): return 1/0", r"get_config\(\) raises ZeroDivisionError"),
    ("import no_such_module", "does not run: ModuleNotFoundError"),
    ("x = 1", r"defines no get_config\(\)"),
  ],
)
def test_a_broken_file_is_named(tmp_path, text, said):
  path = tmp_path / "broken.py"
  path.write_text(text)
  with pytest.raises(ConfigError, match=said):
    load_config(str(path))


def test_a_resolved_configuration_reads_back_as_itself_and_differs_only_where_changed(file):
  cfg = run_config(load_config(file))
  assert run_config(resolved(cfg)) == cfg
  other = run_config(load_config(file, {"optimizer.b1": 0.8, "schedule": "linear"}))
  found = differences(resolved(cfg), resolved(other))
  assert [key for key, _, _ in found] == ["optimizer.b1", "schedule"]
  assert found[0][1:] == (0.9, 0.8)


@pytest.mark.parametrize(
  "override, said",
  [
    (
      {"data.batch_size": 12},
      r"data.batch_size = 12 is not divisible by mesh.data \(2\) x mesh.fsdp \(4\) x "
      r"train.accumulation \(1\) = 8; set it to 8 or 16",
    ),
    (
      {"train.accumulation": 2},
      r"batch_size = 8 is not divisible by .* train.accumulation \(2\) = 16; set it to 16",
    ),
    (
      {"model.vocab_size": 10},
      r"the tokenizer has 16 tokens, but model.vocab_size = 10; set model.vocab_size to at least 16",
    ),
    ({"model.max_len": 4}, r"data.seq_len = 8 is longer than the model's position table of 4"),
    (
      {"mesh.fsdp": 3},
      r"mesh data=2 x fsdp=3 x sequence=1 x tensor=1 = 6 devices, but there are 8",
    ),
  ],
)
def test_sections_that_do_not_fit_together_are_refused_before_anything_is_allocated(override, said):
  cfg = run_config(tiny_run.config(**{"mesh.data": 2, "mesh.fsdp": 4} | override))
  with pytest.raises(ConfigError, match=said):
    check(cfg, 8)
