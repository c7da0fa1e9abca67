"""Which process is missing: one TCP line from every process of a run to process 0, open as long as
the run.

JAX's own start-up ends, when somebody is missing, by aborting every process with "DEADLINE_EXCEEDED
... RegisterTask", which names nobody and cannot be caught; and a process that dies in mid-run is
noticed by heartbeats, a minute or more later, while the others hang in a collective. Here process 0
knows who is not there. The line uses the coordinator's own port, before JAX's service listens on
it, so nothing else has to be opened. The kernel closes the line of a process that dies, at once.
Every process says regularly that it lives: who is silent for too long (the host is gone, the
process is stopped) is lost too. The lines also carry what all must agree on before they compute
anything together.
"""

import base64
import errno
import json
import os
import queue
import selectors
import socket
import sys
import threading
import time

GREETING, GO, BYE, MISSING, GONE = b"jaxlm", b"go", b"bye", b"missing", b"gone"
ALIVE, FACTS, VERDICT = b"alive", b"facts", b"verdict"


#: Exit code of a process that is well itself and has lost another, or has not met it: the same
#: command, given to all, resumes. It is EX_TEMPFAIL of sysexits.h.
LOST = 75


class ProcessLost(RuntimeError):
  """A process of this run did not come, or is gone; the message says which and what to do."""


class RollCall:
  """Every process of a run; made by `join`, which returns when all are there.

  A process that goes without `leave` ends all others: `lost` is called with the sentence that says
  which one, in a thread of its own, and by default prints it and exits with code 75 (a main thread
  that waits in a collective for a process that is dead can only be ended from outside).
  """

  def __init__(
    self, index: int, count: int, lines: dict[int, "_Line"], lost=None, silence_s: float = 60
  ):
    self.index, self.count, self.lines, self.silence_s = index, count, lines, silence_s
    self.lost, self.found, self.leaving = lost or _exit, threading.Event(), False
    self.inbox = {other: queue.Queue() for other in lines}  # facts, or the verdict on them
    for target in (self._watch, self._beat):
      threading.Thread(target=target, name="rollcall", daemon=True).start()

  @classmethod
  def join(
    cls,
    address: str,
    index: int,
    count: int,
    *,
    timeout_s: float = 300,
    silence_s: float = 60,
    lost=None,
  ) -> "RollCall":
    """Waits for all `count` processes, ProcessLost after timeout_s. silence_s: a host silent for so
    long is gone.
    """
    host, _, port = address.rpartition(":")
    answer = _answer if index == 0 else _call
    lines = answer(host, int(port), index, count, timeout_s, address)
    for line in lines.values():
      line.keep_alive(silence_s)
    return cls(index, count, lines, lost, silence_s)

  def leave(self) -> None:
    """This process is done: its going is no loss."""
    self.leaving = True
    for line in self.lines.values():
      line.say(BYE)

  def wait_for_loss(self, seconds: float) -> bool:
    """Whether a loss is known; a failure in this process may be the consequence of one that is
    about to be.
    """
    return self.found.wait(seconds)

  def differ(self, facts: dict[str, str]) -> str | None:
    """The sentence about the first of these in which a process differs from process 0, the same on
    all; None: none does.

    All must call it, at the same point and in the same order; it waits until all have.
    """
    if self.index:
      self.lines[0].say(FACTS, _pack(facts))
      return _unpack(self.inbox[0].get())
    found = None
    for other in sorted(self.lines):
      found = found or difference(facts, _unpack(self.inbox[other].get()), other)
    for line in self.lines.values():
      line.say(VERDICT, _pack(found))
    return found

  def _beat(self) -> None:
    while not self.leaving:
      for line in self.lines.values():
        line.say(ALIVE)
      time.sleep(self.silence_s / 4)

  def _watch(self) -> None:
    heard = dict.fromkeys(self.lines, time.monotonic())
    with selectors.DefaultSelector() as selector:
      for other, line in self.lines.items():
        selector.register(line.socket, selectors.EVENT_READ, other)
      while selector.get_map():
        asked = time.monotonic()
        ready = selector.select(self.silence_s / 4)
        now = time.monotonic()
        if (
          now - asked > self.silence_s / 2
        ):  # this process has been stopped, and the others were heard by nobody
          heard = dict.fromkeys(heard, now)
        for key, _ in ready:
          heard[key.data] = now
          if not self._hear(key.data):
            selector.unregister(key.fileobj)
        for other in [key.data for key in selector.get_map().values()]:
          if now - heard[other] > self.silence_s and not self.leaving:
            self._report(
              other,
              f"has not been heard of for {self.silence_s:g} s (JAXLM_LOST_TIMEOUT_S): it is stopped, or its "
              f"host or network is gone",
            )
            return

  def _hear(self, other: int) -> bool:
    """Takes all that one has said; whether there will be more."""
    line = self.lines[other]
    while True:
      words = line.hear()
      if words is None or words[0] == GONE:
        if not self.leaving:
          self._report(
            *(other,) if words is None else (int(words[1]), b" ".join(words[2:]).decode())
          )
        return False
      if words[0] == BYE:
        return False
      if words[0] in (FACTS, VERDICT):
        self.inbox[other].put(words[1])
      if b"\n" not in line.buffer:
        return True

  def _report(self, gone: int, what: str = "") -> None:
    what = what or "has ended or cannot be reached"
    if self.index == 0:
      for line in self.lines.values():
        line.say(GONE, gone, what)
    self.found.set()
    self.lost(
      f"process {gone} of {self.count} {what}, and no step can be made without it; its own "
      f"output says why. Start all processes again with the same command: they resume from the newest complete "
      f"checkpoint."
    )


def difference(here: dict[str, str], there: dict[str, str], other: int) -> str | None:
  """A sentence about the first key in which process `other` is not as process 0."""
  keys = [key for key in {**here, **there} if here.get(key) != there.get(key)]
  if not keys:
    return None
  more = f" (and {', '.join(keys[1:6])}{' and others' * (len(keys) > 6)})" if keys[1:] else ""
  return (
    f"the processes of this run differ: {keys[0]} is {here.get(keys[0], 'absent')} in process 0 and "
    f"{there.get(keys[0], 'absent')} in process {other}{more}; start all of them with the same command, code and data"
  )


def _pack(value) -> bytes:
  return base64.b64encode(json.dumps(value).encode())


def _unpack(word: bytes):
  return json.loads(base64.b64decode(word))


class _Line:
  """Words in lines of ASCII over a socket."""

  def __init__(self, connection: socket.socket):
    self.socket, self.buffer, self.speaking = connection, b"", threading.Lock()
    self.socket.settimeout(None)

  def keep_alive(self, silence_s: float) -> None:
    self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    every = max(int(silence_s / 4), 1)
    for name, value in (
      ("TCP_KEEPIDLE", every),
      ("TCP_KEEPINTVL", every),
      ("TCP_KEEPCNT", 3),
      ("TCP_USER_TIMEOUT", int(silence_s * 1000)),
    ):
      if hasattr(socket, name):  # macOS has some of them
        self.socket.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

  def say(self, *words) -> None:
    try:
      with self.speaking:
        self.socket.sendall(
          b" ".join(w if isinstance(w, bytes) else str(w).encode() for w in words) + b"\n"
        )
    except OSError:  # who does not hear it is gone, and `hear` says so
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
      if error.errno is None:  # with a number it is the kernel's: the keep-alive has given up
        raise
      return None
    except OSError:
      return None
    finally:
      if timeout_s is not None:
        self.socket.settimeout(None)
    line, _, self.buffer = self.buffer.partition(b"\n")
    return line.split() or [b""]


def _answer(host, port, index, count, timeout_s, address) -> dict[int, _Line]:
  """Process 0: takes the calls of all others, then lets everybody go on."""
  lines, end = {}, time.monotonic() + timeout_s
  with _listen(port, address, min(timeout_s, 10)) as server:
    while len(lines) < count - 1:
      try:
        server.settimeout(max(end - time.monotonic(), 0.001))
        line = _Line(server.accept()[0])
        words = line.hear(min(5, max(end - time.monotonic(), 0.001)))
      except TimeoutError:
        if time.monotonic() < end:  # somebody connected and said nothing
          continue
        missing = [other for other in range(1, count) if other not in lines]
        for line in lines.values():
          line.say(MISSING, *missing)
        raise ProcessLost(_missing(missing, count, timeout_s, address)) from None
      if (
        words is None
        or len(words) != 3
        or words[0] != GREETING
        or not (words[1] + words[2]).isdigit()
      ):
        continue  # not one of us
      other, others = int(words[1]), int(words[2])
      if others != count or not 0 < other < count or other in lines:
        why = f"says it is process {other} of {others}" + (
          ", as another one does" if other in lines else ""
        )
        raise ProcessLost(
          f"a process {why}, in a run of {count}; give each its own JAX_PROCESS_ID and all the same "
          f"JAX_NUM_PROCESSES"
        )
      lines[other] = line
  for line in lines.values():
    line.say(GO)
  return lines


def _listen(port: int, address: str, patience_s: float) -> socket.socket:
  """A server socket; what an earlier run has left there may take seconds to go."""
  dual, end = socket.has_dualstack_ipv6(), time.monotonic() + patience_s
  while True:
    try:
      return socket.create_server(
        ("", port),
        family=socket.AF_INET6 if dual else socket.AF_INET,
        dualstack_ipv6=dual,
        backlog=1024,
      )
    except OSError as error:
      if error.errno != errno.EADDRINUSE or time.monotonic() > end:
        raise ProcessLost(
          f"process 0 cannot listen on port {port} of the coordinator {address} ({error.strerror}): is "
          f"another run using it?"
        ) from None
      time.sleep(0.2)


def _call(host, port, index, count, timeout_s, address) -> dict[int, _Line]:
  """Any other process: calls process 0 until it answers."""
  end = time.monotonic() + timeout_s
  while True:
    try:
      line = _Line(
        socket.create_connection((host, port), timeout=max(end - time.monotonic(), 0.001))
      )
      break
    except OSError as error:
      if time.monotonic() + 0.2 > end:
        raise ProcessLost(
          _missing([0], count, timeout_s, address)
          + f" Process {index} could not reach it ({error.strerror or error})."
        ) from None
      time.sleep(0.2)
  line.say(GREETING, index, count)
  try:
    words = line.hear(timeout_s + 30)  # process 0 may have started its own clock later
  except TimeoutError:
    words = [MISSING, b"0"]
  if words == [GO]:
    return {0: line}
  if words is None:
    raise ProcessLost(
      f"process 0 of {count} ended while process {index} waited for the others (coordinator {address}); "
      f"its own output says why"
    )
  raise ProcessLost(_missing([int(word) for word in words[1:]], count, timeout_s, address))


def _missing(missing: list[int], count: int, timeout_s: float, address: str) -> str:
  named = ", ".join(map(str, missing[:20])) + (
    f" and {len(missing) - 20} more" if len(missing) > 20 else ""
  )
  several = len(missing) > 1
  return (
    f"process{'es' if several else ''} {named} of {count} did not join within {timeout_s:g} s (coordinator {address}): "
    f"{'are they' if several else 'is it'} running?"
  )


def _exit(sentence: str) -> None:
  print(f"jaxlm: {sentence}", file=sys.stderr, flush=True)
  sys.stdout.flush()
  os._exit(LOST)
