"""Chips that a configuration can be compiled for: capacities, bandwidths and clocks, each with its
source.

HBM and slice shapes: Google Cloud's "TPU system architecture" pages; the per-core values agree with
those compiled into `jax.experimental.pallas.tpu.get_tpu_info_for_chip` (v4 and v5p count two cores
as one device).
Interconnect: one-way bandwidth per link, links per chip and a chip's share of its host's data-centre
network as in the scaling book (github.com/jax-ml/scaling-book, chapter on TPUs; it gives none for
the hosts of a v4).
Clocks are not published as such: they follow from peak = 2 x multiply-adds per cycle x clock.
"""

import dataclasses

from jaxlm.config import ConfigError, nearest
from jaxlm.parallel.chips import PEAK_FLOPS

GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Chip:
  name: str
  device_kind: str  # what the runtime calls it
  hbm_bytes: (
    int  # nominal; the compiler keeps some (0.25 GiB of a v5e) and refuses what does not fit
  )
  hbm_bandwidth: float  # bytes/s
  link_bandwidth: float  # bytes/s, one way, one link
  links: int
  clock_hz: float
  default_topologies: tuple[str, ...]
  dcn_bandwidth: float | None = None  # bytes/s between slices, one chip's share of its host's

  @property
  def peak_flops(self) -> float:
    """bfloat16 FLOP/s of one device."""
    return PEAK_FLOPS[self.device_kind]

  @property
  def wire_bandwidth(self) -> float:
    """Bytes/s one chip can receive with every link busy: optimistic for slices that do not wrap
    around.
    """
    return self.link_bandwidth * self.links


CHIPS = {
  chip.name: chip
  for chip in (
    Chip(
      "v4",
      "TPU v4",
      32 * GIB,
      1.23e12,
      45e9,
      6,
      1.05e9,
      ("v4:2x2x1", "v4:2x2x4", "v4:4x4x4", "v4:4x4x8", "v4:8x8x8"),
    ),
    Chip(
      "v5e",
      "TPU v5 lite",
      16 * GIB,
      0.819e12,
      45e9,
      4,
      1.5e9,
      ("v5e:1x1", "v5e:2x2", "v5e:2x4", "v5e:4x4", "v5e:4x8", "v5e:8x8", "v5e:8x16", "v5e:16x16"),
      3.125e9,
    ),
    Chip(
      "v5p",
      "TPU v5",
      95 * GIB,
      2.765e12,
      90e9,
      6,
      1.75e9,
      (
        "v5p:2x2x1",
        "v5p:2x2x2",
        "v5p:2x2x4",
        "v5p:2x4x4",
        "v5p:4x4x4",
        "v5p:4x4x8",
        "v5p:4x8x8",
        "v5p:8x8x8",
      ),
      6.25e9,
    ),
    Chip(
      "v6e",
      "TPU v6 lite",
      32 * GIB,
      1.64e12,
      90e9,
      4,
      1.75e9,
      ("v6e:1x1", "v6e:2x2", "v6e:2x4", "v6e:4x4", "v6e:4x8", "v6e:8x8", "v6e:8x16", "v6e:16x16"),
      12.5e9,
    ),
  )
}


def chip_of(topology: str) -> Chip:
  """The chip of a topology name such as 'v5e:4x4'."""
  name = topology.split(":")[0]
  if name not in CHIPS:
    raise ConfigError(
      f"topology {topology!r}: no chip {name!r}; {nearest(name, CHIPS)} (form: chip:AxB or chip:AxBxC); "
      f"known: {', '.join(known_topologies())}"
    )
  return CHIPS[name]


def known_topologies() -> list[str]:
  return [t for chip in CHIPS.values() for t in chip.default_topologies]
