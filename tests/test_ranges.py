"""Every number of a configuration has a range, and what lies outside is refused with key, value and
range.
"""

import ast
import dataclasses
import importlib
import math
import pathlib
import typing

import pytest

import jaxlm
from jaxlm.config import ConfigError, Kinds, build, check_number
from jaxlm.evaluation.probes import Probing
from jaxlm.generation.answers import Answering
from jaxlm.generation.insertion import Filter
from jaxlm.generation.sampling import Sampling
from jaxlm.layers.attention import AttentionConfig
from jaxlm.layers.lact_video import VideoLaCTConfig
from jaxlm.layers.t5 import T5LayerConfig
from jaxlm.models import MODELS
from jaxlm.parallel.mesh import MeshConfig
from jaxlm.ranges import BelowOne, Count, Positive, Range, Seed
from jaxlm.training.config import EvalConfig, RunConfig, TrainConfig
from jaxlm.training.optimizers import SGD, AdamW, Lion, Muon
from jaxlm.training.schedules import Cosine, WarmupStableDecay

ROOT = pathlib.Path(jaxlm.__file__).parent
#: Configurations that no key of a run's configuration leads to.
OTHERS = (Probing, Answering, Filter, Sampling, VideoLaCTConfig, T5LayerConfig)


def tables():
  """Every Kinds table of the library, so that one that no configuration mentions yet is walked too."""
  for path in ROOT.rglob("*.py"):
    text = path.read_text()
    if "Kinds(" in text:
      names = [
        node.targets[0].id
        for node in ast.parse(text).body
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Call)
        and ast.unparse(node.value.func) == "Kinds"
      ]
      module = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(
        ".__init__"
      )
      yield from (getattr(importlib.import_module(module), name) for name in names)


def classes():
  """Every dataclass that a configuration can be made of."""
  found, waiting = (
    {},
    [RunConfig, *OTHERS, *(table.cls(kind) for table in tables() for kind in table.table)],
  )

  def inside(hint):
    for part in (hint, *typing.get_args(hint)):
      if isinstance(part, type) and dataclasses.is_dataclass(part):
        waiting.append(part)
      elif isinstance(part, Kinds):
        waiting.extend(part.cls(kind) for kind in part.table)
      elif part is not hint and typing.get_args(part):
        inside(part)

  while waiting:
    cls = waiting.pop()
    if (
      cls not in found and dataclasses.is_dataclass(cls) and cls.__module__.startswith("jaxlm.")
    ):  # not of tests
      found[cls] = typing.get_type_hints(cls, include_extras=True)
      for field in dataclasses.fields(cls):
        inside(found[cls][field.name])
  return found


def without_range(hint) -> bool:
  """Whether a type holds a number that no Range bounds."""
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if origin is typing.Literal:
    return False
  if origin is typing.Annotated:
    return not any(isinstance(a, (Range, Kinds)) for a in args[1:]) and without_range(args[0])
  return hint in (int, float) or any(without_range(a) for a in args if a is not Ellipsis)


def ranges(hint):
  if typing.get_origin(hint) is typing.Annotated:
    yield from (a for a in typing.get_args(hint)[1:] if isinstance(a, Range))
  for part in typing.get_args(hint):
    if part is not Ellipsis and not isinstance(part, (str, int, float, Range, Kinds)):
      yield from ranges(part)


def test_every_number_of_every_configuration_has_a_range_that_holds_its_default():
  found = classes()
  assert len(found) > 70
  missing = [
    f"{cls.__module__}.{cls.__name__}.{field.name}: {hints[field.name]}"
    for cls, hints in found.items()
    for field in dataclasses.fields(cls)
    if without_range(hints[field.name])
  ]
  assert not missing, "no range of jaxlm.ranges:\n" + "\n".join(missing)
  for cls, hints in found.items():
    for field in dataclasses.fields(cls):
      bounds = list(ranges(hints[field.name]))
      if bounds and isinstance(field.default, (int, float)):
        assert any(field.default in r for r in bounds), (cls, field.name)


def test_every_configuration_with_a_number_checks_it_when_it_is_made_in_python_too():
  for cls, hints in classes().items():
    if any(list(ranges(hints[field.name])) for field in dataclasses.fields(cls)):
      assert any(
        base.__dict__["__post_init__"].__qualname__ == "checked.<locals>.__post_init__"
        for base in cls.__mro__
        if "__post_init__" in base.__dict__
      ), f"{cls.__name__} lacks @checked"


def test_nan_and_infinity_lie_in_no_range_of_any_configuration():
  for hints in classes().values():
    for hint in hints.values():
      assert all(
        math.nan not in r and math.inf not in r and -math.inf not in r for r in ranges(hint)
      )


@pytest.mark.parametrize(
  "cls, given, said",
  [
    (AdamW, dict(learning_rate=-0.1), "optimizer.learning_rate = -0.1: wanted 0 or more"),
    (AdamW, dict(learning_rate=math.inf), "optimizer.learning_rate = inf: wanted 0 or more"),
    (AdamW, dict(learning_rate=math.nan), "optimizer.learning_rate = nan: wanted 0 or more"),
    (AdamW, dict(b1=1.5), "optimizer.b1 = 1.5: wanted 0 or more, below 1"),
    (AdamW, dict(b2=1.0), "optimizer.b2 = 1.0: wanted 0 or more, below 1"),
    (AdamW, dict(eps=-1), "optimizer.eps = -1.0: wanted 0 or more"),
    (AdamW, dict(weight_decay=-0.1), "optimizer.weight_decay = -0.1: wanted 0 or more"),
    (AdamW, dict(clip_norm=0), "optimizer.clip_norm = 0.0: wanted a number above 0, or None"),
    (
      AdamW,
      dict(lr_multipliers=(("w_q", -1.0),)),
      r"optimizer.lr_multipliers\[0\]\[1\] = -1.0: wanted 0 or more",
    ),
    (Lion, dict(b1=-0.1), "optimizer.b1 = -0.1"),
    (Muon, dict(momentum=1.5), "optimizer.momentum = 1.5"),
    (Muon, dict(consistent_rms=-1.0), "optimizer.consistent_rms = -1.0"),
    (SGD, dict(momentum=1.0), "optimizer.momentum = 1.0"),
  ],
)
def test_an_optimiser_that_cannot_be_meant_is_refused_from_a_file_and_in_python(cls, given, said):
  with pytest.raises(ConfigError, match=said):
    build(cls, dict(learning_rate=1e-3) | given, "optimizer")
  with pytest.raises(ConfigError, match=said.removeprefix("optimizer.").split(" = ")[0]):
    cls(**dict(learning_rate=1e-3) | given)


@pytest.mark.parametrize(
  "make",
  [
    lambda: Sampling(temperature=math.nan),
    lambda: Sampling(temperature=-1),
    lambda: Sampling(top_k=0),
    lambda: Sampling(top_p=0.0),
    lambda: Sampling(top_p=math.nan),
    lambda: Filter(top_p=1.5),
    lambda: Filter(top_k=0),
    lambda: Answering(max_len=0),
    lambda: Answering(4, seed=2**32),
    lambda: Answering(4, stop_threshold=math.nan),
    lambda: TrainConfig(steps=0),
    lambda: TrainConfig(steps=2**31),
    lambda: TrainConfig(5, ema_decay=math.nan),
    lambda: EvalConfig(lengths=(8, 0)),
    lambda: EvalConfig(num_tokens=0),
    lambda: MeshConfig(fsdp=-2),
    lambda: MeshConfig(0),
    lambda: Cosine(final_fraction=math.nan),
    lambda: WarmupStableDecay(decay_fraction=1.5),
    lambda: Cosine(warmup_steps=-1),
    lambda: AttentionConfig(2, softcap=math.inf),
    lambda: AttentionConfig(2, scale=math.nan),
    lambda: AttentionConfig(2.5),
    lambda: Probing(learning_rate=-1.0),
  ],
)
def test_numbers_are_checked_whoever_makes_the_configuration(make):
  with pytest.raises(ConfigError, match=" = .*: wanted "):
    make()


def test_a_plain_float_is_finite_without_a_range():
  @dataclasses.dataclass(frozen=True)
  class Plain:
    x: float

  assert build(Plain, dict(x=2), "a").x == 2.0
  for value in (math.nan, math.inf):
    with pytest.raises(ConfigError, match=rf"a.x = {value}: wanted a finite number"):
      build(Plain, dict(x=value), "a")


@pytest.mark.parametrize(
  "kind, holds, lacks, text",
  [
    (Count, (1, 2**40), (0, -1), "1 or more"),
    (BelowOne, (0, 0.5), (1, -1e-9, math.nan), "0 or more, below 1"),
    (Positive, (1e-30,), (0, math.inf), "a number above 0"),
    (Seed, (0, 2**32 - 1), (-1, 2**32, 2**64), "0 or more, at most 4,294,967,295"),
    (Range(1, also=(-1,)), (-1, 1), (0, -2), "1 or more or -1"),
    (Range(0, 1, True, True), (0.5,), (0, 1), "a number above 0, below 1"),
    (Range(0, 1, True), (1,), (0,), "a number above 0, at most 1"),
    (Range(high=0, open_high=True), (-1,), (0, -math.inf), "below 0"),
  ],
)
def test_a_range_says_what_it_holds(kind, holds, lacks, text):
  for value in holds:
    assert check_number(value, kind, "x") == value
  for value in lacks:
    with pytest.raises(ConfigError, match=f"x = {value}: wanted {text}"):
      check_number(value, kind, "x")


@pytest.mark.parametrize(
  "mixer, sentence",
  [
    (dict(kind="gla", chunk=24), "chunk = 24 of gla: wanted a multiple of 16; use 32"),
    (dict(kind="gla", implementation="cudnn"), "model.mixer.implementation = 'cudnn'"),
    (dict(kind="mamba2", implementation="splash"), "model.mixer.implementation = 'splash'"),
    (dict(kind="delta_rule", implementation="splash"), "model.mixer.implementation = 'splash'"),
    (
      dict(kind="attention", num_heads=2, implementation="flash"),
      "model.mixer.implementation = 'flash'",
    ),
  ],
)
def test_what_a_kernel_cannot_do_anywhere_is_refused_with_the_configuration(mixer, sentence):
  """Not when the model is traced, behind the data."""
  with pytest.raises(ConfigError, match=sentence):
    build(
      MODELS.cls("decoder"),
      dict(vocab_size=8, num_layers=1, d_model=16, mixer=mixer, mlp=dict(d_ff=16)),
      "model",
    )
