"""The cases: every model with every objective and every form of data, and every part of a decoder,
an encoder-decoder and an H-Net. They are read from the registries.
"""

from typing import NamedTuple

import tiny

from jaxlm.data import DATA
from jaxlm.layers.embedding import EMBEDDINGS
from jaxlm.layers.mixer import MIXERS
from jaxlm.layers.norms import NORMS
from jaxlm.layers.positions import POSITIONS
from jaxlm.layers.routers import ROUTERS
from jaxlm.models import MODELS
from jaxlm.models.encoder_decoder import REDUCTIONS
from jaxlm.objectives import OBJECTIVES

TEXT = tiny.TEXT


class Case(NamedTuple):
  """table: of the page. names: its place there. config: of a whole run."""

  table: str
  names: tuple[str, ...]
  config: dict

  @property
  def id(self) -> str:
    return "-".join(self.names)


def objectives(data: dict | None = None) -> list[Case]:
  """Every model x objective x data kind and form; data: only this section."""
  found = []
  for kind in [data["kind"]] if data else tiny.kinds_of(DATA):
    for form in tiny.forms_of(kind):
      section = data or tiny.data_section(kind, **form)
      name = "/".join([kind, *form.values()])
      for model in tiny.kinds_of(MODELS):
        for objective in tiny.kinds_of(OBJECTIVES):
          config = tiny.run(tiny.part(MODELS, "model", model), objective, section)
          found.append(Case("objectives", (model, objective, name), config))
  return found


def _decoder(**given) -> dict:
  return tiny.part(MODELS, "model", "decoder", **given)


def mixers(first: bool = False) -> list[Case]:
  """Every mixer with every position, in a decoder. first: others than attention with none only."""
  found = []
  for mixer in tiny.kinds_of(MIXERS):
    for position in tiny.kinds_of(POSITIONS):
      if first and mixer != "attention" and position != "none":
        continue
      at = tiny.part(POSITIONS, "position", position)
      model = _decoder(mixer=tiny.part(MIXERS, "mixer", mixer), position=at)
      found.append(Case("mixers", (mixer, position), tiny.run(model, "next_token", TEXT)))
  return found


def embeddings() -> list[Case]:
  """Every embedding and norm in a decoder; every embedding in an insertion model."""
  found = []
  data = TEXT | {"sequence_seeds": True}
  for embedding in tiny.kinds_of(EMBEDDINGS):
    part = tiny.part(EMBEDDINGS, "embedding", embedding)
    model = _decoder(embedding=part, tie_embeddings=True)
    found.append(
      Case("parts", ("decoder", "embedding", embedding), tiny.run(model, "next_token", data))
    )
  for norm in tiny.kinds_of(NORMS):
    model = _decoder(norm=tiny.part(NORMS, "norm", norm))
    found.append(Case("parts", ("decoder", "norm", norm), tiny.run(model, "next_token", TEXT)))
  return found


def networks() -> list[Case]:
  """Every mixer in H-Net's main network, every router, every reduction of an encoder-decoder."""
  found = []
  base = tiny.part(MODELS, "model", "hnet")
  outer, inner = base["stages"]
  for mixer in tiny.kinds_of(MIXERS):
    part = tiny.part(MIXERS, "mixer", mixer)
    model = base | {"layout": "m1 [m1] m1", "stages": (outer, inner | {"mamba": part})}
    found.append(Case("parts", ("hnet", "main network", mixer), tiny.run(model, "next_byte", TEXT)))
  for router in tiny.kinds_of(ROUTERS):
    part = tiny.part(ROUTERS, "router", router)
    model = base | {"stages": (outer | {"router": part}, inner)}
    found.append(Case("parts", ("hnet", "router", router), tiny.run(model, "next_byte", TEXT)))
  data = tiny.data_section("span_corruption")
  for reduction in tiny.kinds_of(REDUCTIONS):
    layers = {"layer": 1} if "layer" in tiny.fields(REDUCTIONS, reduction) else {}
    part = tiny.part(REDUCTIONS, "reduction", reduction, **layers)
    model = tiny.part(MODELS, "model", "encoder_decoder", reduction=part)
    config = tiny.run(model, "sequence_to_sequence", data)
    found.append(Case("parts", ("encoder_decoder", "reduction", reduction), config))
  return found


def all_cases() -> list[Case]:
  return [*objectives(), *mixers(), *embeddings(), *networks()]
