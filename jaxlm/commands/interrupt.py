"""Ctrl-C while a command is still importing libraries: one sentence and code 130, at once.

Nothing is begun then that would have to be tidied up, and a library that is interrupted in its
middle makes a traceback of its own out of it. Anywhere else Ctrl-C is the KeyboardInterrupt that it
always is.
"""

import contextlib
import os
import signal

IMPORT = "<frozen importlib._bootstrap>"


@contextlib.contextmanager
def during_imports():
  """Installs the handler, and puts back what was there; only where Python's own is, and in the main
  thread.
  """
  if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
    yield
    return
  try:
    signal.signal(signal.SIGINT, _handle)
  except ValueError:  # not the main thread
    yield
    return
  try:
    yield
  finally:
    if signal.getsignal(signal.SIGINT) is _handle:
      signal.signal(signal.SIGINT, signal.default_int_handler)


def _handle(number, frame):
  while frame is not None:
    if frame.f_code.co_filename == IMPORT:
      with contextlib.suppress(OSError):
        os.write(2, b"jaxlm: interrupted while it was loading\n")
      os._exit(128 + signal.SIGINT)
    frame = frame.f_back
  raise KeyboardInterrupt
