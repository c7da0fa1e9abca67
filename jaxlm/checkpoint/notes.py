"""The note beside a step's state: format, checksums of the arrays, position in the data, config,
revision, bucket.

A sealed note carries the SHA-256 digest of its own text, so that no field can change unseen. Format
1, before digests, is still read; its fields are checked by type.
"""

import hashlib
import json

from jaxlm import json_text
from jaxlm.checkpoint.errors import CheckpointError

FORMAT = 2


class Damaged(Exception):
  """A step whose bytes are not those that were written; the text says what is wrong."""


def digest(values: dict) -> str:
  """SHA-256 of the values as JSON with sorted keys, without the field `digest`."""
  text = json_text.dumps(
    {k: v for k, v in values.items() if k != "digest"}, sort_keys=True, separators=(",", ":")
  )
  return hashlib.sha256(text.encode()).hexdigest()


def sealed(values: dict) -> dict:
  """The values as JSON keeps them, with their digest."""
  values = json.loads(json_text.dumps(values))
  return values | {"digest": digest(values)}


def opened(note, what: str) -> dict:
  """The note of a step. Damaged unless it is what was written; what: the step, for a note of a
  newer jaxlm.
  """
  if not isinstance(note, dict):
    raise Damaged(f"its note is a {type(note).__name__}, not a mapping")
  if "digest" in note or note.get("format") != 1:
    if note.get("digest") != digest(note):
      raise Damaged("its note is not as it was written")
    if note["format"] > FORMAT:
      raise CheckpointError(
        f"{what} has format {note['format']}, this version of jaxlm reads up to {FORMAT}; use a newer one"
      )
    return note
  for name, kind in {"checksums": dict, "config": dict, "bucket": int}.items():
    if not isinstance(note.get(name), kind):
      raise Damaged(f"its note has no {name!r} of type {kind.__name__}")
  return note
