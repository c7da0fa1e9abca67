"""Activations by site and layer: which there are, their values on a batch, and a run with some of
them changed.

  found = record(cfg, params, batch, ["attn_out", "attention"])  found["attn_out"][2]: of layer 2
  heads = edits(cfg, {("heads", 2): Edit(scale=keep_NH)})        then: record(..., edits=heads)

A site is named by its last name where one stack has it ("heads"), else with what tells it apart
("decoder/cross/heads"). "attention" stands for whole attention matrices, (B, N, T, S) float32: the
only site that costs memory and time where it is asked for, since attention is then computed from
the matrix. docs/taps.md lists the sites.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.config import ConfigError, nearest
from jaxlm.layers.taps import STATISTICS, Edit
from jaxlm.models.base import ModelConfig, abstract_params

#: Taps that share their name with a module are stored under another.
SHOWN = {"embedded": "embed", "weights": "attention"}


class Place(NamedTuple):
  """Where a tap's values lie: the collection, the path in it, and the layers of the leading axis;
  None: not stacked.
  """

  path: tuple[str, ...]
  layers: tuple[int, ...] | None
  collection: str = "intermediates"


def sites(cfg: ModelConfig) -> dict[str, int | None]:
  """{full name of every tap: its number of layers; None for a tap outside the stacks}.

  Nothing is computed.
  """
  return {
    name: None if parts[0].layers is None else sum(len(part.layers) for part in parts)
    for name, parts in _places(cfg).items()
  }


def record(
  cfg: ModelConfig, params, batch, names: Sequence[str], *, edits=None, **options
) -> dict[str, Any]:
  """{name: list of one array per layer, or one array for a tap outside the stacks}, of one forward
  pass of `batch`.

  batch: what `cfg.inputs` reads. edits: what `edits(...)` made. options: keyword arguments of the
  model's call. The output of the pass is under "output". What is not asked for is not kept.
  """

  run = _compiled.__wrapped__ if options else _compiled
  return run(cfg, tuple(names), **options)(params, cfg.inputs(batch), edits or {})


@functools.lru_cache(maxsize=32)  # a probe of many checkpoints compiles once
def _compiled(cfg, names, **options):
  return jax.jit(lambda *args: _pass(cfg, args[0], args[1], names, args[2], options))


def traced(
  cfg: ModelConfig, params, batch, names: Sequence[str] = (), *, edits=None, **options
) -> dict[str, Any]:
  """`record` inside another traced function: not compiled by itself, and differentiable."""
  return _pass(cfg, params, cfg.inputs(batch), names, edits or {}, options)


def _pass(cfg, params, arguments, names, edits, options) -> dict[str, Any]:
  wanted = {name: _found(cfg, name) for name in names}
  variables = {"params": params} | ({"edits": edits} if edits else {})
  asked = {part.collection for parts in wanted.values() for part in parts}
  out, kept = cfg.build().apply(
    variables, *arguments, mutable=sorted({"intermediates"} | asked), **options
  )
  found = {
    name: _by_layer(parts, [_at(kept[part.collection], part) for part in parts])
    for name, parts in wanted.items()
  }
  return found | {"output": out}


def edits(cfg: ModelConfig, changes: Mapping[Any, Edit]) -> dict:
  """The collection `edits` of {(site, layer): Edit}, {(site, None): Edit} for every layer, or
  {site: Edit} outside stacks.

  To be given to `record`, or to `model.apply({"params": ..., "edits": ...}, ...)`. Layers without
  an entry are unchanged.
  """
  by_site: dict = {}
  for key, edit in changes.items():
    site, layer = key if isinstance(key, tuple) else (key, None)
    by_site.setdefault(site, {})[layer] = edit
  tree: dict = {}
  for site, by_layer in by_site.items():
    for part in _found(cfg, site):
      if part.collection == STATISTICS:
        raise ConfigError(f"{site!r} is a sum over the attention weights; edit 'attention' instead")
      edit = (
        by_layer[None]
        if part.layers is None
        else _stacked(site, by_layer, part.layers, _count(cfg, site))
      )
      if edit is not None:
        _put(tree, part.path, edit)
  return tree


def _count(cfg, site) -> int:
  return sum(len(part.layers) for part in _found(cfg, site) if part.layers is not None)


def _stacked(site, by_layer, layers, count) -> Edit | None:
  """One Edit with a leading layers axis.

  Fields that a layer does not give are the identity there.
  """
  for layer in by_layer:
    if layer is not None and not 0 <= layer < count:
      raise ConfigError(f"edit of {site!r} in layer {layer}: there are layers 0 .. {count - 1}")
  of = [by_layer.get(layer, by_layer.get(None)) for layer in layers]
  if not any(of):
    return None
  fns = {edit.fn for edit in of if edit is not None}
  if len(fns) > 1 or (fns != {None} and None in of):
    raise ConfigError(
      f"edits of {site!r}: one fn must serve all layers of a stack, which are compiled as one; let it read "
      f"its argument `layer`"
    )
  fields = {}
  for name, identity in (("scale", 1.0), ("add", 0.0)):
    values = [
      identity if edit is None or getattr(edit, name) is None else getattr(edit, name)
      for edit in of
    ]
    if any(edit is not None and getattr(edit, name) is not None for edit in of):
      fields[name] = _stack(values)
  if any(edit is not None and edit.value is not None for edit in of):
    fields["value"] = _stack(
      [0.0 if edit is None or edit.value is None else edit.value for edit in of]
    )
    fields["mask"] = _stack(
      [
        False if edit is None or edit.value is None else True if edit.mask is None else edit.mask
        for edit in of
      ],
      bool,
    )
  if any(edit is not None and edit.keep_norm for edit in of):
    fields["keep_norm"] = True  # of an unchanged activation it changes nothing
  if fns != {None}:
    fields |= {"fn": fns.pop(), "layer": jnp.asarray(layers, jnp.int32)}
  return Edit(**fields)


def _stack(values, dtype=None):
  arrays = [jnp.asarray(value, dtype) for value in values]
  rank = max(x.ndim for x in arrays)  # broadcasting aligns the last axes
  arrays = [x.reshape((1,) * (rank - x.ndim) + x.shape) for x in arrays]
  return jnp.stack(jnp.broadcast_arrays(*arrays))


@functools.lru_cache(maxsize=64)
def _places(cfg: ModelConfig) -> dict[str, list[Place]]:
  """{full name: its places}, found by an abstract pass over the smallest batch."""
  params, arguments = nn.unbox(abstract_params(cfg)), cfg.inputs(cfg.example())

  def run(params, arguments):
    return cfg.build().apply(
      {"params": params}, *arguments, mutable=["intermediates", "taps", "attention", STATISTICS]
    )[1]

  kept = jax.eval_shape(run, params, arguments)
  parts = [(name, part) for name, stack in cfg.stacks.items() for part in stack]
  out: dict[str, list[Place]] = {}
  for collection in ("taps", "attention", STATISTICS):
    for path, _ in jax.tree_util.tree_leaves_with_path(kept.get(collection, {})):
      path = tuple(str(key.key) for key in path if hasattr(key, "key"))
      found = next(
        ((name, part) for name, part in parts if path[: len(part.path)] == part.path), None
      )
      inside = path if found is None else (found[0], *path[len(found[1].path) :])
      inside = (*inside[:-1], SHOWN.get(inside[-1], inside[-1]))
      place = Place(
        path,
        None if found is None else found[1].layers,
        "intermediates" if collection == "taps" else collection,
      )
      if place not in out.setdefault("/".join(inside), []):
        out["/".join(inside)].append(place)
  return out


def _found(cfg, name: str) -> list[Place]:
  places = _places(cfg)
  names = [full for full in places if full == name or full.endswith("/" + name)]
  if not names:
    raise ConfigError(
      f"no site {name!r} in {type(cfg).__name__}; {nearest(name, {n.rsplit('/', 1)[-1] for n in places})}; all: "
      f"{', '.join(places)}"
    )
  if len(names) > 1:
    raise ConfigError(f"site {name!r} of {type(cfg).__name__} can be {', '.join(names)}; name one")
  return places[names[0]]


def _at(tree, part: Place):
  for key in part.path:
    tree = tree[key]
  return tree[0]


def _put(tree: dict, path: tuple[str, ...], edit: Edit) -> None:
  for key in path[:-1]:
    tree = tree.setdefault(key, {})
  tree[path[-1]] = edit


def _by_layer(parts: list[Place], values: list):
  if parts[0].layers is None:
    return values[0]
  by_layer = {
    layer: value[i] for part, value in zip(parts, values) for i, layer in enumerate(part.layers)
  }
  return [by_layer[layer] for layer in sorted(by_layer)]
