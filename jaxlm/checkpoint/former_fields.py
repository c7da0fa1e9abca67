"""Configurations that earlier versions of jaxlm saved, in the fields of this one.

A run's config.json and the notes of its checkpoints stay as they were written; they are read through
this table. A configuration that a person writes is not: there a former field is an error that says
what to write instead (`jaxlm.config.unknown_key`).
"""

from collections.abc import Mapping

#: (section, kind) -> {former field: present field, or None where nothing is to be said any more}.
FORMER_FIELDS = {
  ("objective", "masked_diffusion"): {"mask": None},  # the data's own
  ("objective", "insertion_transformer"): {"eos": None},
  ("objective", "next_byte"): {"slack": "headroom", "rows_per_buffer": None},  # the model's join
  ("objective", "sequence_to_sequence"): {"slack": "headroom"},
}


def with_present_fields(config: Mapping) -> dict:
  """The saved mapping with every former field renamed or left out; others stay as they are."""
  out = dict(config)
  for (section, kind), fields in FORMER_FIELDS.items():
    part = out.get(section)
    if not isinstance(part, Mapping) or part.get("kind") != kind:
      continue
    part = dict(part)
    for former, present in fields.items():
      if former in part:
        value = part.pop(former)
        if present is not None:
          part.setdefault(present, value)
    out[section] = part
  return out
