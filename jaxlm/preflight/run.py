"""One config on one target: compile, read, report."""

import numpy as np

from jaxlm.preflight.chips import Chip
from jaxlm.preflight.compile import compile_program
from jaxlm.preflight.flops import attention_flops, model_flops
from jaxlm.preflight.minimum import wire_minimum
from jaxlm.preflight.report import Report, make_report
from jaxlm.training.config import RunConfig


def preflight(
  cfg: RunConfig,
  devices: np.ndarray,
  program: str = "train",
  *,
  name: str,
  topology: str,
  chip: Chip | None = None,
  options: dict[str, str] | None = None,
  decode_rows: int | None = None,
  bucket: int | None = None,
) -> tuple[Report, str]:
  """(report, optimised HLO text). devices: of `topology.devices`, or real ones. bucket: see
  compile_program.
  """
  compiled = compile_program(
    cfg, devices, program, decode_rows=decode_rows, options=options, bucket=bucket
  )
  n, rows = devices.size, decode_rows or compiled.mesh_shape["data"] * compiled.mesh_shape["fsdp"]
  minimum = (
    wire_minimum(cfg, compiled.num_params, compiled.mesh_shape) if program == "train" else {}
  )
  report = make_report(
    name,
    topology,
    chip,
    compiled,
    minimum=minimum,
    model_flops=model_flops(cfg, program, n, rows),
    attention_flops=attention_flops(cfg, program, n, compiled.bucket),
  )
  return report, compiled.text
