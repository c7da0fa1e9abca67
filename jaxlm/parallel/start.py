"""Multi-host start-up: one call before any array exists."""

import os

import jax

from jaxlm.config import ConfigError

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def start(timeout_s: int = 300) -> None:
  """Joins the other processes of this run, if there are any.

  Plain processes set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID in each; Cloud TPU and Slurm are
  recognised by JAX itself when JAXLM_DISTRIBUTED=1. Without any of these this is a run of one process.
  """
  given = [name for name in VARIABLES if name in os.environ]
  if given:
    missing = [name for name in VARIABLES if name not in os.environ]
    if missing:
      raise ConfigError(f"{', '.join(given)} set but not {', '.join(missing)}; a run of several processes needs all three")
    address, count, index = (os.environ[name] for name in VARIABLES)
    jax.distributed.initialize(address, int(count), int(index), initialization_timeout=timeout_s)
  elif os.environ.get("JAXLM_DISTRIBUTED") == "1":
    jax.distributed.initialize(initialization_timeout=timeout_s)
