"""jaxlm preflight --config=... --topology=v5e:16x16 [--mesh=data=4,fsdp=64]: learn here what the
pod would tell you.
"""

import dataclasses
import os
import pathlib
import sys

from jaxlm import json_text
from jaxlm.commands.exits import FAILED, GOOD, command
from jaxlm.commands.flags import CONFIG, Parser, parse_flags, whole
from jaxlm.config import ConfigError, nearest
from jaxlm.paths import expand

AXES = ("data", "fsdp", "sequence", "tensor")


@command("jaxlm preflight")
def main(argv: list[str]) -> int:
  """Exit code 0 when everything fits, 1 when something does not."""
  os.environ.setdefault(
    "JAX_PLATFORMS", "cpu"
  )  # the compiler for the chip lives in libtpu; nothing runs on one here
  parser = Parser(
    "jaxlm preflight",
    description=__doc__,
    others=CONFIG,
    bare="--config",
    example="jaxlm preflight --config=configs/carope/tiny.py --cpu=4",
  )
  parser.add_argument(
    "--topology", help="slice to compile for, chip:AxB or chip:AxBxC (v5e:16x16, v5p:4x4x4)"
  )
  parser.add_argument(
    "--num_slices", type=whole, default=1, help="slices joined over the data-centre network"
  )
  parser.add_argument(
    "--mesh", action="append", default=[], help="data=4,fsdp=64; the config's own when left out"
  )
  parser.add_argument(
    "--compare", action="append", default=[], metavar="MESH", help="rank several meshes; repeat it"
  )
  parser.add_argument(
    "--program", default="train", help="train, eval, decode, or several: train,eval"
  )
  parser.add_argument(
    "--decode_rows",
    type=whole,
    help="sequences decoded at once (default: one per data x fsdp device)",
  )
  parser.add_argument(
    "--bucket",
    type=whole,
    help="which of the objective's chunk capacities, 0 the smallest (default: the largest)",
  )
  parser.add_argument(
    "--cpu", type=whole, metavar="N", help="compile for N simulated CPU devices instead"
  )
  parser.add_argument(
    "--gpu", action="store_true", help="compile for the GPUs of this machine instead"
  )
  parser.add_argument("--hlo", metavar="FILE", help="keep the compiled text")
  parser.add_argument("--json", action="store_true", help="print the report as JSON")
  parser.add_argument(
    "--option",
    action="append",
    default=[],
    metavar="NAME=VALUE",
    help="compiler option besides those of the chip; repeat it",
  )

  from jaxlm.training.config import configured

  spec, overrides, rest = parse_flags(argv)
  args = parser.parse_args(rest)
  if spec is None:
    raise ConfigError(f"no configuration; give --config=FILE; for example: {parser.example}")
  if sum((args.topology is not None, args.cpu is not None, args.gpu)) != 1:
    raise ConfigError("give one target: --topology=chip:AxB, --cpu=N or --gpu")
  programs = args.program.split(",")
  for program in programs:
    if program not in ("train", "eval", "decode"):
      raise ConfigError(f"--program: {program!r}; {nearest(program, ('train', 'eval', 'decode'))}")
  for name in ("num_slices", "cpu"):
    if (getattr(args, name) or 0) < (getattr(args, name) is not None):
      raise ConfigError(f"--{name}={getattr(args, name)}: wanted 1 or more")
  if args.compare and args.mesh:
    raise ConfigError("--compare names the meshes: repeat it, and leave out --mesh")
  cfg = configured(spec, overrides)
  if args.hlo and not pathlib.Path(expand(args.hlo)).absolute().parent.is_dir():
    raise ConfigError(
      f"--hlo={args.hlo}: there is no folder {pathlib.Path(args.hlo).parent} to write it in"
    )

  devices, chip, target = _target(args)
  from jaxlm.commands.tables import print_table
  from jaxlm.preflight.run import preflight
  from jaxlm.preflight.show import ranking, show

  options = dict(_option(o) for o in args.option) or None
  meshes = [parse_mesh(m) for m in (args.compare or args.mesh or [""])]
  reports = []
  for mesh in meshes:
    for program in programs:
      shaped = dataclasses.replace(
        cfg, mesh=dataclasses.replace(cfg.mesh, **mesh) if mesh else cfg.mesh
      )
      report, text = preflight(
        shaped,
        devices,
        program,
        name=pathlib.Path(spec.split(":")[0]).stem,
        topology=target,
        chip=chip,
        options=options,
        decode_rows=args.decode_rows,
        bucket=args.bucket,
      )
      reports.append(report)
      if args.hlo:
        suffix = "" if len(meshes) * len(programs) == 1 else f".{len(reports)}"
        pathlib.Path(expand(args.hlo) + suffix).write_text(text)
      if not args.json and not args.compare:
        show(report)
  if args.json:
    print(
      json_text.dumps(
        [r.to_json() for r in reports] if len(reports) > 1 else reports[0].to_json(), indent=1
      )
    )
  elif args.compare:
    print_table(*ranking(reports), words=("dominating",), box=False)
  return GOOD if all(r.fits for r in reports) else FAILED


def parse_mesh(text: str) -> dict[str, int]:
  """{'data': 4, 'fsdp': 64} of 'data=4,fsdp=64'; axes that are not named are 1."""
  if not text:
    return {}
  sizes = dict.fromkeys(AXES, 1)
  for part in text.split(","):
    axis, _, size = part.partition("=")
    if axis not in AXES:
      raise ConfigError(f"--mesh={text}: no axis {axis!r}; {nearest(axis, AXES)}")
    if not size.lstrip("-").isdigit():
      raise ConfigError(f"--mesh={text}: {axis} needs a whole number, got {size!r}")
    sizes[axis] = int(size)
  return sizes


def _target(args):
  """(devices, chip or None, name)."""
  if args.topology is not None:
    from jaxlm.preflight.chips import chip_of
    from jaxlm.preflight.topology import devices

    return (
      devices(args.topology, args.num_slices),
      chip_of(args.topology),
      (args.topology if args.num_slices == 1 else f"{args.num_slices} x {args.topology}"),
    )
  import jax
  import numpy as np

  if args.cpu is not None:
    jax.config.update("jax_num_cpu_devices", args.cpu)
    return np.array(jax.devices("cpu")), None, f"cpu x {args.cpu}"
  os.environ.pop("JAX_PLATFORMS", None)
  jax.config.update("jax_platforms", None)
  try:
    found = jax.devices("gpu")
  except RuntimeError:
    raise ConfigError(
      "--gpu compiles for GPUs that are there, and this machine shows none to JAX; "
      "there is no ahead-of-time compiler for absent GPUs"
    ) from None
  return np.array(found), None, f"{found[0].device_kind} x {len(found)}"


def _option(text: str) -> tuple[str, str]:
  name, equals, value = text.partition("=")
  if not equals:
    raise ConfigError(f"--option={text}: wanted NAME=VALUE")
  return name, value


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
