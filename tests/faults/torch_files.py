"""Writes tests/faults/torch_files/{zip,legacy}.bin, which the damage tests read. Needs torch: pip
install torch.
"""

import pathlib

import torch
from formats import _state

FOLDER = pathlib.Path(__file__).parent / "torch_files"

if __name__ == "__main__":
  FOLDER.mkdir(exist_ok=True)
  state = {name: torch.tensor(array) for name, array in _state().items()}
  torch.save(state, FOLDER / "zip.bin")
  torch.save(state, FOLDER / "legacy.bin", _use_new_zipfile_serialization=False)
