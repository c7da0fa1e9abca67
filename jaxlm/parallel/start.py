"""Multi-host start-up: one call before any array exists; one when the process ends."""

import os
import re
import sys
import time
from collections.abc import Mapping

import jax

from jaxlm.config import ConfigError
from jaxlm.parallel import coordinator, gpu
from jaxlm.parallel.agree import gather
from jaxlm.parallel.rollcall import ProcessLost, RollCall, difference

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
#: Seconds; environment variable -> default. How long to wait for all to come, and how long one may
#: be silent.
START_TIMEOUT, LOST_TIMEOUT = ("JAXLM_START_TIMEOUT_S", 300), ("JAXLM_LOST_TIMEOUT_S", 60)

_rollcall: RollCall | None = None


def start() -> None:
  """Joins the other processes of this run, if there are any, and sets the compiler flags of a GPU,
  if there is one.

  Plain processes set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID in each; Cloud
  TPU, Slurm, Open MPI and Kubernetes are recognised by JAX when JAXLM_DISTRIBUTED=1. Without any of
  these this is a run of one process. Raises ProcessLost, naming them, when processes are missing
  after JAXLM_START_TIMEOUT_S. From then on the death of one process ends the others within seconds,
  that of a host or its network within about JAXLM_LOST_TIMEOUT_S.
  """
  global _rollcall
  gpu.set_flags()
  timeout_s, silence_s = seconds(*START_TIMEOUT), seconds(*LOST_TIMEOUT)
  address, count, index, local = _this_process(timeout_s)
  if count == 1 or _rollcall is not None:
    return
  _rollcall = RollCall.join(address, index, count, timeout_s=timeout_s, silence_s=silence_s)
  # All are there, so this is quick. JAX's own heartbeats come second: they end a process without a
  # sentence.
  with coordinator.separate():
    jax.distributed.initialize(
      address,
      count,
      index,
      local,
      initialization_timeout=max(timeout_s, 30),
      heartbeat_timeout_seconds=2 * silence_s + 10,
      shutdown_timeout_seconds=60,
    )


def several() -> bool:
  """Whether this run has other processes.

  Unlike jax.process_count, it starts no backend where `start` has found them.
  """
  return _rollcall is not None or jax.process_count() > 1


def require_same(facts: Mapping[str, str]) -> None:
  """ConfigError, on all processes and with the key and both values, where one has other facts than
  process 0.

  All must call it, with facts that do not depend on the process. It waits until all have; nothing
  is computed.
  """
  if _rollcall is not None:
    found = _rollcall.differ(dict(facts))
  else:
    told = gather(dict(facts))  # a program has started JAX's processes by itself
    found = next(
      (text for i, there in enumerate(told) if (text := difference(told[0], there, i))), None
    )
  if found is None:
    return
  if _rollcall is not None:
    _rollcall.leave()  # all end now, for this reason
  raise ConfigError(found)


def finish(code: int, *, together: bool = False) -> int:
  """The exit code; with others that wait for this process, a failure ends it here rather than in
  JAX's farewell.

  together: all processes end now in good order, whatever the code.
  """
  if _rollcall is not None:
    if code == 0 or together:
      _rollcall.leave()
    else:
      sys.stdout.flush()
      sys.stderr.flush()
      os._exit(code)
  return code


def explained(error: Exception) -> str | None:
  """What an error of one process says about another, if it does. Waits for news: who dies is known
  within seconds.
  """
  if _rollcall is None:
    return None
  if _rollcall.wait_for_loss(5):
    time.sleep(5)  # the thread that has found the loss says it and ends this process
  return late(str(error), _rollcall.count)


def late(text: str, count: int) -> str | None:
  """The sentence for a barrier of JAX's coordination service that has timed out, None for any other
  text.
  """
  barrier = re.search(r"Barrier timed out\. Id: (\S+?)(?:::\d+)?\.\s", text)
  if barrier is None:
    return None
  who = re.search(r"Some timed out task names:\s*((?:\S*\d+\s*?\n?)+)", text)
  missing = (
    sorted({int(n) for n in re.findall(r"(?:task:)?(\d+)\s*$", who[1], re.MULTILINE)})
    if who
    else []
  )
  named = (
    f"process{'es' * (len(missing) > 1)} {', '.join(map(str, missing))} of {count}"
    if missing
    else "a process"
  )
  return (
    f"{named} did not reach the barrier {barrier[1]!r} in time: stuck, or far behind? Its own output says where. Start "
    f"all processes again with the same command: they resume from the newest complete checkpoint."
  )


def _this_process(timeout_s: int) -> tuple[str, int, int, list[int] | None]:
  """(coordinator address, number of processes, index, local devices or None for all)."""
  given = [name for name in VARIABLES if name in os.environ]
  if given:
    missing = [name for name in VARIABLES if name not in os.environ]
    if missing:
      raise ConfigError(
        f"{', '.join(given)} set but not {', '.join(missing)}; a run of several processes needs all three"
      )
    address, count, index = (os.environ[name] for name in VARIABLES)
    if not re.fullmatch(r"\S+:\d+", address):
      raise ConfigError(f"JAX_COORDINATOR_ADDRESS = {address!r}: wanted host:port of process 0")
    if not (count.isdigit() and index.isdigit() and int(index) < int(count)):
      raise ConfigError(
        f"JAX_PROCESS_ID = {index!r}, JAX_NUM_PROCESSES = {count!r}: wanted 0 <= id < number of processes"
      )
    return address, int(count), int(index), None
  if os.environ.get("JAXLM_DISTRIBUTED") != "1":
    return "", 1, 0, None
  from jax._src.clusters import ClusterEnv  # what jax.distributed.initialize() asks, asked earlier

  found = ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, timeout_s)
  if None in found[:3]:
    raise ConfigError(
      f"JAXLM_DISTRIBUTED=1, but JAX recognises no cluster here (Cloud TPU, Slurm, Open MPI, Kubernetes); "
      f"plain processes set {', '.join(VARIABLES)}"
    )
  address, count, index, local = found
  return address, count, index, local


def seconds(name: str, default: int) -> int:
  """The whole number of seconds in an environment variable, or the default.

  ConfigError for anything else.
  """
  text = os.environ.get(name, str(default))
  if not text.isdigit() or not int(text):
    raise ConfigError(f"{name} = {text!r}: wanted a whole number of seconds")
  return int(text)


__all__ = ["ProcessLost", "explained", "finish", "late", "require_same", "several", "start"]
