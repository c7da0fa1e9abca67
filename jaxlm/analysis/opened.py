"""One call on a trained model, as `jaxlm.open_model` returns it: look at it, or change it.

opened = jaxlm.open_model("runs/hnet")
observe(opened, tokens, "boundary")["boundary"]                        bool (B, T): where chunks start
intervene(opened, tokens, {"boundary": Edit(value=True)})["output"]    what it says with one chunk per byte
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxlm.analysis.activations import edits, record
from jaxlm.config import ConfigError
from jaxlm.layers.taps import Edit


def observe(opened, batch, *names: str, **options) -> dict[str, Any]:
  """{site: one array per layer, or one array for a site outside the stacks} and "output", the
  model's, of one pass.

  opened: of `jaxlm.open_model`. batch: token ids, int (B, T) or (T,); or a dict of what
  `opened.config.inputs` reads, for an encoder-decoder {"tokens", "decoder_tokens"}. names: sites, as
  `jaxlm.analysis.sites(opened.config)` lists them. options: keyword arguments of the model's call.
  ConfigError: a site that is not there, a text in place of token ids.
  """
  return intervene(opened, batch, {}, *names, **options)


def intervene(opened, batch, changes: Mapping[Any, Edit], *names: str, **options) -> dict[str, Any]:
  """`observe` of a pass in which some activations are changed.

  changes: {(site, layer): Edit}, {(site, None): Edit} for every layer, {site: Edit} outside stacks.
  ConfigError: a site or a layer that is not there.
  """
  config = opened.config
  for name in names:
    if not isinstance(name, str):
      raise ConfigError(
        f"site {name!r} is not a text; name the site alone and take the layer from the result: "
        f"observe(opened, batch, 'attention')['attention'][2]"
      )
  if isinstance(batch, str | bytes):
    raise ConfigError(
      "the batch is a text; the model reads token ids, int (T,) or (B, T): "
      "opened.tokenizer.encode(text) makes them"
    )
  if not isinstance(batch, Mapping):
    batch = {"tokens": np.atleast_2d(np.asarray(batch, np.int32))}
  changed = edits(config, changes) if changes else None
  return record(config, opened.params, batch, names, edits=changed, **options)
