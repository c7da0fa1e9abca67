#!/usr/bin/env python3
"""The manifest of a training job on GKE, filled in from tpu/cluster.env.

  python tpu/gke.py configs/carope/paper_small.py [--config.train.steps=...]  > job.yaml
  python tpu/gke.py configs/carope/paper_small.py | kubectl apply -f -

One slice, or several with NUM_SLICES; CAPACITY, MOUNT_BUCKET and QUEUE add a file of tpu/gke/ each. What
is set in the environment wins over the file. docs/pods.md says what the cluster must have.
"""

import os
import pathlib
import re
import shlex
import string
import sys

import yaml

HERE = pathlib.Path(__file__).resolve().parent
#: Of `jaxlm preflight --topology` -> the cloud's name for the chip, chips of the largest single host.
CHIPS = {
  "v4": ("tpu-v4-podslice", 4),
  "v5e": ("tpu-v5-lite-podslice", 8),
  "v5p": ("tpu-v5p-slice", 4),
  "v6e": ("tpu-v6e-slice", 8),
}
NEEDED = ("NAME", "TOPOLOGY", "WORKDIR", "IMAGE", "SERVICE_ACCOUNT")
DEFAULTS = {"NUM_SLICES": "1", "CAPACITY": "spot", "NAMESPACE": "default", "MAX_RESTARTS": "20"}
OPTIONAL = ("RESERVATION", "MOUNT_BUCKET", "QUEUE")
NUMBERS = ("NUM_SLICES", "MAX_RESTARTS", "HOSTS", "CHIPS_PER_HOST")
CAPACITIES = ("spot", "reservation", "on-demand")


class Refused(Exception):
  """What the user has to change, in one sentence."""


def variables(environ=os.environ) -> dict[str, str]:
  """Of cluster.env, and of the environment where it has them too."""
  path = pathlib.Path(environ.get("CLUSTER_ENV", HERE / "cluster.env"))
  found = dict(DEFAULTS)
  if path.is_file():
    for number, line in enumerate(path.read_text().splitlines(), 1):
      words = shlex.split(line, comments=True)
      if words:
        name, equals, value = words[0].partition("=")
        if not equals or len(words) > 1 or not re.fullmatch(r"[A-Z_]+", name):
          raise Refused(f"{path}, line {number}: wanted NAME=value, found {line.strip()!r}")
        found[name] = value
  return found | {name: environ[name] for name in {*found, *NEEDED, *OPTIONAL} if name in environ}


def manifest(config: str, overrides: list[str], values: dict[str, str]) -> dict:
  """The JobSet as a mapping. Raises Refused."""
  for name in NEEDED:
    if not values.get(name):
      raise Refused(
        f"{name} is not set: copy tpu/cluster.env.example to tpu/cluster.env and fill it in, or export {name}"
      )
  if not (HERE.parent / config.partition(":")[0]).is_file():
    raise Refused(f"no config file {config} below {HERE.parent}")
  if not values["WORKDIR"].startswith("gs://"):
    raise Refused(f"WORKDIR {values['WORKDIR']!r} is not gs://...: every host must see it")
  if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", values["NAME"]):
    raise Refused(
      f"NAME {values['NAME']!r}: Kubernetes takes up to 40 small letters, digits and '-' here, a letter first"
    )
  for name in ("NUM_SLICES", "MAX_RESTARTS"):
    if not values[name].isdigit():
      raise Refused(f"{name} {values[name]!r}: wanted a whole number")
  capacity = values["CAPACITY"]
  if capacity not in CAPACITIES:
    raise Refused(f"CAPACITY {capacity!r}: wanted one of {', '.join(CAPACITIES)}")
  if capacity == "reservation" and not values.get("RESERVATION"):
    raise Refused("CAPACITY=reservation needs RESERVATION, its name")
  command = ["jaxlm", "train", f"--config={config}", f"--workdir={values['WORKDIR']}", *overrides]
  filled = values | slice_of(values["TOPOLOGY"]) | {"COMMAND": command}
  parts = ["jobset"]
  parts += [capacity] if capacity != "on-demand" else []
  parts += ["mount"] if values.get("MOUNT_BUCKET") else []
  parts += ["queue"] if values.get("QUEUE") else []
  out: dict = {}
  for part in parts:
    template = yaml.safe_load((HERE / "gke" / f"{part}.yaml").read_text())
    out = merged(out, fill(template, filled))
  return out


def slice_of(topology: str) -> dict[str, str]:
  """The cloud's names for chip:AxB, and how its chips lie on hosts."""
  chip, _, shape = topology.partition(":")
  if chip not in CHIPS or not re.fullmatch(r"\d+x\d+(x\d+)?", shape):
    raise Refused(
      f"TOPOLOGY {topology!r} is not chip:AxB or chip:AxBxC with a chip of {', '.join(CHIPS)} (v5e:4x4, v5p:4x4x4)"
    )
  accelerator, largest = CHIPS[chip]
  chips = 1
  for side in shape.split("x"):
    chips *= int(side)
  per_host = chips if chips <= largest else 4
  return {
    "GKE_ACCELERATOR": accelerator,
    "GKE_TOPOLOGY": shape,
    "HOSTS": str(-(-chips // per_host)),
    "CHIPS_PER_HOST": str(per_host),
  }


def fill(value, values: dict):
  """A template's mapping with ${NAME} replaced. A scalar that is nothing but a name becomes the value
  itself (a number where it is one, the list of COMMAND); $$ is a dollar.
  """
  if isinstance(value, dict):
    return {key: fill(item, values) for key, item in value.items()}
  if isinstance(value, list):
    return [fill(item, values) for item in value]
  if not isinstance(value, str):
    return value
  whole = re.fullmatch(r"\$\{(\w+)\}", value)
  if whole:
    found = values[whole[1]]
    return int(found) if whole[1] in NUMBERS else found
  return string.Template(value).substitute(values)


def merged(one, two):
  """Mappings key by key, lists of named entries name by name, other lists one after the other."""
  if isinstance(one, dict) and isinstance(two, dict):
    return one | {k: merged(one[k], v) if k in one else v for k, v in two.items()}
  if isinstance(one, list) and isinstance(two, list):
    names = [entry.get("name") if isinstance(entry, dict) else None for entry in one]
    out = list(one)
    for entry in two:
      name = entry.get("name") if isinstance(entry, dict) else None
      if name is not None and name in names:
        out[names.index(name)] = merged(out[names.index(name)], entry)
      else:
        out.append(entry)
    return out
  return two


def main(argv: list[str]) -> int:
  if not argv or argv[0].startswith("-"):
    print(__doc__, file=sys.stderr)
    return 2
  try:
    found = manifest(argv[0], argv[1:], variables())
  except Refused as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  print(yaml.safe_dump(found, sort_keys=False, width=120), end="")
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
