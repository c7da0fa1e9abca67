"""Eight simulated CPU devices, full-precision matmuls, no silent rank promotion."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Eight devices on two busy cores reach a collective late; by default the runtime aborts the process after 40 s.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_collective_call_terminate_timeout_seconds=300"
# Programs here are tiny and run a few times: compiling them is most of the suite's time, and without the CPU compiler's
# dear passes it takes a third less. Processes that tests start inherit it.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # parallel compile tests share one libtpu

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture
def optimised():
  """The compiler as users have it, for tests whose tolerance counts roundings (fused multiply-adds, order of sums)."""
  jax.config.update("jax_disable_most_optimizations", False)
  yield
  jax.config.update("jax_disable_most_optimizations", True)
