"""Parameter trees as flat mappings and back: the path 'blocks/mixer/w_q' names a leaf."""

from collections.abc import Mapping


def set_path(tree: dict, path: str, value) -> None:
  *parents, leaf = path.split("/")
  for key in parents:
    tree = tree.setdefault(key, {})
  tree[leaf] = value


def flatten(tree: Mapping, prefix: str = "") -> dict:
  """{'blocks/mixer/w_q': array} of a nested tree."""
  flat = {}
  for key, value in tree.items():
    path = f"{prefix}/{key}" if prefix else key
    flat.update(flatten(value, path) if isinstance(value, Mapping) else {path: value})
  return flat


def unflatten(flat: Mapping) -> dict:
  tree: dict = {}
  for path, value in flat.items():
    set_path(tree, path, value)
  return tree
