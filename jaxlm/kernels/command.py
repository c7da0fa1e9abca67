"""`jaxlm kernels [--config=FILE] [--topology=v5p:4x4x4] [--json]`: which implementation each op takes, and
why it takes no other."""

import os
import sys

from jaxlm import json_text
from jaxlm.commands.exits import GOOD, command
from jaxlm.commands.flags import CONFIG, Parser, parse_flags
from jaxlm.config import ConfigError

EPILOG = """\
With --config: of its train step, traced for this machine's devices or those of the topology; nothing is compiled.
Without: of every op at the shapes of the papers (jaxlm/kernels/*/shapes.py), on one device."""


@command("jaxlm kernels", refusals=(NotImplementedError,))
def main(argv: list[str]) -> int:
  """Exit code 0; 2 where the configuration or a named implementation is refused."""
  parser = Parser(
    "jaxlm kernels",
    description="Print which implementation each op takes, and why it takes no other.",
    epilog=EPILOG,
    others=CONFIG,
    bare="--config",
    example="jaxlm kernels --config=configs/carope/tiny.py --topology=v5p:4x4x4",
  )
  parser.add_argument(
    "--topology",
    help="a TPU slice that is not there, chip:AxB or chip:AxBxC (default: this machine)",
  )
  parser.add_argument("--json", action="store_true", help="print the list as JSON")

  from jaxlm.training.config import configured

  spec, overrides, rest = parse_flags(argv)
  args = parser.parse_args(rest)
  if spec is None and overrides:
    raise ConfigError(
      f"--config.{next(iter(overrides))} changes a configuration and none is given; add --config=FILE"
    )
  cfg = None if spec is None else configured(spec, overrides)
  devices = _devices(args.topology)
  found = _of_shapes(devices) if cfg is None else _of_config(cfg, devices)
  if args.json:
    print(json_text.dumps([_as_json(*entry) for entry in found], indent=1))
  else:
    _print(found, args.topology or f"{devices.size} x {devices.flat[0].device_kind}")
  return GOOD


def _devices(topology: str | None):
  if topology is None:
    import jax
    import numpy as np

    return np.array(jax.devices())
  os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing runs on a slice that is not there
  from jaxlm.preflight.topology import devices

  return devices(topology)


def _of_config(cfg, devices) -> list:
  """[("train", Choice)] of the train step with the objective's largest bucket."""
  import jax

  from jaxlm.kernels.choices import recorded
  from jaxlm.parallel.mesh import make_mesh
  from jaxlm.parallel.place import batch_sharding
  from jaxlm.preflight.compile import abstract_batch, abstract_special_tokens
  from jaxlm.training.config import check
  from jaxlm.training.frozen import frozen_configs
  from jaxlm.training.step import build_program

  check(cfg, devices.size)
  mesh = make_mesh(cfg.mesh, list(devices.flat))
  batch = {
    name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch_sharding(mesh))
    for name, x in abstract_batch(cfg).items()
  }
  program = build_program(
    cfg,
    mesh,
    batch,
    frozen=frozen_configs(cfg),
    special_tokens=abstract_special_tokens(cfg),
  )
  with recorded() as choices:
    program.trace(batch, -1, program.frozen)
  return [("train", choice) for choice in choices]


def _of_shapes(devices) -> list:
  """[(case, Choice)] of every op at the papers' shapes, on the first device."""
  import jax
  from jax.sharding import AxisType, Mesh

  from jaxlm.kernels.cases import cases
  from jaxlm.kernels.choices import recorded

  found = []
  with jax.set_mesh(Mesh(devices.flat[:1], ("device",), axis_types=(AxisType.Auto,))):
    for name, fn, arguments in cases():
      with recorded() as choices:
        jax.eval_shape(fn, *arguments)
      found += [(name, choice) for choice in choices]
  return found


def _as_json(where: str, choice) -> dict:
  return {
    "case": where,
    "op": choice.op,
    "implementation": choice.implementation,
    "named": choice.named,
    "arguments": choice.arguments,
    "refused": dict(choice.refused),
  }


def _print(found: list, target: str) -> None:
  from jaxlm.commands.tables import print_table

  rows = []
  for _, choice in sorted(found, key=lambda entry: entry[1].op):
    why = "\n".join(f"{name}: {reason}" for name, reason in choice.refused)
    if choice.named:
      why = "the configuration names it"
    rows.append((choice.op, choice.implementation, choice.arguments, why))
  print_table(
    ("op", "takes", "arguments", "others"),
    rows,
    title=f"implementations on {target}",
    words=("arguments", "others"),
    box=False,
  )


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
