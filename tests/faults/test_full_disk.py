"""Ten sizes of a disk that gets full, for train and for convert: a sentence, a non-zero exit, what
was there stays good.

The disk is a tmpfs of its own, where this user may mount one; else files may grow to that size only
(RLIMIT_FSIZE).
"""

import collections
import os
import pathlib
import re
import resource
import subprocess
import sys

import formats
import jax
import numpy as np
import pytest
import summary

import jaxlm
from jaxlm.checkpoint.steps import Checkpoints

CONFIG = str(formats.ROOT / "configs/carope/tiny.py")
CHANGES = {
  "model.d_model": 64,
  "model.num_layers": 2,
  "model.unroll": 1,
  "data.seq_len": 16,
  "data.batch_size": 8,
  "train.steps": 12,
  "train.save_every": 2,
  "train.keep_last": 4,
  "train.log_every": 1,
  "eval.num_tokens": 64,
  "eval.every": 0,
  "eval.lengths": "()",
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A run to its end, and its size in bytes."""
  folder = tmp_path_factory.mktemp("whole") / "run"
  code, said = ran(folder.parent, "train", folder)
  assert code == 0, said
  return folder, size(folder)


def size(folder) -> int:
  return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


def largest(folder) -> int:
  return max(f.stat().st_size for f in folder.rglob("*") if f.is_file())


def ran(home, what: str, *folders, limit: int | None = None) -> tuple[int, str]:
  words = [
    "train",
    "--quiet",
    f"--config={CONFIG}",
    f"--workdir={folders[0]}",
    *(f"--config.{k}={v}" for k, v in CHANGES.items()),
  ]
  if what == "convert":
    words = ["convert", "--from", str(folders[0]), "--to", str(folders[1])]
  env = os.environ | {"JAX_NUM_CPU_DEVICES": "1", "HOME": str(home)}
  if limit is not None:
    env |= {"JAX_ENABLE_COMPILATION_CACHE": "false"}  # the limit is of all files, the cache's too
  done = subprocess.run(
    [sys.executable, "-m", "jaxlm.cli", *words],
    capture_output=True,
    text=True,
    env=env,
    timeout=300,
    preexec_fn=None
    if limit is None
    else lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
  )
  return done.returncode, done.stdout + done.stderr


class Disk:
  """A folder that holds `size` bytes; where none can be mounted, its files hold `each`."""

  def __init__(self, folder: pathlib.Path, size: int, each: int):
    folder.mkdir()
    self.folder, self.size, self.each = folder, size, each
    self.mounted = (
      subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True
      ).returncode
      == 0
    )

  def __enter__(self):
    return self

  def __exit__(self, *_):
    if self.mounted:
      subprocess.run(["umount", "-l", str(self.folder)], check=True)

  @property
  def limit(self):
    return None if self.mounted else self.each


def shares(low: float, high: float):
  return [low * (high / low) ** (i / 9) for i in range(10)]


def complaint(code: int, said: str, words: str) -> str | None:
  if code == 0:
    return "exit 0"
  if "Traceback" in said:
    return f"a traceback: {said[-1500:]}"
  return None if re.search(words, said) else f"no sentence: {said[-500:]}"


def test_a_disk_that_gets_full_while_training(whole, tmp_path):
  folder, bytes_ = whole
  good = {step: jaxlm.open_model(folder, step=step).params for step in (6, 8, 10, 12)}
  came, wrong = collections.Counter(), []
  for number, share in enumerate(shares(0.01, 0.9)):
    with Disk(tmp_path / f"d{number}", int(share * bytes_), int(share * largest(folder))) as disk:
      run = disk.folder / "run"
      code, said = ran(tmp_path, "train", run, limit=disk.limit)
      trouble = complaint(code, said, "full|No space|free space|Free space")
      if trouble:
        wrong.append((disk.size, trouble))
      steps = []
      if (run / "checkpoints").is_dir():
        with Checkpoints(run / "checkpoints") as saved:
          steps = saved.steps()
      for step in steps:
        try:
          params = jaxlm.open_model(run, step=step).params
          if step in good and not all(
            np.array_equal(a, b)
            for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(good[step]))
          ):
            wrong.append((disk.size, f"step {step} has other parameters"))
        except Exception as error:
          wrong.append((disk.size, f"step {step}: {error!r}"[:500]))
      came["no step was saved" if not steps else "earlier steps read"] += 1
      kind = "tmpfs" if disk.mounted else "RLIMIT_FSIZE"
  summary.record("disk full", f"train ({kind})", 10, len(wrong), came)
  assert not wrong, "\n".join(map(str, wrong))


def test_a_disk_that_gets_full_while_converting(whole, tmp_path):
  folder, _ = whole
  code, said = ran(tmp_path, "convert", folder, tmp_path / "out")
  assert code == 0, said
  came, wrong = collections.Counter(), []
  for number, share in enumerate(shares(0.01, 0.95)):
    with Disk(
      tmp_path / f"c{number}",
      int(share * size(tmp_path / "out")),
      int(share * largest(tmp_path / "out")),
    ) as disk:
      code, said = ran(tmp_path, "convert", folder, disk.folder / "out", limit=disk.limit)
      left = [
        str(f.relative_to(disk.folder))
        for f in disk.folder.rglob("*")
        if f.is_file() or f.name.startswith(".")
      ]
      trouble = complaint(code, said, "full|No space|free space") or (
        f"left: {left}" if left else None
      )
      if trouble:
        wrong.append((disk.size, trouble))
      came["a sentence, nothing left" if not trouble else "wrong"] += 1
      kind = "tmpfs" if disk.mounted else "RLIMIT_FSIZE"
  summary.record("disk full", f"convert ({kind})", 10, len(wrong), came)
  assert not wrong, "\n".join(map(str, wrong))
