"""`jaxlm kernels` and the log of a run say which implementation each op takes, and why not others."""

import json

import jax
import jax.numpy as jnp
import pytest

from jaxlm import cli
from jaxlm.kernels.attention import attention
from jaxlm.kernels.choices import Choice, note, recorded, summary


def test_an_op_says_what_it_takes_once_and_only_to_those_who_listen():
  q = jax.ShapeDtypeStruct((1, 8, 2, 4), jnp.float32)

  def twice(q):
    return attention(q, q, q) + attention(q, q, q)

  with recorded() as choices:
    jax.eval_shape(twice, q)
  jax.eval_shape(lambda q: twice(q), q)  # nobody listens
  (choice,) = choices
  assert (choice.op, choice.implementation, choice.named) == ("attention", "reference", False)
  assert choice.arguments == "q float32 (1, 8, 2, 4), k float32 (1, 8, 2, 4)"
  assert dict(choice.refused)["cudnn"] == "the trace is for cpu, cuDNN needs a GPU"
  note("attention", "xla", {}, refused=lambda: pytest.fail("nobody listens"))


def test_a_supported_implementation_that_is_not_taken_is_said_to_be_slower():
  with recorded() as choices:
    note("op", "xla", {}, refused=lambda: {"pallas": None, "xla": None})
    note("op", "pallas", {}, named=True)
  assert [name for name, _ in choices[0].refused] == ["pallas"]
  assert "not the default" in choices[0].refused[0][1] and not choices[1].refused
  assert summary([*choices, Choice("a", "xla", "", False, ())]) == "a xla, op pallas and xla"


def test_the_command_lists_the_ops_of_a_configuration(capsys):
  assert cli.main(["kernels", "--config=configs/carope/tiny.py", "--json"]) == 0
  found = {entry["op"]: entry for entry in json.loads(capsys.readouterr().out)}
  assert {"attention", "phase", "linear_cross_entropy"} <= set(found)
  assert found["phase"]["implementation"] == "xla" and found["phase"]["case"] == "train"
  assert "needs a TPU" in found["attention"]["refused"]["pallas"]


@pytest.mark.parametrize(
  "argv, said",
  [
    (["--topologi=v5e:1x1"], "did you mean --topology?"),
    (["--topology=v5e-8"], "is not of the form chip:AxB"),
    (["--topology=v5x:1x1"], "did you mean 'v5p'?"),
    (["--config.seed=1"], "add --config=FILE"),
    (
      ["--config=configs/carope/tiny.py", "--config.model.mixer.implementation=palas"],
      "did you mean 'pallas'?",
    ),
    (
      ["--config=configs/carope/tiny.py", "--config.model.mixer.implementation=pallas"],
      "attention implementation 'pallas': the trace is for cpu",
    ),
  ],
)
def test_wrong_requests_end_with_one_sentence_and_code_2(argv, said, capsys):
  assert cli.main(["kernels", *argv]) == 2
  error = capsys.readouterr().err
  assert said in error and error.startswith("jaxlm kernels: ") and "Traceback" not in error


@pytest.mark.compile
def test_on_a_slice_that_is_not_there_the_choices_are_those_of_its_chip(capsys):
  pytest.importorskip("libtpu")
  argv = ["kernels", "--config=configs/carope/paper_small.py", "--topology=v5e:4x4", "--json"]
  assert cli.main(argv) == 0
  found = {entry["op"]: entry for entry in json.loads(capsys.readouterr().out)}
  assert found["attention"]["implementation"] == "pallas"  # rows of 512, without biases
  assert found["phase"]["implementation"] == "pallas"
