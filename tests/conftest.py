"""Eight simulated CPU devices, full-precision matmuls, no silent rank promotion."""

import atexit
import importlib.metadata
import importlib.util
import os
import shutil
import signal
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# A shell starts what runs behind it with SIGINT ignored, and its children inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)
# Eight devices on two busy cores reach a collective late; by default the runtime aborts the process
# after 40 s.
# The emitters of fusions (MLIR) take half of the compiler's time on programs of this size; without
# them LLVM IR is written directly.
# A process ends at a flag that is not known: the second one is in jaxlib 0.10, and not in libtpu.
os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "")
  + " --xla_cpu_collective_call_terminate_timeout_seconds=300"
  + " --xla_cpu_use_fusion_emitters=false"
  * (
    importlib.metadata.version("jaxlib").startswith("0.10.")
    and importlib.util.find_spec("libtpu") is None
  )
)
# Programs here are tiny and run a few times: compiling them is most of the suite's time, and
# without the CPU compiler's dear passes it takes a third less. Processes that tests start inherit
# it.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Runs of all tests of a session share their compiled programs, and those of no other session. The
# processes of pytest-xdist inherit the folder of the process that starts them.
if "JAXLM_COMPILATION_CACHE" not in os.environ:
  os.environ["JAXLM_COMPILATION_CACHE"] = tempfile.mkdtemp(prefix="jaxlm-tests-")
  atexit.register(shutil.rmtree, os.environ["JAXLM_COMPILATION_CACHE"], ignore_errors=True)
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # parallel compile tests share one libtpu

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture
def optimised():
  """The compiler as users have it, for tests whose tolerance counts roundings (fused multiply-adds,
  order of sums).
  """
  jax.config.update("jax_disable_most_optimizations", False)
  yield
  jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def write_run():
  """write_run(folder, config, {step: params}): a run folder with these checkpoints, as training
  would have written it.
  """
  import json
  import types

  from jaxlm.checkpoint.steps import Checkpoints

  def write(folder, config, params_by_step):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    nowhere = types.SimpleNamespace(get_state=dict)
    with Checkpoints(folder / "checkpoints", keep_last=len(params_by_step)) as saved:
      for step, params in params_by_step.items():
        state = {"params": jax.tree.map(jax.numpy.asarray, params), "ema": None}
        saved.save(step, state, nowhere, {"config": config, "bucket": 0})
    return folder

  return write


@pytest.fixture(scope="module", autouse=True)
def programs_are_forgotten():
  """After a module, programs that are compiled are dropped where the process has grown large."""
  yield
  import gc
  import os
  import pathlib

  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
  if pages * os.sysconf("SC_PAGE_SIZE") > 3 * 2**30:
    jax.clear_caches()
    gc.collect()
