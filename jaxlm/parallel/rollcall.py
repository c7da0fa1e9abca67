"""Which process is missing: one TCP line from every process of a run to process 0, open as long as the run.

JAX's own start-up ends, when somebody is missing, by aborting every process with "DEADLINE_EXCEEDED ... RegisterTask",
which names nobody and cannot be caught; and a process that dies in mid-run is noticed by heartbeats, a minute or more
later, while the others hang in a collective. Here process 0 knows who is not there. The line uses the coordinator's own
port, before JAX's service listens on it, so nothing else has to be opened. The kernel closes the line of a process that
dies, at once; its keep-alive notices a host that is gone.
"""

import os
import selectors
import socket
import sys
import threading
import time

GREETING, GO, BYE, MISSING, GONE = b"jaxlm", b"go", b"bye", b"missing", b"gone"


class ProcessLost(RuntimeError):
  """A process of this run did not come, or is gone; the message says which and what to do."""


class RollCall:
  """Every process of a run; made by `join`, which returns when all are there.

  A process that goes without `leave` ends all others: `lost` is called with the sentence that says which one, in a
  thread of its own, and by default prints it and exits with code 1 (a main thread that waits in a collective for a
  process that is dead can only be ended from outside).
  """

  def __init__(self, index: int, count: int, lines: dict[int, "_Line"], lost=None):
    self.index, self.count, self.lines = index, count, lines
    self.lost, self.found, self.leaving = lost or _exit, threading.Event(), False
    threading.Thread(target=self._watch, name="rollcall", daemon=True).start()

  @classmethod
  def join(cls, address: str, index: int, count: int, *, timeout_s: float = 300, silence_s: float = 60,
           lost=None) -> "RollCall":
    """Waits for all `count` processes, ProcessLost after timeout_s. silence_s: a host silent for so long is gone."""
    host, _, port = address.rpartition(":")
    answer = _answer if index == 0 else _call
    lines = answer(host, int(port), index, count, timeout_s, address)
    for line in lines.values():
      line.keep_alive(silence_s)
    return cls(index, count, lines, lost)

  def leave(self) -> None:
    """This process is done: its going is no loss."""
    self.leaving = True
    for line in self.lines.values():
      line.say(BYE)

  def wait_for_loss(self, seconds: float) -> bool:
    """Whether a loss is known; a failure in this process may be the consequence of one that is about to be."""
    return self.found.wait(seconds)

  def _watch(self) -> None:
    with selectors.DefaultSelector() as selector:
      for other, line in self.lines.items():
        selector.register(line.socket, selectors.EVENT_READ, other)
      while selector.get_map():
        for key, _ in selector.select():
          words = self.lines[key.data].hear()
          if words is None or words[0] in (BYE, GONE):
            selector.unregister(key.fileobj)
          if (words is None or words[0] == GONE) and not self.leaving:
            self._report(key.data if words is None else int(words[1]))

  def _report(self, gone: int) -> None:
    if self.index == 0:
      for line in self.lines.values():
        line.say(GONE, gone)
    self.found.set()
    self.lost(f"process {gone} of {self.count} has ended or cannot be reached, and no step can be made without it; its own "
              f"output says why. Start all processes again with the same command: they resume from the newest complete "
              f"checkpoint.")


class _Line:
  """Words in lines of ASCII over a socket."""

  def __init__(self, connection: socket.socket):
    self.socket, self.buffer = connection, b""
    self.socket.settimeout(None)

  def keep_alive(self, silence_s: float) -> None:
    self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    every = max(int(silence_s / 4), 1)
    for name, value in (("TCP_KEEPIDLE", every), ("TCP_KEEPINTVL", every), ("TCP_KEEPCNT", 3),
                        ("TCP_USER_TIMEOUT", int(silence_s * 1000))):
      if hasattr(socket, name):     # macOS has some of them
        self.socket.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

  def say(self, *words) -> None:
    try:
      self.socket.sendall(b" ".join(w if isinstance(w, bytes) else str(w).encode() for w in words) + b"\n")
    except OSError:     # who does not hear it is gone, and `hear` says so
      pass

  def hear(self, timeout_s: float | None = None) -> list[bytes] | None:
    """The next line's words; None when the other side is gone. TimeoutError."""
    self.socket.settimeout(timeout_s)
    try:
      while b"\n" not in self.buffer:
        more = self.socket.recv(4096)
        if not more:
          return None
        self.buffer += more
    except TimeoutError as error:
      if error.errno is None:      # with a number it is the kernel's: the keep-alive has given up
        raise
      return None
    except OSError:
      return None
    finally:
      self.socket.settimeout(None)
    line, _, self.buffer = self.buffer.partition(b"\n")
    return line.split() or [b""]


def _answer(host, port, index, count, timeout_s, address) -> dict[int, _Line]:
  """Process 0: takes the calls of all others, then lets everybody go on."""
  lines, end = {}, time.monotonic() + timeout_s
  dual = socket.has_dualstack_ipv6()
  try:
    server = socket.create_server(("", port), family=socket.AF_INET6 if dual else socket.AF_INET, dualstack_ipv6=dual,
                                  backlog=1024)
  except OSError as error:
    raise ProcessLost(f"process 0 cannot listen on port {port} of the coordinator {address} ({error.strerror}): is "
                      f"another run using it?") from None
  with server:
    while len(lines) < count - 1:
      try:
        server.settimeout(max(end - time.monotonic(), 0.001))
        line = _Line(server.accept()[0])
        words = line.hear(min(5, max(end - time.monotonic(), 0.001)))
      except TimeoutError:
        if time.monotonic() < end:      # somebody connected and said nothing
          continue
        missing = [other for other in range(1, count) if other not in lines]
        for line in lines.values():
          line.say(MISSING, *missing)
        raise ProcessLost(_missing(missing, count, timeout_s, address)) from None
      if words is None or len(words) != 3 or words[0] != GREETING or not (words[1] + words[2]).isdigit():
        continue      # not one of us
      other, others = int(words[1]), int(words[2])
      if others != count or not 0 < other < count or other in lines:
        why = f"says it is process {other} of {others}" + (", as another one does" if other in lines else "")
        raise ProcessLost(f"a process {why}, in a run of {count}; give each its own JAX_PROCESS_ID and all the same "
                          f"JAX_NUM_PROCESSES")
      lines[other] = line
  for line in lines.values():
    line.say(GO)
  return lines


def _call(host, port, index, count, timeout_s, address) -> dict[int, _Line]:
  """Any other process: calls process 0 until it answers."""
  end = time.monotonic() + timeout_s
  while True:
    try:
      line = _Line(socket.create_connection((host, port), timeout=max(end - time.monotonic(), 0.001)))
      break
    except OSError as error:
      if time.monotonic() + 0.2 > end:
        raise ProcessLost(_missing([0], count, timeout_s, address) +
                          f" Process {index} could not reach it ({error.strerror or error}).") from None
      time.sleep(0.2)
  line.say(GREETING, index, count)
  try:
    words = line.hear(timeout_s + 30)     # process 0 may have started its own clock later
  except TimeoutError:
    words = [MISSING, b"0"]
  if words == [GO]:
    return {0: line}
  if words is None:
    raise ProcessLost(f"process 0 of {count} ended while process {index} waited for the others (coordinator {address}); "
                      f"its own output says why")
  raise ProcessLost(_missing([int(word) for word in words[1:]], count, timeout_s, address))


def _missing(missing: list[int], count: int, timeout_s: float, address: str) -> str:
  named = ", ".join(map(str, missing[:20])) + (f" and {len(missing) - 20} more" if len(missing) > 20 else "")
  several = len(missing) > 1
  return (f"process{'es' if several else ''} {named} of {count} did not join within {timeout_s:g} s (coordinator {address}): "
          f"{'are they' if several else 'is it'} running?")


def _exit(sentence: str) -> None:
  print(f"jaxlm: {sentence}", file=sys.stderr, flush=True)
  sys.stdout.flush()
  os._exit(1)
