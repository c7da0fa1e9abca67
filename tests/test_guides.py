"""docs/pods.md, docs/gpu.md and docs/untried.md: each command is run, against stand-ins for the cloud."""

import itertools
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import jax
import pytest
from fake_cloud import Cloud

from jaxlm import cli
from jaxlm.commands.flags import Parser, parse_flags
from jaxlm.models.base import abstract_params
from jaxlm.parallel import gpu
from jaxlm.training.config import load_config, run_config

ROOT = pathlib.Path(__file__).parents[1]
PODS, GPU, UNTRIED = ((ROOT / "docs" / f"{n}.md").read_text() for n in ("pods", "gpu", "untried"))
#: Programs that are ours or everybody's; any other word at a command's start is a stand-in's.
REAL = {"bash", "cp", "echo", "export", "git", "python", "set", "source", "tail", "true"}


def blocks(page, language="sh"):
  return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


@pytest.fixture
def checkout(tmp_path):
  """A copy of what the scripts write to; the rest is the checkout itself."""
  folder = tmp_path / "checkout"
  folder.mkdir()
  for entry in ROOT.iterdir():
    if entry.name in ("tpu", "gpu"):
      shutil.copytree(entry, folder / entry.name, ignore=shutil.ignore_patterns("cluster.env"))
    elif entry.name not in ("runs", ".pytest_cache"):
      (folder / entry.name).symlink_to(entry)
  return folder


@pytest.fixture
def cloud(tmp_path):
  made = Cloud(
    tmp_path / "cloud",
    hosts=1,
    STATE_TRIES="1",
    STATE_PAUSE="0",
    POLL_S="0.2",
    SUPERVISE="--pause_s=0.1",
    CLUSTER_ENV=None,
    EDITOR="true",
    PYTHONPATH=os.environ.get("PYTHONPATH", ""),
  )
  yield made
  made.close()


def run(cloud, checkout, text):
  """The lines of a page as one script that stops at the first failure."""
  environment = {k: v for k, v in cloud.environment.items() if v is not None}
  return subprocess.run(
    ["bash", "-euo", "pipefail", "-c", text],
    env=environment,
    cwd=checkout,
    capture_output=True,
    text=True,
    timeout=300,
  )


class Read(Exception):
  """The flags of a command were read by its own parser."""


def read_by_its_parser(argv, monkeypatch):
  """Whether each flag is known, and the configuration with its overrides is one that can run."""

  def parse_and_stop(self, args=None, namespace=None):
    self.parse_known = super(Parser, self).parse_known_args(list(args), namespace)
    assert not self.parse_known[1], self.parse_known[1]
    raise Read

  with monkeypatch.context() as patched:
    patched.setattr(Parser, "parse_args", parse_and_stop)
    with pytest.raises(Read):
      code = cli.main(argv)
      raise AssertionError(f"jaxlm {shlex.join(argv)} ended with {code} before it read its flags")
  spec, overrides, _ = parse_flags(argv[1:])
  if spec is not None:
    run_config(load_config(str(ROOT / spec), overrides))


def test_every_command_from_a_laptop_to_a_pod_runs(cloud, checkout, monkeypatch):
  if not (ROOT / ".git").exists():
    pytest.skip("bootstrap.sh copies a git checkout")
  cloud.trains([0])  # the first launch looks until the run is finished
  text = "\n".join(blocks(PODS))
  first, second = text.split("tpu/create.sh && tpu/bootstrap.sh && DETACH=1", 1)
  done = run(cloud, checkout, first)
  assert done.returncode == 0, done.stderr + done.stdout
  assert "finished: gs://my-bucket/runs" in done.stderr and '"state": "finished"' in done.stdout
  asked = cloud.asked()
  programs = {call[0] for call in asked}
  assert {"gcloud", "kubectl", "xpk", "docker", "jaxlm", "pip"} <= programs
  applied = [call for call in asked if call[:2] == ["kubectl", "apply"]]
  assert len(applied) == 2
  manifests = sorted((cloud.folder / "applied").iterdir())
  valid_manifests([checkout / "job.yaml", *manifests])

  cloud.trains(["stay"])
  settings = blocks(PODS)[0] + "tpu/create.sh && tpu/bootstrap.sh && DETACH=1"
  done = run(cloud, checkout, settings + second)
  assert done.returncode == 0, done.stderr + done.stdout
  assert "the stacks are in" in done.stdout and '"state": "stopped"' in done.stdout
  valid_manifests([checkout / "profile.yaml", *sorted((cloud.folder / "applied").iterdir())])
  for call in cloud.asked():
    if call[0] == "jaxlm":
      read_by_its_parser(call[1:], monkeypatch)


def valid_manifests(paths):
  yaml = pytest.importorskip("yaml")
  kubernetes = pytest.importorskip("kubernetes_validate")
  jsonschema = pytest.importorskip("jsonschema")
  schema = json.loads((ROOT / "tests" / "jobset_schema.json").read_text())
  for path in paths:
    manifest = yaml.safe_load(path.read_text())
    jsonschema.validate(manifest, schema)
    for replicated in manifest["spec"]["replicatedJobs"]:
      job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "one"}}
      kubernetes.validate(job | {"spec": replicated["template"]["spec"]}, "1.33", strict=True)


def test_every_command_of_the_gpu_page_runs(cloud, checkout, monkeypatch):
  done = run(cloud, checkout, "\n".join(blocks(GPU)))
  assert done.returncode == 0, done.stderr
  asked = cloud.asked()
  assert {"nvidia-smi", "docker", "sbatch", "jaxlm", "pip"} <= {call[0] for call in asked}
  (submitted,) = [call for call in asked if call[0] == "sbatch"]
  script = next(word for word in submitted if word.endswith(".sbatch"))
  assert (ROOT / script).is_file() and "--config.mesh.data=2" in submitted
  (checkout / "mine").mkdir()
  for call in asked:
    if call[0] == "jaxlm" and "--config=mine/config.py" not in call:
      read_by_its_parser(call[1:], monkeypatch)


def test_every_command_that_would_try_what_is_untried_is_one(cloud, checkout, monkeypatch):
  commands = re.findall(r"\| `([^`|]+)` \|$", UNTRIED, re.MULTILINE)
  rows = [line for line in UNTRIED.splitlines() if line.startswith("| ")][2:]
  assert len(commands) == len(rows) + 1 - 1 > 15
  for command in commands:
    words = [word for word in shlex.split(command) if not re.match(r"[A-Z_]+=", word)]
    if words[0] == "jaxlm":
      read_by_its_parser(words[1:], monkeypatch)
    elif words[0] == "docker":
      assert (ROOT / words[words.index("-f") + 1]).is_file()
    else:
      script = next(word for word in words if "/" in word)
      assert (ROOT / script).is_file(), command
    for config in re.findall(r"configs/\w+/\w+\.py", command):
      assert (ROOT / config).is_file()


def test_the_sizes_are_those_of_the_configurations():
  rows = re.findall(
    r"^\| `(configs/\S+)` \| ([\d.]+) M \| ([\d.]+) GiB \| ([\d.]+) GiB \|$", GPU, re.M
  )
  assert len(rows) == 4
  for path, *said in rows:
    params = jax.tree.leaves(abstract_params(run_config(load_config(str(ROOT / path))).model))
    count = sum(leaf.size for leaf in params)
    found = [count / 1e6, 12 * count / 2**30, 16 * count / 2**30]
    assert said == [f"{number:.1f}" for number in found], path


def test_the_flags_of_the_page_are_those_that_are_set():
  assert re.findall(r"^\| `(xla_gpu_\w+)` \|", GPU, re.MULTILINE) == list(gpu.FLAGS)


def test_every_exit_code_of_the_table_is_handled_alike_everywhere():
  """The page's table against supervise.py and gpu/train.sbatch."""
  import importlib.util

  spec = importlib.util.spec_from_file_location("supervise", ROOT / "tpu" / "supervise.py")
  supervise = importlib.util.module_from_spec(spec)
  sys.modules["supervise"] = supervise
  spec.loader.exec_module(supervise)
  rows = re.findall(r"^\| ([\d, ]+) \| [^|]+ \| ([^|]+) \| ([^|]+) \|$", PODS, re.MULTILINE)
  meaning = {int(code): said for codes, *said in rows for code in codes.split(",")}
  assert set(meaning) == {0, 1, 2, 75, 76, 129, 143, 134, 137, 139}
  words = {
    "finished": "done",
    "crashed": "crash",
    "wrong": "ends the run",
    "lost": "started again",
    "hung": "as 75",
    "told": "as 75",
  }
  for code, (here, jobset) in meaning.items():
    assert words[supervise.kind_of(code)] in here, code
    free = code in (129, 143)
    assert ("does not count" in jobset) == free and ("counts" == jobset.strip()) == (
      code not in (0, 2, 129, 143)
    )


SLURM = """#!/usr/bin/env bash
# Stands for srun: each task in turn, with its number.
status=0
for ((SLURM_PROCID = 0; SLURM_PROCID < 2; SLURM_PROCID++)); do
  while [[ "$1" == --* ]]; do shift; done
  SLURM_PROCID=$SLURM_PROCID "$@" || { code=$?; ((code > status)) && status=$code; }
done
exit $status
"""
TASK = """#!/usr/bin/env bash
read -ra codes <<< "$TASK_CODES"
exit "${codes[$SLURM_PROCID]}"
"""


@pytest.mark.parametrize(
  "codes, restarts, code, again",
  [
    ("0 0", 0, 0, False),
    ("143 143", 0, 0, True),  # preempted, or the time limit
    ("75 137", 0, 0, True),  # a node is gone
    ("1 75", 0, 1, False),  # one has failed and the other lost it
    ("2 2", 0, 2, False),
    ("75 137", 100, 137, False),
  ],
)
def test_slurm_runs_again_what_was_taken_away_and_not_what_failed(
  cloud, tmp_path, codes, restarts, code, again
):
  for name, text in (("srun", SLURM), ("jaxlm", TASK), ("scontrol", None)):
    program = cloud.folder / "bin" / name
    if text is None:
      shutil.copy(cloud.folder / "bin" / "squeue", program)
      program.write_text(program.read_text().replace(" squeue ", " scontrol "))
    else:
      program.write_text(text)
    program.chmod(0o755)
  variables = dict(SLURM_JOB_ID="7", SLURM_RESTART_COUNT=str(restarts), TASK_CODES=codes)
  environment = {k: v for k, v in cloud.environment.items() if v is not None} | variables
  (tmp_path / "configs").symlink_to(ROOT / "configs")
  done = subprocess.run(
    ["bash", ROOT / "gpu" / "train.sbatch", "configs/carope/tiny.py", "runs/x"],
    env=environment,
    cwd=tmp_path,
    capture_output=True,
    text=True,
  )
  assert done.returncode == code, done.stderr
  assert (["scontrol", "requeue", "7"] in cloud.asked()) == again
  assert not list(tmp_path.glob("jaxlm-*"))


@pytest.mark.slow
def test_the_walk_through_finds_its_nan(tmp_path):
  for text in blocks(GPU, "python"):
    path = tmp_path / re.match(r"# file: (\S+)\n", text)[1]
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
  (commands,) = [b for b in blocks(GPU) if "mine/config.py" in b]
  outcomes = []
  for command in commands.splitlines():
    words = [word for word in shlex.split(command.partition(" ||")[0]) if word != "PYTHONPATH=."]
    done = subprocess.run(
      [sys.executable, "-m", "jaxlm.cli", *words[1:]],
      cwd=tmp_path,
      capture_output=True,
      text=True,
      env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "JAX_PLATFORMS": "cpu"},
    )
    outcomes.append((done.returncode, done.stderr.splitlines()[-1]))
  said = [line.strip() for line in GPU.splitlines() if line.startswith("    jaxlm train: ")]
  assert [code for code, _ in outcomes] == [1, 1]
  for (_, line), expected in itertools.zip_longest(outcomes, said):
    assert line.startswith(expected.removesuffix("...")), line
