"""A weights folder: a model with its parameters, in files that any safetensors reader opens.

`model.json` holds the model's configuration, as under `model` in a config file, a checksum of every
array and a digest of itself; `model.safetensors` (or shards) holds arrays under their paths in the
parameter tree, 'blocks/mixer/w_q'. Nothing else is needed to rebuild the model.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jaxlm import json_text
from jaxlm.checkpoint import notes
from jaxlm.checkpoint.checksums import checksums, differing
from jaxlm.checkpoint.errors import CheckpointFileError, WeightsError
from jaxlm.checkpoint.locations import folder_path
from jaxlm.checkpoint.model_json import described, read_model
from jaxlm.checkpoint.reading import fit
from jaxlm.checkpoint.trees import flatten, unflatten
from jaxlm.checkpoint.weight_files import read_json, read_weights, write_weights
from jaxlm.models.base import abstract_params

FORMAT = {"format": "jaxlm weights", "version": 2}  # version 1 had no checksums


def is_weights_folder(folder) -> bool:
  return (folder_path(folder) / "model.json").is_file()


def save(folder, model, params, *, source: str = "") -> list:
  """Writes a weights folder. model: a model config; params: nested tree of arrays.

  Returns the files.
  """
  folder = folder_path(folder)
  arrays = {path: np.asarray(value) for path, value in flatten(params).items()}
  files = write_weights(folder, arrays)
  document = notes.sealed(
    FORMAT | {"source": source, "model": described(model), "checksums": checksums(arrays)}
  )
  (folder / "model.json").write_text(json_text.dumps(document, indent=2) + "\n")
  return [folder / "model.json", *files]


def load(folder) -> tuple[Any, dict]:
  """(model config, params as NumPy arrays) of a weights folder, checked against each other and
  their checksums.

  CheckpointFileError: a file is missing or damaged. WeightsError: the arrays are not those of the
  model.
  """
  document = read_document(folder)
  model = read_model(document["model"], str(folder_path(folder) / "model.json"))
  params = unflatten(_checked_arrays(folder, document))
  check_params(model, params, str(folder))
  return model, params


def read_document(folder) -> dict:
  """model.json, checked."""
  file = folder_path(folder) / "model.json"
  document = read_json(file)
  kind, version = document.get("format"), document.get("version")
  if kind != FORMAT["format"] or version not in (1, FORMAT["version"]):
    raise CheckpointFileError(
      f"{file} is not version 1 or {FORMAT['version']} of a {FORMAT['format']} folder "
      f"(format {kind!r}, version {version!r})"
    )
  if ("digest" in document or version > 1) and document.get("digest") != notes.digest(document):
    raise CheckpointFileError(
      f"{file} is not as it was written; take another copy of the folder. If it was changed on purpose, "
      f"remove its fields digest and checksums and write version 1"
    )
  if not isinstance(document.get("model"), dict):
    raise CheckpointFileError(f"{file} has no 'model'")
  return document


def read_arrays(folder) -> dict[str, np.ndarray]:
  """{path in the parameter tree: array}. CheckpointFileError if one is not what was written."""
  return _checked_arrays(folder, read_document(folder))


def _checked_arrays(folder, document: dict) -> dict[str, np.ndarray]:
  state = read_weights(folder_path(folder))
  arrays = {name: state[name] for name in state}
  if document["version"] > 1:
    stored = document["checksums"]
    wrong = [*differing(stored, checksums(arrays)), *(set(stored) - set(arrays))]
    if wrong:
      raise CheckpointFileError(
        f"{folder} is damaged: the bytes of {wrong[0]} are not those that were written; take another copy"
      )
  return arrays


def place(stored: Mapping[str, Any], params, what: str):
  """The stored arrays as the tree `params` (abstract, with shardings and types). what: the subject
  of a refusal.
  """
  fit({name: tuple(x.shape) for name, x in stored.items()}, params, what)

  def name_of(path):
    return jax.tree_util.keystr(path, simple=True, separator="/")

  return jax.tree_util.tree_map_with_path(
    lambda path, x: jax.device_put(stored[name_of(path)].astype(x.dtype), x.sharding), params
  )


def expected_shapes(model) -> dict[str, tuple[int, ...]]:
  """{path: shape} of the parameters that the model declares; nothing is allocated."""
  return {path: leaf.shape for path, leaf in flatten(nn.unbox(abstract_params(model))).items()}


def check_params(model, params, where: str) -> None:
  """WeightsError unless the tree has exactly the names and shapes that the model declares."""
  want = expected_shapes(model)
  got = {k: tuple(v.shape) for k, v in flatten(params).items()}
  lines = (
    [f"  missing {k}" for k in want if k not in got]
    + [f"  left over {k}" for k in got if k not in want]
    + [
      f"  {k} has shape {got[k]}, wanted {want[k]}" for k in want if k in got and got[k] != want[k]
    ]
  )
  if lines:
    raise WeightsError(f"{where} does not hold the parameters of its model:\n" + "\n".join(lines))
