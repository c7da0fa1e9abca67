"""What ran: the revision of the source, the versions of the libraries, the device, the command."""

import os
import pathlib
import shlex
import subprocess
import sys
import time
from importlib import metadata

import jax


def versions() -> dict[str, str]:
  """{library: version} of those that decide what a step computes."""
  found = {}
  for name in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy"):
    try:
      found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
      found[name] = "not installed as a package"
  return found


def provenance() -> dict:
  """Revision, versions, device and command of this process."""
  device = jax.devices()[0]
  return {
    "started": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
    "started_unix": round(time.time(), 3),
    "command": shlex.join([os.path.basename(sys.argv[0]), *sys.argv[1:]]),
    "revision": revision(),
    "python": sys.version.split()[0],
    "versions": versions(),
    "devices": f"{jax.device_count()} x {device.device_kind}",
    "processes": jax.process_count(),
  }


#: Reports decide nothing, and making one must not make the next one's tree unclean.
RESULTS = (
  ":(exclude)experiments/*/results/*",
  ":(exclude)bench/*.json",
  ":(exclude)docs/faults.*",
  ":(exclude)docs/measured/*",
  ":(exclude)docs/systems/*",
  ":(exclude)docs/reproduction.html",
  ":(exclude)README.md",
  ":(exclude)REPRODUCTION.md",
  ":(exclude)experiments/*/README.md",
  ":(exclude)experiments/*/NOTES.md",
  ":(exclude)jaxlm/kernels/README.md",
)


def revision() -> str:
  """Commit of the source, '+' appended when tracked files (reports apart) differ from it. Outside a
  repository the file REVISION, which tpu/bootstrap.sh and tpu/Dockerfile write, else 'unknown'.
  """
  root = pathlib.Path(__file__).parents[2]

  def git(*args):
    return subprocess.run(
      ["git", "-C", str(root), *args], capture_output=True, text=True, check=True
    ).stdout

  try:
    return git("rev-parse", "--short", "HEAD").strip() + (
      "+" if git("status", "--porcelain", "-uno", "--", ".", *RESULTS).strip() else ""
    )
  except (OSError, subprocess.CalledProcessError):
    try:
      return (root / "REVISION").read_text().strip()[:12] or "unknown"
    except OSError:
      return "unknown"
