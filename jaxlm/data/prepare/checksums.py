"""SHA-256 of what each recipe gave when it was recorded; another result is worth a warning, not a
stop.

Debian replaces versions, and code-py is whatever Python runs: their numbers may move, pinned
packages' may not.
"""

import json
import pathlib

RECORDED = pathlib.Path(__file__).with_name("checksums.json")


def digests(manifest: dict) -> dict[str, str]:
  """{split or file: sha256}."""
  return {
    key: entry["sha256"]
    for section in ("splits", "files")
    for key, entry in manifest.get(section, {}).items()
  }


def complaints(name: str, manifest: dict) -> list[str]:
  """A sentence per split that is not the recorded one; none if nothing was recorded."""
  recorded = json.loads(RECORDED.read_text()).get(name, {})
  return [
    f"{name}/{key} has SHA-256 {found[:16]}.., recorded is {recorded[key][:16]}..: a package has changed; numbers "
    f"will differ slightly from published ones"
    for key, found in digests(manifest).items()
    if recorded.get(key, found) != found
  ]
