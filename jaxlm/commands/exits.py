"""How a command ends.

  0        good
  1        the request was right and it failed: a row, a check, a step, a full disk
  2        the request was wrong: a flag, a key, a path
  128 + n  signal n ended it: 130 Ctrl-C, 143 SIGTERM, 129 SIGHUP, also of a training run that is saved and that the same
           command continues (result.json: finished false), so that
           `jaxlm train ... && jaxlm eval ...` does not go on with half a model; 141 nobody reads
           its output any more (`jaxlm eval ... | head -1`)
  75       a training process is well and has lost another of its run, or has not met it; the same command resumes
  76       a training process hung, printed its stacks and ended (train.hang.ends); the same command resumes

What a person or the system has refused is one sentence on standard error. Any other exception is a
fault of this library and keeps its traceback. With JAXLM_DEBUG=1 the sentences have theirs, too.
"""

import errno
import functools
import io
import os
import pathlib
import re
import select
import sys
import traceback
from collections.abc import Callable, Sequence

from jaxlm.checkpoint.errors import CheckpointError, CheckpointFileError, WeightsError
from jaxlm.config import ConfigError
from jaxlm.paths import RIGHTS, denied

GOOD, FAILED, WRONG = 0, 1, 2
INTERRUPTED, UNREAD = 128 + 2, 128 + 13
#: What a path can be wrong in; any other errno is a failure of a right request.
PATH_ERRORS = {
  errno.ENOENT,
  errno.EEXIST,
  errno.ENOTDIR,
  errno.EISDIR,
  errno.EACCES,
  errno.EPERM,
  errno.EROFS,
  errno.ELOOP,
  errno.ENAMETOOLONG,
  errno.ENOTEMPTY,
}
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def command(name: str, *, refusals: tuple[type[Exception], ...] = ()):
  """Decorator of a command's `main(argv) -> code`.

  refusals: exceptions whose text is for the user, besides those of configurations and checkpoints.
  """

  def decorate(main: Callable[[list[str]], int | None]) -> Callable[[Sequence[str] | None], int]:
    @functools.wraps(main)
    def guarded(argv: Sequence[str] | None = None) -> int:
      try:
        _print_anything()
        if sys.unraisablehook is sys.__unraisablehook__:
          sys.unraisablehook = without_closed_loops
        code = main(list(sys.argv[1:] if argv is None else argv)) or GOOD
        if sys.stdout is not None:
          sys.stdout.flush()  # at the interpreter's end it would be too late for a sentence
        return code
      except (Exception, KeyboardInterrupt, SystemExit) as error:
        return ending(name, error, refusals)

    return guarded

  return decorate


def ending(name: str, error: BaseException, refusals: tuple[type[Exception], ...] = ()) -> int:
  """The exit code of what a command has raised; its sentence is printed.

  What is not for the user is raised again.
  """
  if caused_by(error, BrokenPipeError) and (
    isinstance(error, SystemExit) or _reader_gone()
  ):  # SystemExit: rich's
    _silence()
    return UNREAD
  interrupt = caused_by(
    error, KeyboardInterrupt
  )  # also where a library has met it while it was imported
  if interrupt:
    return refuse(
      name, interrupt if str(interrupt) else "interrupted", getattr(interrupt, "code", INTERRUPTED)
    )
  if isinstance(error, SystemExit):
    if isinstance(error.code, str):
      return refuse(name, error.code, WRONG)
    return int(error.code or GOOD)
  if isinstance(error, CheckpointError):
    return refuse(name, error, FAILED)
  if isinstance(error, (ConfigError, CheckpointFileError, WeightsError, *refusals)):
    return refuse(name, error, WRONG)
  if denied(error):
    return refuse(name, no_right(error), WRONG)
  if isinstance(error, OSError):
    return refuse(name, explain(error), WRONG if error.errno in PATH_ERRORS else FAILED)
  if isinstance(error, MemoryError):
    return refuse(name, f"out of memory: {error}" if str(error) else "out of memory", FAILED)
  if isinstance(error, ImportError) and str(error).startswith(
    "Please install"
  ):  # etils': an object store without its client
    return refuse(name, str(error), WRONG)
  if absent := no_device(error):
    return refuse(name, absent, WRONG)
  if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error):  # XLA's
    return refuse(name, f"out of memory: {str(error).splitlines()[0][:300]}", FAILED)
  raise error


def no_device(error: BaseException) -> str:
  """What to do where JAX has not the device that JAX_PLATFORMS names; '' of another error."""
  said, named = str(error), os.environ.get("JAX_PLATFORMS", "")
  if isinstance(error, AssertionError):  # what JAX raises where no platform of the list has started
    frames = traceback.extract_tb(error.__traceback__)
    if not named or not frames or not frames[-1].filename.endswith("xla_bridge.py"):
      return ""
    platform, why = named, ""
  else:
    found = re.search(r"(?:Unable to initialize backend|Unknown backend) '?(\w+)'?", said)
    if not isinstance(error, RuntimeError) or not found:
      return ""
    platform, why = found[1], f" ({said.splitlines()[0][:200]})"
  package = {"cuda": "gpu", "gpu": "gpu", "tpu": "tpu"}.get(platform)
  install = f", or install its plugin (pip install 'jaxlm[{package}]')" if package else ""
  return (
    f"JAX_PLATFORMS={named or platform}: JAX finds no such device here{why}; set JAX_PLATFORMS=cpu, unset it for whatever "
    f"is there{install}"
  )


def no_right(error: BaseException) -> str:
  """The sentence for what an object store has refused (`paths.denied`)."""
  said = (str(error) or type(error).__name__).splitlines()[0][:200]
  return f"the object store refuses ({said}); {RIGHTS}"


def refuse(name: str, sentence, code: int) -> int:
  """Prints 'jaxlm train: sentence' on standard error; returns the code."""
  if os.environ.get("JAXLM_DEBUG", "0") not in ("", "0") and sys.exc_info()[0] is not None:
    traceback.print_exc()
  try:
    print(f"{name}: {_visible(str(sentence))}", file=sys.stderr, flush=True)
  except BrokenPipeError:
    _silence()
  return code


def without_closed_loops(unraisable) -> None:
  """Python's report of an exception that nobody can catch, but for what a write of Orbax that has
  ended tells its loop.
  """
  if not (
    isinstance(unraisable.exc_value, RuntimeError)
    and str(unraisable.exc_value) == "Event loop is closed"
  ):
    sys.__unraisablehook__(unraisable)


def _visible(sentence: str) -> str:
  """The sentence with control characters as escapes: it may quote a file of others, and a terminal
  would obey them.
  """
  return "".join(
    c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape", "surrogatepass").decode()
    for c in sentence
  )


def explain(error: OSError) -> str:
  """One sentence: which file, what is wrong with it, what to do."""
  path = (
    os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes, os.PathLike)) else None
  )
  if error.errno in FULL:
    where = f"the disk of {path}" if path else "a disk"
    return f"{where} is full ({error.strerror}); free space there, and give the same command again"
  if error.errno in (errno.EMFILE, errno.ENFILE):
    return f"too many files are open{f' ({path})' if path else ''}; raise the limit with `ulimit -n 65536`"
  if path is None:
    return str(error) or type(error).__name__
  at, choose = pathlib.Path(path), _choose(path)
  blocked = _file_on_the_way(at)
  if error.errno in (errno.ENOTDIR, errno.EEXIST) and blocked is not None:
    below = "" if blocked == at else f", and {path} would be below it"
    return f"{blocked} is a file where a folder is wanted{below}; {choose}"
  if error.errno == errno.EISDIR:
    return f"{path} is a folder where a file is wanted; {choose}"
  if error.errno in (errno.EACCES, errno.EPERM):
    return f"{path} is not open to you ({error.strerror}); change its permissions, or {choose}"
  if error.errno == errno.EROFS:
    return f"{path} cannot be written: its file system is read-only; {choose}"
  if error.errno == errno.ENOENT:
    broken = next((p for p in (at, *at.parents) if p.is_symlink() and not p.exists()), None)
    if broken is not None:
      return f"{broken} is a link to {os.readlink(broken)}, which does not exist; mend the link, or {choose}"
    return f"{path} does not exist, or cannot be made; {choose}"
  if error.errno == errno.ELOOP:
    return f"{path} is a link that leads back to itself; mend the link, or {choose}"
  if error.errno == errno.ENAMETOOLONG:
    return f"a name in {path[:80]}... is too long for its file system; {choose}"
  return f"{path}: {error.strerror or error}"


def _choose(path: str) -> str:
  """The remedy that fits the place: the cache has a variable of its own."""
  from jaxlm.data.folders import data_dir

  try:
    cached = pathlib.Path(path).absolute().is_relative_to(data_dir())
  except ConfigError:
    cached = False
  return "set JAXLM_DATA to another folder" if cached else "choose another path"


def _file_on_the_way(path: pathlib.Path) -> pathlib.Path | None:
  """The first of the path and what is above it that exists, if it is no folder."""
  for at in (path, *path.parents):
    try:
      if at.exists():
        return None if at.is_dir() else at
    except OSError:  # below a file, below a folder that may not be read
      continue
  return None


def caused_by(error: BaseException | None, kind: type[BaseException]) -> BaseException | None:
  """The error of this kind that it is, or because of which it was raised."""
  seen = set()
  while error is not None and id(error) not in seen:
    if isinstance(error, kind):
      return error
    seen.add(id(error))
    error = error.__cause__ or error.__context__
  return None


def _reader_gone() -> bool:
  """Whether nobody reads standard output or standard error any more."""
  for stream in (sys.stdout, sys.stderr):
    if stream is None:
      continue
    try:
      stream.flush()
      poll = select.poll()
      poll.register(stream.fileno(), 0)
      if any(event & select.POLLERR for _, event in poll.poll(0)):
        return True
    except BrokenPipeError:
      return True
    except (
      OSError,
      ValueError,
      AttributeError,
    ):  # no file descriptor: replaced by a program, closed; no poll here
      continue
  return False


def _silence() -> None:
  """What is still in the buffers goes nowhere, rather than into an error when the interpreter ends."""
  for stream in (sys.stdout, sys.stderr):
    try:
      stream.flush()
    except BrokenPipeError:
      try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
      except (OSError, ValueError):
        pass
    except (OSError, ValueError, AttributeError):
      pass


def _print_anything() -> None:
  """A character that the terminal's encoding has not is printed as its escape; a name on disk may
  be no text at all.
  """
  if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
    sys.stdout.reconfigure(errors="backslashreplace")
