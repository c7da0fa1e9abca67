"""Which implementation each op takes: the ops say it while they are traced, and whoever asks listens.

`jaxlm kernels` and the log of a training run read it. Nobody listens otherwise, and nothing is
computed then.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

_heard: contextvars.ContextVar[list | None] = contextvars.ContextVar("choices", default=None)

SLOWER = (
  "it is supported; it is not the default for these shapes on this device (kernels/README.md)"
)


#: Implementations that no device has run yet: opt-in, and the log says so.
NEVER_RUN = ("pallas_gpu",)
UNTRIED = "it is supported; no device has run it yet, and it is taken only by name"


class Choice(NamedTuple):
  """What one call of an op took. arguments: names, dtypes and shapes. named: it was asked for by
  name. refused: (other implementation, sentence that says why it was not taken)."""

  op: str
  implementation: str
  arguments: str
  named: bool
  refused: tuple[tuple[str, str], ...]


@contextlib.contextmanager
def recorded() -> Iterator[list[Choice]]:
  """Within it every op that is traced adds its choice to the list, equal ones once.

  A function whose trace is cached by jax.jit is not traced again, and says nothing.
  """
  heard: list[Choice] = []
  token = _heard.set(heard)
  try:
    yield heard
  finally:
    _heard.reset(token)


def note(
  op: str,
  implementation: str,
  arrays: Mapping[str, Any],
  *,
  named: bool = False,
  refused: Callable[[], Mapping[str, str | None]] = dict,
) -> None:
  """An op says what it takes. refused() gives for each other implementation the sentence of its
  `supports`, None where it is supported and its table does not prefer it; it is called only if
  somebody listens."""
  heard = _heard.get()
  if heard is None:
    return
  others = {} if named else refused()
  choice = Choice(
    op,
    implementation,
    ", ".join(f"{name} {x.dtype} {tuple(x.shape)}" for name, x in arrays.items()),
    named,
    tuple(
      (name, reason or (UNTRIED if name in NEVER_RUN else SLOWER))
      for name, reason in others.items()
      if name != implementation
    ),
  )
  if choice not in heard:
    heard.append(choice)


def choose(
  op: str,
  named: str | None,
  known: Iterable[str],
  arrays: Mapping[str, Any],
  *,
  preferred: bool,
  reason: Callable[[], str | None],
  gpu_reason: Callable[[], str | None] | None = None,
) -> str:
  """The implementation of an op with a Pallas kernel for TPUs: `named`; else "pallas" where it is
  preferred and supported; else "xla". It is noted.

  reason(): why the kernel does not support these arguments, None where it does; gpu_reason(): the
  same of "pallas_gpu", where there is one. NotImplementedError where a name is not known, or where
  the kernel is named and not supported.
  """
  reasons = {"pallas": reason} | ({} if gpu_reason is None else {"pallas_gpu": gpu_reason})
  if named not in (None, *known):
    raise NotImplementedError(f"{op} has no implementation {named!r}; it has {', '.join(known)}")
  name = named or ("pallas" if preferred and reason() is None else "xla")
  if name in reasons and (refused := reasons[name]()) is not None:
    raise NotImplementedError(f"{op} implementation {name!r}: {refused}")
  note(
    op,
    name,
    arrays,
    named=named is not None,
    refused=lambda: {kernel: why() for kernel, why in reasons.items()},
  )
  return name


def summary(choices: list[Choice]) -> str:
  """'attention splash, phase pallas and xla': every op with all that it takes."""
  taken: dict[str, set[str]] = {}
  for choice in choices:
    taken.setdefault(choice.op, set()).add(choice.implementation)

  def said(name):
    return f"{name} (no device has run it yet)" if name in NEVER_RUN else name

  return ", ".join(
    f"{op} {' and '.join(map(said, sorted(names)))}" for op, names in sorted(taken.items())
  )
