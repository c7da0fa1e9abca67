"""Frozen models: opened by the config's name, laid out by the rules, never saved, the same ones after
a resume, or a sentence.
"""

import dataclasses
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

from jaxlm.checkpoint.reading import newest_note
from jaxlm.config import ConfigError
from jaxlm.objectives.distillation import divergence
from jaxlm.parallel.mesh import make_mesh
from jaxlm.parallel.place import placer
from jaxlm.training.config import run_config
from jaxlm.training.frozen import frozen_record, of_frozen, open_frozen
from jaxlm.training.run import train
from jaxlm.training.step import build_program

MESH = {"mesh.fsdp": 4, "mesh.data": 2}


def run(folder, **overrides):
  return train(tiny_run.config(**{"train.save_every": 2} | MESH | overrides), folder, quiet=True)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
  """A run of two steps of a schedule that can be extended."""
  folder = tmp_path_factory.mktemp("runs") / "teacher"
  run(folder, **{"train.steps": 2, "schedule": "constant"})
  return folder


def student(teacher, **more):
  objective = dict(kind="distillation", teacher=str(teacher), temperature=2.0)
  return {"objective": objective, "schedule": "constant", "train.steps": 4, "seed": 5} | more


def test_the_divergence_is_zero_between_equals_and_has_the_gradient_of_cross_entropy():
  rng = np.random.default_rng(0)
  p, q = (jnp.asarray(rng.normal(size=(2, 3, 5)), jnp.float32) for _ in range(2))
  np.testing.assert_allclose(divergence(p, p + 3.0, 2.0), 0, atol=1e-5)
  grad = jax.grad(lambda q: divergence(p, q, 2.0).sum())(q)
  want = 2.0 * (jax.nn.softmax(q / 2.0) - jax.nn.softmax(p / 2.0))
  np.testing.assert_allclose(grad, want, atol=1e-5)


def test_a_resumed_run_has_the_teacher_that_it_began_with_and_saves_none_of_it(teacher, tmp_path):
  mine = tmp_path / "teacher"
  shutil.copytree(teacher, mine)
  whole = run(tmp_path / "whole", **student(mine))
  note = newest_note(tmp_path / "whole")
  assert note["frozen"]["teacher"]["step"] == 2
  assert not [name for name in note["checksums"] if "teacher" in name or "frozen" in name]
  run(tmp_path / "two", **student(mine, **{"train.steps": 2}))
  run(mine, **{"train.steps": 4, "schedule": "constant"})  # the teacher learns on meanwhile
  resumed = run(tmp_path / "two", **student(mine))
  jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)
  fresh = run(tmp_path / "fresh", **student(mine))
  assert fresh.metrics["teacher_loss"] != whole.metrics["teacher_loss"]

  shutil.rmtree(mine / "checkpoints" / "2")
  with pytest.raises(ConfigError, match="with which this run began: .* no complete checkpoint of"):
    run(tmp_path / "two", **student(mine, **{"train.steps": 6}))


def test_other_parameters_in_the_teacher_s_folder_are_refused_on_resume(teacher, tmp_path):
  mine = tmp_path / "teacher"
  shutil.copytree(teacher, mine)
  run(tmp_path / "run", **student(mine, **{"train.steps": 2}))
  shutil.rmtree(mine)
  run(mine, **{"train.steps": 2, "schedule": "constant", "seed": 9})
  with pytest.raises(ConfigError, match="holds other parameters than those that this run began"):
    run(tmp_path / "run", **student(mine))


def test_the_teacher_lies_where_the_rules_say_and_no_gradient_reaches_it(teacher):
  cfg = run_config(tiny_run.config(**MESH, **student(teacher, **{"data.vocab_size": 16})))
  mesh, batch = make_mesh(cfg.mesh), next(iter(cfg.data.build("train", seed=0)))
  recorded = frozen_record(cfg, {})
  models, frozen = open_frozen(cfg, mesh, recorded)
  program = build_program(cfg, mesh, batch, frozen=models)
  like = program.state.params
  for leaf, want in zip(jax.tree.leaves(frozen["teacher"]), jax.tree.leaves(like), strict=True):
    assert leaf.sharding.is_equivalent_to(want.sharding, leaf.ndim)
  before = jax.device_get(frozen)
  with program.context():
    program.step(program.init(), placer(mesh)(batch), frozen)
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(frozen), before)
  # Hosts compare what they would read before they read it.
  other = {"teacher": recorded["teacher"] | {"checksum": "0"}}
  differ = {k for k, v in of_frozen(recorded).items() if of_frozen(other)[k] != v}
  assert differ == {"the checksum of objective.teacher"}


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"objective.teacher": "nowhere"}, r"objective.teacher = 'nowhere': .*does not exist"),
    ({"objective.teacher": dict(folder="TEACHER", step=7)}, "no complete checkpoint of step 7"),
    ({"model.vocab_size": 24}, r"TEACHER' holds a model of 16 tokens, and model.vocab_size = 24"),
  ],
)
def test_a_teacher_that_cannot_serve_is_refused_in_one_sentence(
  teacher, tmp_path, changes, message
):
  def named(value):
    if isinstance(value, dict):
      return {k: named(v) for k, v in value.items()}
    return str(teacher) if value == "TEACHER" else value

  with pytest.raises(ConfigError) as error:
    run(tmp_path / "run", **student(teacher, **named(changes)))
  assert re.search(message, str(error.value).replace(str(teacher), "TEACHER"))
  assert "\n" not in str(error.value)


def test_a_loss_without_its_frozen_model_is_an_error_of_the_caller(teacher):
  cfg = run_config(tiny_run.config(**student(teacher)))
  batch = next(iter(cfg.data.build("train", seed=0)))
  with pytest.raises(ConfigError, match="'teacher' of the objective has not been opened"):
    build_program(cfg, make_mesh(cfg.mesh, jax.devices()[:1]), batch)
  assert dataclasses.replace(cfg.objective, teacher="x").frozen["teacher"].folder == "x"
