"""Checkpoint folders on disk: `config.json` beside safetensors (one file or an index of shards) or
torch files.

Arrays come as numpy, bfloat16 as `ml_dtypes.bfloat16`; safetensors are read one array at a time.
Files in an object store are first copied to a temporary folder. Nothing of a file is executed, and
an index names files of its own folder only.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping

import numpy as np

from jaxlm import json_text
from jaxlm.checkpoint.copies import LocalCopies, written_whole
from jaxlm.checkpoint.errors import CheckpointFileError
from jaxlm.checkpoint.locations import exists_as_file, folder_path

#: Older ones run code of a file in spite of `weights_only` (CVE-2025-32434).
TORCH = (2, 6)

SHARD_BYTES = 5_000_000_000
#: Names in a safetensors header -> NumPy's.
SAFETENSORS_DTYPES = {
  "F64": "float64",
  "F32": "float32",
  "F16": "float16",
  "BF16": "bfloat16",
  "I64": "int64",
  "I32": "int32",
  "I16": "int16",
  "I8": "int8",
  "U8": "uint8",
  "BOOL": "bool",
  "F8_E4M3": "float8_e4m3fn",
  "F8_E5M2": "float8_e5m2",
}


def read_json(path) -> dict:
  """The mapping in a JSON file. CheckpointFileError: no such file, no JSON, or no mapping."""
  path = folder_path(path)
  try:
    value = json.loads(path.read_text())
  except FileNotFoundError:
    raise CheckpointFileError(f"{path} does not exist") from None
  except OSError as error:
    raise CheckpointFileError(f"{path} cannot be read: {error.strerror or error}") from None
  except (ValueError, RecursionError) as error:
    raise CheckpointFileError(f"{path} is not JSON: {error}") from None
  if not isinstance(value, dict):
    raise CheckpointFileError(f"{path} holds a {type(value).__name__}, wanted a mapping")
  return value


class Safetensors(Mapping):
  """Name -> array over one or several safetensors files; an array is read when it is asked for."""

  def __init__(self, files):
    from safetensors import SafetensorError, safe_open

    self._where: dict[str, object] = {}
    self._copies = LocalCopies()
    for file in files:
      if not exists_as_file(file):
        raise CheckpointFileError(f"{file} does not exist")
      try:
        handle = safe_open(str(self._copies.of(file)), framework="numpy")
      except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointFileError(f"{file} is not a readable safetensors file: {error}") from None
      for name in handle.keys():
        if name in self._where:
          raise CheckpointFileError(f"{file} holds {name!r}, which an earlier shard holds too")
        self._where[name] = handle

  def __getitem__(self, name: str) -> np.ndarray:
    if self.dtype(name) not in SAFETENSORS_DTYPES.values() or "float8" in self.dtype(name):
      raise CheckpointFileError(
        f"{name} is {self.dtype(name)}: only plain floating-point arrays are read; dequantise the checkpoint "
        f"with the library that made it and save it again"
      )
    from safetensors import SafetensorError

    try:
      return self._where[name].get_tensor(name)
    except (SafetensorError, TypeError, ValueError, AttributeError) as error:
      raise CheckpointFileError(
        f"{name} cannot be read from its safetensors file: {error}"
      ) from None

  def __contains__(self, name) -> bool:  # the mixin's reads the array
    return name in self._where

  def dtype(self, name: str) -> str:
    """'float32', 'int8', 'float8_e4m3fn' ..., without reading the array."""
    found = self._where[name].get_slice(name).get_dtype()
    return SAFETENSORS_DTYPES.get(found, found)

  def shape(self, name: str) -> tuple[int, ...]:
    return tuple(self._where[name].get_slice(name).get_shape())

  def __iter__(self) -> Iterator[str]:
    return iter(self._where)

  def __len__(self) -> int:
    return len(self._where)


def read_torch(files) -> dict[str, np.ndarray]:
  """Name -> array of `pytorch_model.bin` or `.pt` files (tensors only; pickled code is not
  executed).
  """
  try:
    import torch
  except ImportError:
    raise CheckpointFileError(
      f"{files[0]} is a torch file, and torch is not installed; install the extra `jaxlm[bench]`, or convert the "
      f"checkpoint to safetensors"
    ) from None
  version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
  if version < TORCH:
    raise CheckpointFileError(
      f"torch {torch.__version__} can be made to run code by a file, even as jaxlm reads it; install torch "
      f"{'.'.join(map(str, TORCH))} or newer, or convert the checkpoint to safetensors"
    )
  state, copies = {}, LocalCopies()
  for file in files:
    if not exists_as_file(file):
      raise CheckpointFileError(f"{file} does not exist")
    try:
      loaded = torch.load(copies.of(file), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds
      text = next(iter(str(error).splitlines()), type(error).__name__)
      raise CheckpointFileError(f"{file} is not a readable torch checkpoint: {text}") from None
    loaded = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(loaded, dict) or not all(
      isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in loaded.items()
    ):
      raise CheckpointFileError(f"{file} is not a state dict (name -> tensor)")
    for name, tensor in loaded.items():
      state[name] = _to_numpy(tensor, name, file)
  return state


def _to_numpy(tensor, name: str, file) -> np.ndarray:
  import ml_dtypes
  import torch

  alone = {
    torch.bfloat16: (torch.int16, ml_dtypes.bfloat16),
    torch.float8_e4m3fn: (torch.int8, ml_dtypes.float8_e4m3fn),
    torch.float8_e5m2: (torch.int8, ml_dtypes.float8_e5m2),
  }  # numpy has no such types
  try:
    if tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized:
      held = tensor.untyped_storage().nbytes()
      if held < tensor.numel() * tensor.element_size():
        raise CheckpointFileError(
          f"{file} holds {name} as a view of {tuple(tensor.shape)} over {held} bytes; save it contiguous"
        )
    tensor = tensor.detach().contiguous()
    if tensor.dtype in alone:
      bits, ours = alone[tensor.dtype]
      return tensor.view(bits).numpy().view(ours)
    return tensor.numpy()
  except (TypeError, RuntimeError, NotImplementedError):
    raise CheckpointFileError(
      f"{file} holds {name} as {tensor.dtype}, {tensor.layout}: only plain floating-point tensors are "
      f"read; dequantise the checkpoint with the library that made it and save it again"
    ) from None


def read_weights(path) -> Mapping[str, np.ndarray]:
  """Arrays of a checkpoint file or folder; in a folder safetensors are preferred to torch files."""
  path = folder_path(path)
  if exists_as_file(path):
    return Safetensors([path]) if path.suffix == ".safetensors" else read_torch([path])
  if not path.is_dir():
    raise CheckpointFileError(f"{path} does not exist")
  for name, read in (("model.safetensors", Safetensors), ("pytorch_model.bin", read_torch)):
    index = path / f"{name}.index.json"
    if exists_as_file(index):
      weight_map = _weight_map(index)
      state = read([path / file for file in dict.fromkeys(weight_map.values())])
      absent = [n for n in weight_map if n not in state]
      if absent:
        raise CheckpointFileError(
          f"{index} promises {absent[0]!r}, which {weight_map[absent[0]]} does not hold"
        )
      return state
    if exists_as_file(path / name):
      return read([path / name])
  for pattern, read in (("*.safetensors", Safetensors), ("*.pt", read_torch)):
    files = sorted(path.glob(pattern))
    if len(files) == 1:
      return read(files)
  found = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
  raise CheckpointFileError(
    f"{path} holds no weights: wanted model.safetensors, pytorch_model.bin or an index of shards; found {found}"
  )


def _weight_map(index) -> dict[str, str]:
  """{array: file} of an index of shards; files are plain names, so that an index reaches nothing
  outside its folder.
  """
  weight_map = read_json(index).get("weight_map")
  if not isinstance(weight_map, dict) or not weight_map:
    raise CheckpointFileError(f"{index} has no 'weight_map'")
  for name, file in weight_map.items():
    if not isinstance(file, str) or not file or file in (".", "..") or re.search(r"[/\\\0]", file):
      raise CheckpointFileError(
        f"{index} names {str(file)[:80]!r} as the file of {name[:80]!r}; wanted the plain name of a file beside it"
      )
  return weight_map


def write_weights(
  folder,
  state: Mapping[str, np.ndarray],
  metadata: dict[str, str] | None = None,
  shard_bytes: int = SHARD_BYTES,
) -> list:
  """Writes model.safetensors, or shards of at most `shard_bytes` with their index.

  Returns the files.
  """
  shards: list[dict[str, np.ndarray]] = [{}]
  size = 0
  for name, array in state.items():
    if shards[-1] and size + array.nbytes > shard_bytes:
      shards.append({})
      size = 0
    shards[-1][name] = np.ascontiguousarray(array)
    size += array.nbytes
  metadata = {"format": "pt"} | (metadata or {})
  with written_whole(folder) as local:
    if len(shards) == 1:
      _save_file(shards[0], local / "model.safetensors", metadata)
      return [folder_path(folder) / "model.safetensors"]
    names, weight_map = [], {}
    for i, shard in enumerate(shards):
      names.append(f"model-{i + 1:05}-of-{len(shards):05}.safetensors")
      _save_file(shard, local / names[-1], metadata)
      weight_map |= dict.fromkeys(shard, names[-1])
    index = {
      "metadata": {"total_size": sum(a.nbytes for a in state.values())},
      "weight_map": weight_map,
    }
    names.append("model.safetensors.index.json")
    (local / names[-1]).write_text(json_text.dumps(index, indent=1))
  return [folder_path(folder) / name for name in names]


def _save_file(arrays: dict[str, np.ndarray], file, metadata: dict[str, str]) -> None:
  """OSError where the file cannot be written: the library says so as an error of its own."""
  from safetensors import SafetensorError
  from safetensors.numpy import save_file

  try:
    save_file(arrays, file, metadata)
  except SafetensorError as error:
    number = re.search(r"\(os error (\d+)\)", str(error))
    if number is None:
      raise
    raise OSError(int(number[1]), os.strerror(int(number[1])), str(file)) from None
