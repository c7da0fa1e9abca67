"""Random damage of a run's newest step, and of weights: readers fall back to the step before, say
so, or nothing was lost.
"""

import collections
import contextlib
import io
import json
import logging
import pathlib
import random
import shutil
import sys

import formats
import jax
import mutate
import numpy as np
import pytest
import summary

import jaxlm
from jaxlm import cli
from jaxlm.checkpoint import weights_folder
from jaxlm.training import metrics
from jaxlm.training.run import train

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "training"))
DAMAGES, FLIPS = 72, 28
KINDS = ("truncate", "delete", "flip", "swap", "zero", "note", "older", "folder")


def same(a, b) -> bool:
  found, wanted = jax.tree.leaves(a), jax.tree.leaves(b)
  return len(found) == len(wanted) and all(
    np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in zip(found, wanted)
  )


def damage(run: pathlib.Path, step: int, kind: str, rng) -> None:
  """Damages the step in one way. older: a file takes the bytes of the same file of the step before."""
  here = run / "checkpoints" / str(step)
  files = sorted(f for f in here.rglob("*") if f.is_file() and f.stat().st_size)
  # Half of the time every file is as likely, else every byte.
  file = (
    rng.choice(files)
    if rng.random() < 0.5
    else rng.choices(files, [f.stat().st_size for f in files])[0]
  )
  data = file.read_bytes()
  if kind == "truncate":
    file.write_bytes(data[: rng.randrange(len(data))])
  elif kind == "delete":
    file.unlink()
  elif kind == "flip":
    file.write_bytes(mutate.flip(data, rng))
  elif kind == "zero":
    at, end = sorted((rng.randrange(len(data)), rng.randrange(len(data) + 1)))
    file.write_bytes(data[:at] + bytes(end - at) + data[end:])
  elif kind == "swap":
    other = rng.choice(files)
    file.write_bytes(other.read_bytes())
    other.write_bytes(data)
  elif kind == "older":
    others = [f for f in (run / "checkpoints" / str(step - 2)).rglob("*") if f.is_file()]
    file.write_bytes(rng.choice([f for f in others if f.name == file.name] or others).read_bytes())
  elif kind == "folder":
    shutil.rmtree(rng.choice(sorted(f for f in here.rglob("*") if f.is_dir())))
  else:
    note = here / "note" / "metadata"
    note.write_text(json.dumps(mutate.changed(json.loads(note.read_text()), rng)))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
  """(folder of a run of 6 steps with checkpoints 2, 4, 6; its config; the same run to step 8, its
  params and losses).
  """
  import tiny_run

  changes = {
    "train.save_every": 2,
    "train.keep_last": 3,
    "schedule.kind": "constant",
    "train.ema_decay": 0.9,
  }

  def config(steps):
    return tiny_run.config(**changes, **{"train.steps": steps})

  base = tmp_path_factory.mktemp("tiny")
  train(config(6), base / "run", quiet=True)
  whole = train(config(8), base / "whole", quiet=True)
  return base / "run", config, whole


def losses(folder):
  return [(r["step"], r["loss"]) for r in metrics.read(folder) if "loss" in r]


def resumed_as_whole(run, config, whole) -> bool:
  result = train(config(8), run, quiet=True)
  return same((result.params, result.ema), (whole.params, whole.ema)) and losses(run) == losses(
    whole.workdir
  )


def campaign(tiny, tmp_path, kinds, count, readers):
  """{outcome: how often}, [what went wrong]: each damage is read by each reader, on a copy of its
  own.
  """
  folder, config, whole = tiny
  good = {step: jaxlm.open_model(folder, step=step).params for step in (2, 4, 6)}
  rng, came, wrong = random.Random(16), collections.Counter(), []
  logging.getLogger("jaxlm").setLevel(logging.CRITICAL)
  for number in range(count):
    run, kind = tmp_path / f"d{number}", kinds[number % len(kinds)]
    shutil.copytree(folder, run)
    damage(run, 6, kind, rng)
    try:
      if "open_model" in readers:
        opened = jaxlm.open_model(run)
        came["open_model: the step before" if opened.step == 4 else "open_model: harmless"] += 1
        if opened.step not in (4, 6) or not same(opened.params, good[opened.step]):
          wrong.append((number, kind, f"open_model read other parameters of step {opened.step}"))
      if "train" in readers:
        if not resumed_as_whole(run, config, whole):
          wrong.append((number, kind, "train ended elsewhere"))
        came["train: the step before" if (run / "damaged").exists() else "train: harmless"] += 1
    except Exception as error:
      wrong.append((number, kind, repr(error)[:300]))
    shutil.rmtree(run)
  logging.getLogger("jaxlm").setLevel(logging.NOTSET)
  return came, wrong


def test_damage_of_the_newest_step(tiny, tmp_path):
  came, wrong = campaign(tiny, tmp_path, KINDS, DAMAGES, ("open_model", "train"))
  summary.record("damage", f"newest step, {', '.join(KINDS)}", DAMAGES, len(wrong), came)
  assert not wrong, wrong


def test_flipped_bits_are_not_trained_on(tiny, tmp_path):
  came, wrong = campaign(tiny, tmp_path, ("flip",), FLIPS, ("train",))
  summary.record("bit flips", "train", FLIPS, len(wrong), came)
  assert not wrong, wrong


SMALL = {
  "model.d_model": 32,
  "model.num_layers": 1,
  "model.mixer.num_heads": 2,
  "model.position": "rope",
  "data.seq_len": 16,
  "data.batch_size": 8,
  "train.steps": 4,
  "train.save_every": 2,
  "eval.num_tokens": 64,
  "eval.every": 0,
  "optimizer.learning_rate": 0.1,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp("runs") / "tiny"
  train(str(formats.ROOT / "configs/carope/tiny.py"), folder, SMALL, quiet=True)
  return folder


def command(*words) -> tuple[int, str]:
  out = io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
    code = cli.main([*map(str, words)])
  return code, out.getvalue()


def evaluated(run, step=()):
  return json.loads(command("eval", "--run", run, "--num_tokens=64", "--json", *step)[1])["lengths"]


def continued(run, step=()):
  return command(
    "generate",
    "--run",
    run,
    "--prompt=Call me",
    "--max_new_tokens=8",
    "--temperature=1",
    "--json",
    *step,
  )


def exported(run, step=()):
  target = run.parent / "out"
  code, _ = command("convert", "--from", run, "--to", target, *step)
  config, params, _ = jaxlm.open_model(target)
  shutil.rmtree(target)
  return code, [np.asarray(x).tobytes() for x in jax.tree.leaves(params)]


@pytest.mark.parametrize(
  "read", [evaluated, continued, exported], ids=["eval", "generate", "convert"]
)
def test_flipped_bits_come_out_of_no_command(read, run, tmp_path):
  good = {step: read(run, ("--step", step)) for step in (2, 4)}
  assert good[2] != good[4]
  rng, came, wrong = random.Random(7), collections.Counter(), []
  for number in range(FLIPS):
    copy = tmp_path / f"f{number}"
    shutil.copytree(run, copy)
    damage(copy, 4, "flip", rng)
    try:
      found = read(copy)
      came[
        "harmless" if found == good[4] else "the step before" if found == good[2] else "wrong"
      ] += 1
      if found not in good.values():
        wrong.append((number, found))
    except Exception as error:
      wrong.append((number, repr(error)[:300]))
    shutil.rmtree(copy)
  summary.record(
    "bit flips",
    {evaluated: "eval", continued: "generate", exported: "convert"}[read],
    FLIPS,
    len(wrong),
    came,
  )
  assert not wrong, wrong


def test_flipped_bits_of_a_weights_folder(tmp_path):
  wanted = formats.parameters()
  weights_folder.save(tmp_path / "w", formats.MODEL, wanted)
  files, rng, came, wrong = (
    sorted((tmp_path / "w").iterdir()),
    random.Random(16),
    collections.Counter(),
    [],
  )
  for _ in range(FLIPS * 4):
    file = rng.choice(files)
    data = file.read_bytes()
    file.write_bytes(mutate.flip(data, rng))
    try:
      config, params, _ = jaxlm.open_model(tmp_path / "w")
      came["harmless"] += 1
      if config != formats.MODEL or not same(params, wanted):
        wrong.append(file.name)
    except formats.SENTENCES:
      came["refused"] += 1
    except Exception as error:
      wrong.append(repr(error)[:300])
    file.write_bytes(data)
  summary.record("bit flips", "open_model of weights", FLIPS * 4, len(wrong), came)
  assert not wrong, wrong
