"""A cloud on this machine for the scripts of tpu/ and for the pages: programs named gcloud, kubectl, xpk and docker.

They write down what they are asked. gcloud also keeps slices: a node has hosts, each a home folder in which commands
that come by `ssh` really run, so that what a script starts there goes on, or dies, as it would.
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
HERE = pathlib.Path(__file__)

#: Programs that only write down what they are asked, but for gcloud's part with TPUs.
STANDINS = (
  *("gcloud", "kubectl", "xpk", "docker", "pip", "jaxlm", "tensorboard", "xprof"),
  *("nvidia-smi", "sbatch", "squeue", "scancel"),
)

#: The trainer of a host: each start takes the next line of `codes`, an exit code or 'stay'.
JAXLM = """#!/usr/bin/env bash
[[ "$1" == --version ]] && { echo "jaxlm 0"; exit 0; }
echo "$*" >> "$HOME/trained"
code="$(sed -n "$(wc -l < "$HOME/trained")p" "$FAKE_CLOUD/codes")"
[[ "$code" == stay || -z "$code" ]] && exec sleep 60
exit "$code"
"""

#: A host's interpreter: ours, which needs no package to be installed.
PYTHON = f"""#!/usr/bin/env bash
[[ "$1" == -m ]] && exit 0
exec {sys.executable} -S "$@"
"""


class Cloud:
  """environment: for a script, with the programs first in its PATH."""

  def __init__(self, folder: pathlib.Path, *, hosts: int = 2, **variables: str):
    self.folder = folder
    (folder / "bin").mkdir(parents=True)
    (folder / "nodes").mkdir()
    for name in STANDINS:
      program = folder / "bin" / name
      program.write_text(f'#!/usr/bin/env bash\nexec {sys.executable} -S {HERE} {name} "$@"\n')
      program.chmod(0o755)
    (folder / "bin" / "python").symlink_to(sys.executable)
    self.environment = {
      "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
      "HOME": os.environ.get("HOME", "/"),
      "FAKE_CLOUD": str(folder),
      "FAKE_HOSTS": str(hosts),
      "CLUSTER_ENV": "/nonexistent",
    } | variables
    self.trains(["stay"])

  def trains(self, codes) -> None:
    """What becomes of the first, second, ... start of the trainer on each host."""
    (self.folder / "codes").write_text("".join(f"{code}\n" for code in codes))

  def run(self, words, timeout: float = 120, **variables) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in (self.environment | variables).items() if v is not None}
    return subprocess.run(
      words, env=environment, capture_output=True, text=True, timeout=timeout, cwd=ROOT
    )

  def asked(self) -> list[list[str]]:
    """[program, argument, ...] of each call so far."""
    log = self.folder / "log"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

  def homes(self) -> list[pathlib.Path]:
    return sorted((self.folder / "nodes").glob("*/worker-*"))

  def say(self, **facts) -> None:
    """offline=True: nothing answers. state='SUSPENDED': of the queued resource."""
    for name, value in facts.items():
      path = self.folder / name
      path.write_text(str(value)) if value else path.unlink(missing_ok=True)

  def take_away(self) -> None:
    """The slice is preempted: its hosts are gone, with all that ran there."""
    for node in (self.folder / "nodes").iterdir():
      remove(node)

  def close(self) -> None:
    self.take_away()


def remove(node: pathlib.Path) -> None:
  for status in node.glob("worker-*/jaxlm-run/status.json"):
    found = json.loads(status.read_text())
    for name in ("pid", "child"):
      if name in found:
        try:
          os.kill(found[name], signal.SIGKILL)
        except ProcessLookupError:
          pass
  gone = node.parents[1] / "gone"  # at once, though what dies may still write a last word
  node.rename(gone)
  shutil.rmtree(gone, ignore_errors=True)


def main(program: str, *words: str) -> int:
  """What one of the programs does."""
  folder = pathlib.Path(os.environ["FAKE_CLOUD"])
  with open(folder / "log", "a") as log:
    log.write(json.dumps([program, *words]) + "\n")
  empty = [word for word in words if not word or word.endswith("=")]
  if empty:
    print(f"ERROR: {program} was given nothing for {empty}", file=sys.stderr)
    return 2
  if program == "kubectl" and words[0] == "apply":
    file = words[words.index("-f") + 1]
    applied = folder / "applied"
    applied.mkdir(exist_ok=True)
    text = sys.stdin.read() if file == "-" else pathlib.Path(file).read_text()
    (applied / f"{len(list(applied.iterdir()))}.yaml").write_text(text)
  if program == "gcloud" and words[:2] == ("projects", "describe"):
    print("123456")
  if program == "gcloud" and words[:2] == ("compute", "tpus"):
    if (folder / "offline").exists():
      print("ERROR: could not resolve host", file=sys.stderr)
      return 1
    flags = dict(word[2:].partition("=")[::2] for word in words if word.startswith("--"))
    plain = [word for word in words[3:] if not word.startswith("--")]
    return tpus(folder, words[2], *plain, **{k.replace("-", "_"): v for k, v in flags.items()})
  return 0


def tpus(folder, kind: str, action: str, *names: str, command="", **flags) -> int:
  nodes = folder / "nodes"
  state = folder / "state"
  if (kind, action) == ("queued-resources", "create"):
    count = int(flags.get("node_count", 0))
    made = [f"{flags['node_prefix']}-{i}" for i in range(count)] if count else [flags["node_id"]]
    for node in made:
      for k in range(int(os.environ["FAKE_HOSTS"])):
        venv = nodes / node / f"worker-{k}" / "venv" / "bin"
        venv.mkdir(parents=True)
        for name, text in (("python", PYTHON), ("jaxlm", JAXLM)):
          (venv / name).write_text(text)
          (venv / name).chmod(0o755)
    state.write_text("ACTIVE")
    return 0
  if (kind, action) == ("queued-resources", "delete"):
    for node in nodes.iterdir():
      remove(node)
    state.unlink(missing_ok=True)
    return 0
  if action == "describe":
    if kind == "tpu-vm":
      print("READY" if (nodes / names[0]).exists() else "PREEMPTED")
      return 0
    if not state.exists():
      print("ERROR: NOT_FOUND", file=sys.stderr)
      return 1
    print(state.read_text())
    return 0
  if kind == "tpu-vm" and action in ("ssh", "scp"):
    node = names[1].partition(":")[0] if action == "scp" and ":" in names[1] else names[0]
    homes = sorted((nodes / node.partition(":")[0]).glob("worker-*"))
    if not homes:
      print(f"ERROR: {node} cannot be reached", file=sys.stderr)
      return 255
    if action == "scp":
      return copied(homes, *names, worker=flags["worker"])
    codes = [
      subprocess.run(["bash", "-c", command], cwd=h, env=os.environ | {"HOME": str(h)}).returncode
      for h in homes
    ]
    return max(codes)
  return 0


def copied(homes, source: str, target: str, worker: str) -> int:
  if ":" in target:
    for home in homes:
      shutil.copy(source, home / target.partition(":")[2])
    return 0
  found = homes[int(worker)] if int(worker) < len(homes) else homes[0]
  try:
    shutil.copy(found / source.partition(":")[2], target)
  except OSError as error:
    print(error, file=sys.stderr)
    return 1
  return 0


if __name__ == "__main__":
  sys.exit(main(*sys.argv[1:]))
