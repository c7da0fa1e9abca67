"""Every op compiled for GPUs that are not there: XLA's forms for an H100 and an A100, the Mosaic GPU
kernels for an H100. Needs the extra `preflight-gpu`; a third of an hour on two cores.
"""

import pytest

from jaxlm.kernels import mosaic_support
from jaxlm.kernels.gpu_cases import cases
from jaxlm.preflight import gpu_target

pytestmark = pytest.mark.compile

CASES = {f"{case.op}, {case.name}": case for case in cases()}


def compiled(case, implementation, chip):
  try:
    return gpu_target.compiled(case.backward(implementation), case.arguments, chip)
  except gpu_target.NoPlugin as missing:
    pytest.skip(str(missing))


@pytest.mark.parametrize("chip", gpu_target.CHIPS)
@pytest.mark.parametrize("name", CASES)
def test_the_xla_form_compiles_and_fits(name, chip):
  program = compiled(CASES[name], "xla", chip)
  # A square of scores per head of the longest case alone would take twice this.
  assert program.memory_analysis().temp_size_in_bytes < 2 * 2**30


@pytest.mark.parametrize(
  "name", [name for name, case in CASES.items() if "pallas_gpu" in case.implementations]
)
def test_the_mosaic_kernels_compile(name):
  if (reason := mosaic_support.too_old()) is not None:
    pytest.skip(reason)
  program = compiled(CASES[name], "pallas_gpu", "H100")
  assert "mosaic_gpu" in program.as_text()
