"""What all processes of a run must have alike, and find out before they compute anything together.

The first difference is named, with both values, on every process: `parallel.start.require_same`.
"""

import hashlib
import json
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax

import jaxlm
from jaxlm.checkpoint.locations import folder_path
from jaxlm.json_text import dumps
from jaxlm.training.config import RunConfig, resolved
from jaxlm.training.provenance import versions
from jaxlm.training.run_lock import LOCK

#: Settings of JAX that change what is computed or compiled.
SETTINGS = (
  "jax_enable_x64",
  "jax_default_matmul_precision",
  "jax_default_prng_impl",
  "jax_threefry_partitionable",
  "jax_disable_most_optimizations",
)
#: Seconds that a network file system may take to show a new file to another host.
VISIBLE_S = 10


def of_command(cfg: RunConfig, workdir, revision: str, flags: Mapping[str, Any]) -> dict[str, str]:
  """Configuration, folder, code and settings: known before there is a device."""
  facts = dict(flat(resolved(cfg))) | {"--workdir": str(folder_path(workdir))}
  facts |= {f"--{name}": str(value) for name, value in flags.items()}
  facts |= {"the revision": revision, "the code of jaxlm": code_digest()}
  facts |= {f"the version of {name}": version for name, version in versions().items()}
  return facts | {name: str(getattr(jax.config, name, None)) for name in SETTINGS}


def of_data(iterator, batch, folder, owner: str | None) -> dict[str, str]:
  """Data and folder. batch: shapes. owner: who has locked the folder, None where this process has
  not.
  """
  facts = {f"the batch's {name}": f"{x.dtype}{list(x.shape)}" for name, x in sorted(batch.items())}
  position = iterator.get_state()
  if isinstance(position, Mapping):
    facts |= {f"the data's {key}": value for key, value in flat(position)}
  else:
    facts["the data's position"] = hashlib.sha256(bytes(position)).hexdigest()[:16]
  return {"the folder's lock.json": owner or seen_owner(folder)} | facts


def flat(value, at: str = "") -> list[tuple[str, str]]:
  """[('train.steps', '100')] of nested mappings."""
  if isinstance(value, Mapping):
    return [
      pair for key, item in value.items() for pair in flat(item, f"{at}.{key}" if at else str(key))
    ]
  return [(at, value if isinstance(value, str) else dumps(value))]


def code_digest() -> str:
  """Of all source files of this library."""
  root, digest = pathlib.Path(jaxlm.__file__).parent, hashlib.sha256()
  for path in sorted(root.rglob("*.py")):
    digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
  return digest.hexdigest()[:16]


def seen_owner(folder) -> str:
  """The token in the folder's lock file, or 'absent': then this is not the folder that the first
  process has locked.
  """
  end = time.monotonic() + VISIBLE_S
  while True:
    try:
      return json.loads((folder / LOCK).read_text())["token"]
    except (OSError, ValueError, KeyError):
      if time.monotonic() > end:
        return "absent"
      time.sleep(0.2)
