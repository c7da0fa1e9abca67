"""JAX's coordination service in a process of its own, which outlives process 0 by a few seconds.

JAX runs the service inside process 0. When that dies, every other process's client aborts at once,
with a dump and before `rollcall` can say who is gone. Served from here, the clients notice nothing
in these seconds, and all end with the sentence.
"""

import contextlib
import subprocess
import sys
import time

#: Seconds that the service goes on after process 0.
LINGER_S = 5


class Service:
  """What JAX's own `DistributedRuntimeService` is to JAX: something to shut down."""

  def __init__(self, address: str, count: int, **options):
    values = [f"{name}={value}" for name, value in options.items() if value is not None]
    self.process = subprocess.Popen(
      [
        sys.executable,
        "-c",
        f"import sys; sys.path[:] = {sys.path!r}\n"
        "from jaxlm.parallel.coordinator import main; main()",
        address,
        str(count),
        *values,
      ],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      start_new_session=True,
    )
    if self.process.stdout.readline() != "ready\n":
      raise RuntimeError(
        f"JAX's coordination service did not start at {address}; its output says why"
      )

  def shutdown(self) -> None:
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
      self.process.communicate("shutdown\n", timeout=30)


@contextlib.contextmanager
def separate():
  """While JAX starts: process 0 starts the service in a process of its own."""
  from jax._src import distributed

  library, own = distributed._jax, distributed._jax.get_distributed_runtime_service
  library.get_distributed_runtime_service = Service
  try:
    yield
  finally:
    library.get_distributed_runtime_service = own


def main() -> None:
  """Serves until standard input says or ends."""
  from jaxlib import _jax

  address, count, *options = sys.argv[1:]

  def number(text):
    return text == "True" if text in ("True", "False") else int(text)

  service = _jax.get_distributed_runtime_service(
    address,
    int(count),
    **{name: number(value) for name, _, value in (option.partition("=") for option in options)},
  )
  print("ready", flush=True)
  if not sys.stdin.readline():  # process 0 has ended without a word
    time.sleep(LINGER_S)
  service.shutdown()
