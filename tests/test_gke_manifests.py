"""tpu/gke.py: its manifests are valid, and say what cluster.env says."""

import importlib.util
import itertools
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from jaxlm.parallel.rollcall import LOST
from jaxlm.training.watchdog import HUNG

ROOT = pathlib.Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("gke", ROOT / "tpu" / "gke.py")
gke = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gke)
CONFIG = "configs/carope/tiny.py"
VALUES = gke.DEFAULTS | {
  "NAME": "jaxlm-1",
  "TOPOLOGY": "v5e:4x4",
  "WORKDIR": "gs://b/runs/one",
  "IMAGE": "us-docker.pkg.dev/p/jaxlm/jaxlm:1",
  "SERVICE_ACCOUNT": "jaxlm",
}
CHOICES = {
  "NUM_SLICES": ("1", "2"),
  "CAPACITY": gke.CAPACITIES,
  "MOUNT_BUCKET": ("", "corpus"),
  "QUEUE": ("", "queue"),
}


def made(*overrides, **values):
  return gke.manifest(CONFIG, list(overrides), VALUES | {"RESERVATION": "mine"} | values)


def job_of(manifest):
  (replicated,) = manifest["spec"]["replicatedJobs"]
  return replicated, replicated["template"]["spec"], replicated["template"]["spec"]["template"]


def test_every_combination_is_valid_for_jobset_and_kubernetes():
  validate = pytest.importorskip("kubernetes_validate").validate
  jsonschema = pytest.importorskip("jsonschema")
  schema = json.loads((ROOT / "tests" / "jobset_schema.json").read_text())
  jsonschema.Draft202012Validator.check_schema(schema)
  for chosen in itertools.product(*CHOICES.values()):
    manifest = made(**dict(zip(CHOICES, chosen)))
    jsonschema.validate(manifest, schema)
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "slice"}}
    validate(job | {"spec": job_of(manifest)[1]}, "1.33", strict=True)


def test_the_schemas_refuse_what_is_wrong():
  kubernetes = pytest.importorskip("kubernetes_validate")
  jsonschema = pytest.importorskip("jsonschema")
  schema = json.loads((ROOT / "tests" / "jobset_schema.json").read_text())
  manifest = made()
  manifest["spec"]["failurePolicy"]["rules"][0]["action"] = "Restart"
  with pytest.raises(jsonschema.ValidationError, match="Restart"):
    jsonschema.validate(manifest, schema)
  job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "slice"}}
  job["spec"] = job_of(made())[1]
  job["spec"]["template"]["spec"]["restartpolicy"] = "Never"
  with pytest.raises(kubernetes.ValidationError):
    kubernetes.validate(job, "1.33", strict=True)


@pytest.mark.parametrize(
  "topology, accelerator, hosts, chips",
  [
    ("v5e:2x4", "tpu-v5-lite-podslice", 1, 8),
    ("v5e:16x16", "tpu-v5-lite-podslice", 64, 4),
    ("v5p:4x4x4", "tpu-v5p-slice", 16, 4),
    ("v6e:4x4", "tpu-v6e-slice", 4, 4),
    ("v4:2x2x1", "tpu-v4-podslice", 1, 4),
  ],
)
def test_a_slice_is_asked_for_by_the_clouds_own_names(topology, accelerator, hosts, chips):
  replicated, job, pod = job_of(made(TOPOLOGY=topology, NUM_SLICES="3"))
  selector = pod["spec"]["nodeSelector"]
  assert selector["cloud.google.com/gke-tpu-accelerator"] == accelerator
  assert selector["cloud.google.com/gke-tpu-topology"] == topology.partition(":")[2]
  assert job["parallelism"] == job["completions"] == hosts and replicated["replicas"] == 3
  assert pod["spec"]["containers"][0]["resources"]["limits"]["google.com/tpu"] == chips


def test_capacity_bucket_and_queue_are_in_the_manifest_only_where_asked():
  plain = json.dumps(made(CAPACITY="on-demand"))
  for word in ("gke-spot", "reservation-name", "gcsfuse", "kueue", "${"):
    assert word not in plain
  spot = job_of(made())[2]["spec"]
  assert spot["tolerations"][0]["key"] in spot["nodeSelector"]
  reserved = job_of(made(CAPACITY="reservation"))[2]["spec"]["nodeSelector"]
  assert reserved["cloud.google.com/reservation-name"] == "mine"
  pod = job_of(made(MOUNT_BUCKET="corpus", QUEUE="q"))[2]
  names = [volume["name"] for volume in pod["spec"]["volumes"]]
  (container,) = pod["spec"]["containers"]
  assert names == [mount["name"] for mount in container["volumeMounts"]]
  assert pod["spec"]["volumes"][1]["csi"]["volumeAttributes"]["bucketName"] == "corpus"
  assert made(QUEUE="q")["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "q"}


def test_preemptions_do_not_count_and_wrong_requests_end_it():
  """The rules name one another by their number in the Job's policy."""
  manifest = made()
  failure = manifest["spec"]["failurePolicy"]
  rules = job_of(manifest)[1]["podFailurePolicy"]["rules"]

  def action(code=None, condition=None):
    def matches(rule):
      if condition:
        return any(c["type"] == condition for c in rule.get("onPodConditions", ()))
      return code in rule.get("onExitCodes", {}).get("values", ())

    # The first that matches, as Kubernetes takes it.
    number = next((i for i, rule in enumerate(rules) if matches(rule)), None)
    if number is None:
      return "RestartJobSet"  # of a failure that no rule names; it counts
    message = (
      f"Container jaxlm failed with exit code {code} matching FailJob rule at index {number}"
    )
    return next(
      rule["action"]
      for rule in failure["rules"]
      if any(re.search(p, message) for p in rule["onJobFailureMessagePatterns"])
    )

  free = "RestartJobSetAndIgnoreMaxRestarts"
  assert action(condition="DisruptionTarget") == action(143) == action(129) == free
  assert action(2) == "FailJobSet"
  assert {action(code) for code in (1, LOST, HUNG, 134, 137)} == {"RestartJobSet"}
  assert failure["maxRestarts"] == 20
  assert job_of(manifest)[1]["backoffLimit"] == 0


def test_overrides_reach_the_command_whatever_is_in_them():
  words = ["--config.data.source=text:/bucket/a b.txt", "--config.model.x={'a': \"$b ${c}\"}"]
  command = job_of(made(*words))[2]["spec"]["containers"][0]["command"]
  assert command == ["jaxlm", "train", f"--config={CONFIG}", "--workdir=gs://b/runs/one", *words]


@pytest.mark.parametrize(
  "values, said",
  [
    ({"TOPOLOGY": "v9:4x4"}, "chip of v4, v5e, v5p, v6e"),
    ({"TOPOLOGY": "v5e"}, "chip:AxB"),
    ({"WORKDIR": "/tmp/x"}, "every host must see it"),
    ({"NAME": "Jax_LM"}, "small letters"),
    ({"CAPACITY": "free"}, "spot, reservation, on-demand"),
    ({"CAPACITY": "reservation", "RESERVATION": ""}, "needs RESERVATION"),
    ({"NUM_SLICES": "two"}, "whole number"),
    ({"IMAGE": ""}, "IMAGE is not set: copy tpu/cluster.env.example"),
  ],
)
def test_bad_input_is_refused_with_the_remedy(values, said):
  with pytest.raises(gke.Refused, match=re.escape(said)):
    made(**values)


def test_the_example_is_read_and_the_environment_wins(tmp_path):
  example = ROOT / "tpu" / "cluster.env.example"
  found = gke.variables({"CLUSTER_ENV": str(example), "NAME": "mine"})
  assert found["NAME"] == "mine" and found["CAPACITY"] == "spot" and found["RESERVATION"] == ""
  manifest = gke.manifest(CONFIG, [], found)
  assert manifest["metadata"]["name"] == "mine"
  (tmp_path / "env").write_text("NAME=one two\n")
  with pytest.raises(gke.Refused, match="line 1: wanted NAME=value"):
    gke.variables({"CLUSTER_ENV": str(tmp_path / "env")})


def test_it_prints_yaml_that_kubectl_reads_and_errors_in_one_sentence():
  import yaml

  env = os.environ | {"CLUSTER_ENV": str(ROOT / "tpu" / "cluster.env.example")}
  words = [sys.executable, ROOT / "tpu" / "gke.py"]
  done = subprocess.run([*words, CONFIG], env=env, capture_output=True, text=True)
  assert done.returncode == 0 and yaml.safe_load(done.stdout)["kind"] == "JobSet"
  bad = subprocess.run([*words, "configs/none.py"], env=env, capture_output=True, text=True)
  assert bad.returncode == 2 and bad.stderr.startswith("error: no config file configs/none.py")
