"""Two hosts that were started differently: both end before the first step, with code 2, the key and
both values, within 30 s.
"""

import os
import socket
import subprocess
import sys
import time

import pytest
import summary

CONFIG = os.path.join(os.path.dirname(__file__), "..", "..", "configs", "carope", "tiny.py")
SMALL = {
  "model.d_model": 32,
  "model.num_layers": 1,
  "model.mixer.num_heads": 2,
  "data.seq_len": 32,
  "data.batch_size": 8,
  "train.steps": 4,
  "eval.every": 0,
  "data.source": "text:~/corpus.txt",
}
#: What differs -> (what process 1 gets, what both say). A value with a slash is a path below the
#: test's folder.
DIFFERENCES = {
  "seed": (["--config.seed=9"], "seed is 0 in process 0 and 9 in process 1"),
  "learning rate": (
    ["--config.optimizer.learning_rate=0.5"],
    "optimizer.learning_rate is 0.003 in process 0 and 0.5 in process 1",
  ),
  "width": (["--config.model.d_model=64"], "model.d_model is 32 in process 0 and 64 in process 1"),
  "cadence of saving": (
    ["--config.train.save_every=1"],
    "train.save_every is 250 in process 0 and 1 in process 1",
  ),
  "folder": (
    ["--workdir={tmp}/elsewhere"],
    "--workdir is {tmp}/run in process 0 and {tmp}/elsewhere in process 1",
  ),
  "rows": (
    ["--config.data.batch_size=16"],
    "data.batch_size is 8 in process 0 and 16 in process 1",
  ),
  "texts": (["HOME={tmp}/other", "JAXLM_DATA={tmp}/other"], "the data's data is "),
}


@pytest.mark.parametrize("what", DIFFERENCES)
def test_hosts_that_differ(what, tmp_path):
  own, said = DIFFERENCES[what]
  own, said = [word.format(tmp=tmp_path) for word in own], said.format(tmp=tmp_path)
  for name, lines in (("home", 2000), ("other", 1000)):
    (tmp_path / name).mkdir()
    (tmp_path / name / "corpus.txt").write_text("a line of text\n" * lines)
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"
  began, processes = time.monotonic(), []
  for index in range(2):
    mine = own if index else []
    env = os.environ | {
      "JAX_PLATFORMS": "cpu",
      "JAX_NUM_CPU_DEVICES": "1",
      "JAX_COORDINATOR_ADDRESS": address,
      "JAX_NUM_PROCESSES": "2",
      "JAX_PROCESS_ID": str(index),
      "HOME": f"{tmp_path}/home",
      "JAXLM_DATA": f"{tmp_path}/home",
    }
    env |= dict(word.split("=", 1) for word in mine if not word.startswith("--"))
    command = [
      sys.executable,
      "-m",
      "jaxlm.cli",
      "train",
      "--quiet",
      f"--config={CONFIG}",
      f"--workdir={tmp_path}/run",
      *(f"--config.{key}={value}" for key, value in SMALL.items()),
      *(word for word in mine if word.startswith("--")),
    ]
    processes.append(
      subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=env
      )
    )
  try:
    texts = [process.communicate(timeout=120)[1] for process in processes]
  finally:
    for process in processes:
      process.kill()
  seconds = time.monotonic() - began
  codes = [process.returncode for process in processes]
  wrong = int(
    codes != [2, 2]
    or any(said not in text or "Traceback" in text for text in texts)
    or seconds > 30
    or os.path.exists(tmp_path / "run" / "checkpoints")
  )
  summary.record(
    "hosts differ", what, 1, wrong, {f"refused within {5 * (int(seconds) // 5 + 1)} s": 1 - wrong}
  )
  assert not wrong, (codes, seconds, texts)
