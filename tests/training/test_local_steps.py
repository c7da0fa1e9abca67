"""Checkpoints on the hosts' own disks: a run goes on from them, and without them where they are no good."""

import shutil
import signal

import jax
import numpy as np
import pytest
import tiny_run
from test_multihost import Run, losses, steps

from jaxlm.checkpoint.reading import restore_params
from jaxlm.config import ConfigError
from jaxlm.training.run import train


def test_one_process_and_an_address_are_refused_with_a_sentence(tmp_path):
  config = tiny_run.config(**{"train.local.folder": str(tmp_path / "disk")})
  with pytest.raises(ConfigError, match="this is a run of one process.*leave it out"):
    train(config, tmp_path / "run", quiet=True)
  from jaxlm.checkpoint.local_steps import check_local

  with pytest.raises(ConfigError, match="is an address; give a folder on a disk of every host"):
    check_local("gs://bucket/x", 4)


@pytest.mark.slow
def test_two_processes_go_on_from_their_disks_bit_for_bit_and_fall_back_to_the_run_folder(tmp_path):
  whole = Run(tmp_path / "whole", 2)
  assert whole.codes() == [0, 0], whole.said(0)
  disk = tmp_path / "disk"
  flags = [f"--config.train.local.folder={disk}", "--config.train.local.every=3"]
  flags += ["--config.train.save_every=8"]
  reference = restore_params(tmp_path / "whole").params

  def same(folder):
    got = restore_params(folder).params
    jax.tree.map(
      lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), got, reference
    )

  killed = Run(tmp_path / "near", 2, of_all=flags).until("step 8/12")
  killed.processes[1].send_signal(signal.SIGKILL)
  killed.codes(timeout=60)
  # As if the run folder's own step had not been whole.
  shutil.rmtree(tmp_path / "near" / "checkpoints" / "8", ignore_errors=True)
  kept = shutil.copytree(disk, tmp_path / "kept")
  again = Run(tmp_path / "near", 2, of_all=flags)
  assert again.codes() == [0, 0], again.said(0)
  assert "resumed at step 6, which each host had on its own disk" in again.said(0)
  same(tmp_path / "near")
  assert losses(tmp_path / "near") == losses(tmp_path / "whole")

  # Damaged on one host: all take the run folder's step.
  broken = Run(tmp_path / "far", 2, of_all=flags).until("step 11/12")
  broken.processes[1].send_signal(signal.SIGKILL)
  broken.codes(timeout=60)
  newest = max(steps(tmp_path / "far"))
  assert newest == 8 and kept.exists()
  for file in disk.glob("*/process-1/steps/9/state/**/*"):
    if file.is_file() and file.stat().st_size > 100:
      file.write_bytes(file.read_bytes()[:50])
  again = Run(tmp_path / "far", 2, of_all=flags)
  assert again.codes() == [0, 0], again.said(0)
  assert "resumed at step 8 in" in again.said(0)
  same(tmp_path / "far")
