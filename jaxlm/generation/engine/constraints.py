r"""What an answer may be: state machines over bytes, behind one contract.

A constraint reads an answer byte by byte. `start()` is the state before the first byte;
`advance(state, byte)` the state after one more, or None if no allowed text begins so; `complete(state)`
says whether the text so far is a whole allowed one. States are hashable and are never changed, so that
particles share them. `satisfiable()` says whether there is any allowed text: True, False, or None where
that is not decidable here.

  DFA        a table of transitions
  Brackets   balanced brackets of several kinds, up to a depth
  JSON       a subset: objects, arrays, strings without escapes, integers, true, false, null
  Callback   any Python function of the bytes so far
  Grammar    a regular expression or a JSON schema, read by the package llguidance (extra
             `constraints`; MIT), which works on bytes
"""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from jaxlm.config import ConfigError
from jaxlm.json_text import dumps


class Constraint:
  """Base. Override `start`, `advance` and `complete`."""

  def start(self) -> Hashable:
    raise NotImplementedError(f"{type(self).__name__} has no first state")

  def advance(self, state, byte: int) -> Hashable | None:
    raise NotImplementedError(f"{type(self).__name__} reads nothing")

  def complete(self, state) -> bool:
    raise NotImplementedError(f"{type(self).__name__} never ends")

  def satisfiable(self) -> bool | None:
    """Whether some text is allowed; None: unknown before decoding."""
    return None

  def read(self, state, text: bytes) -> Hashable | None:
    """The state after more bytes."""
    for byte in text:
      state = self.advance(state, byte)
      if state is None:
        return None
    return state


@dataclasses.dataclass(frozen=True)
class DFA(Constraint):
  """transitions: {state: {byte: state}}. accepting: states in which a text may end. first: state.

  A byte that leads where no accepting state can be reached is not allowed, unless `dead_ends`: then
  a text may run into a state from which nothing is complete.
  """

  transitions: Mapping[Any, Mapping[int, Any]]
  accepting: frozenset
  first: Any = 0
  dead_ends: bool = False

  @functools.cached_property
  def alive(self) -> frozenset:
    """States from which an accepting one can be reached."""
    alive = set(self.accepting)
    while True:
      more = {
        s
        for s, nexts in self.transitions.items()
        if s not in alive and any(t in alive for t in nexts.values())
      }
      if not more:
        return frozenset(alive)
      alive |= more

  def start(self):
    return self.first

  def advance(self, state, byte):
    found = self.transitions.get(state, {}).get(byte)
    return found if found is not None and (self.dead_ends or found in self.alive) else None

  def complete(self, state):
    return state in self.accepting

  def satisfiable(self):
    return self.first in self.alive


@dataclasses.dataclass(frozen=True)
class Brackets(Constraint):
  """Balanced texts of brackets, pairs of two bytes each; max_depth: brackets that are open at once."""

  pairs: tuple[bytes, ...] = (b"()", b"[]")
  max_depth: int = 8
  allow_empty: bool = False

  def start(self):
    return (b"", False)

  def advance(self, state, byte):
    stack, _ = state
    for opening, closing in self.pairs:
      if byte == opening:
        return (stack + bytes([closing]), True) if len(stack) < self.max_depth else None
      if byte == closing:
        return (stack[:-1], True) if stack[-1:] == bytes([closing]) else None
    return None

  def complete(self, state):
    stack, begun = state
    return not stack and (begun or self.allow_empty)

  def satisfiable(self):
    return self.allow_empty or (bool(self.pairs) and self.max_depth > 0)


_WORDS = (b"true", b"false", b"null")


@dataclasses.dataclass(frozen=True)
class JSON(Constraint):
  """One JSON value without spaces: objects, arrays, strings of printable ASCII without escapes,
  integers without leading zeros, true, false, null. max_depth: of objects and arrays.

  A state is (stack, expected): the stack has b"}" and b"]" of what is open, `expected` says what may
  follow.
  """

  max_depth: int = 4
  only_objects: bool = True

  def start(self):
    return (b"", "object" if self.only_objects else "value")

  def complete(self, state):
    stack, expected = state
    return not stack and (expected == "after" or expected in ("digits", "zero"))

  def satisfiable(self):
    return self.max_depth > 0 or not self.only_objects

  def advance(self, state, byte):
    stack, expected = state
    char = bytes([byte])
    if expected in ("digits", "zero"):
      if expected == "digits" and char.isdigit():
        return state
      expected = "after"
    if isinstance(expected, bytes):  # the rest of a word
      return (stack, expected[1:] or "after") if char == expected[:1] else None
    if expected in ("string", "name"):
      if char == b'"':
        return (stack, "after" if expected == "string" else "colon")
      return state if 32 <= byte < 127 and char != b"\\" else None
    if expected == "colon":
      return (stack, "value") if char == b":" else None
    if expected in ("first name", "next name"):
      if char == b'"':
        return (stack, "name")
      return (stack[:-1], "after") if char == b"}" and expected == "first name" else None
    if expected == "after":
      if not stack:
        return None
      if char == b",":
        return (stack, "next name" if stack.endswith(b"}") else "value")
      return (stack[:-1], "after") if char == stack[-1:] else None
    if expected == "first value" and char == b"]":
      return (stack[:-1], "after")
    if expected == "minus":
      return (stack, "digits") if char.isdigit() and char != b"0" else None
    if char == b"{":
      return (stack + b"}", "first name") if len(stack) < self.max_depth else None
    if expected == "object":
      return None
    if char == b"[":
      return (stack + b"]", "first value") if len(stack) < self.max_depth else None
    if char == b'"':
      return (stack, "string")
    if char == b"-":
      return (stack, "minus")
    if char.isdigit():
      return (stack, "zero" if char == b"0" else "digits")
    for word in _WORDS:
      if char == word[:1]:
        return (stack, word[1:])
    return None


@dataclasses.dataclass(frozen=True)
class Callback(Constraint):
  """may_begin(bytes) -> whether an allowed text may begin so; is_whole(bytes) -> whether it is one."""

  may_begin: Callable[[bytes], bool]
  is_whole: Callable[[bytes], bool]

  def start(self):
    return b""

  def advance(self, state, byte):
    text = state + bytes([byte])
    return text if self.may_begin(text) else None

  def complete(self, state):
    return self.is_whole(state)


@dataclasses.dataclass(frozen=True)
class Grammar(Constraint):
  """A regular expression, or a JSON schema (a mapping), that the whole text must match.

  A state is the text so far. ConfigError: the package llguidance is not installed, or it cannot read
  the pattern.
  """

  pattern: str | None = None
  schema: str | None = None

  @classmethod
  def regex(cls, pattern: str) -> "Grammar":
    return cls(pattern=pattern)

  @classmethod
  def json_schema(cls, schema: Mapping) -> "Grammar":
    return cls(schema=dumps(schema))

  def __post_init__(self):
    error = self._first.get_error()
    if error:
      raise ConfigError(f"the constraint {self.pattern or self.schema!r}: {error.splitlines()[0]}")

  @functools.cached_property
  def _first(self):
    try:
      import llguidance
    except ImportError:
      raise ConfigError(
        "regular expressions and JSON schemas need the package llguidance: pip install 'jaxlm[constraints]'"
      ) from None
    if self.schema is not None:
      text = llguidance.LLMatcher.grammar_from_json_schema(self.schema)
    else:
      text = llguidance.LLMatcher.grammar_from_regex(self.pattern)
    return llguidance.LLMatcher(_byte_tokenizer(), text, log_level=0)

  @functools.cached_property
  def _matchers(self) -> dict[bytes, Any]:
    return {b"": self._first}

  def start(self):
    return b""

  def advance(self, state, byte):
    text = state + bytes([byte])
    if text not in self._matchers:
      matcher = self._matchers[state].deep_copy()
      allowed = matcher.try_consume_tokens([byte]) == 1 and not matcher.is_error()
      self._matchers[text] = matcher if allowed else None
    return None if self._matchers[text] is None else text

  def complete(self, state):
    return self._matchers[state].is_accepting()


@functools.cache
def _byte_tokenizer():
  """llguidance's view of a vocabulary of the 256 bytes and an end."""
  import llguidance

  class Bytes:
    eos_token_id = bos_token_id = 256
    tokens = [bytes([i]) for i in range(256)] + [b"<end>"]
    special_token_ids = [256]

    def __call__(self, text):
      return list(text.encode() if isinstance(text, str) else text)

  return llguidance.LLTokenizer(llguidance.TokenizerWrapper(Bytes()))


class TokenMachine:
  """A constraint read token by token. tokens: the bytes of each id; stops: ids that end an answer.

  `calls` counts how often a token was looked at.
  """

  def __init__(self, constraint: Constraint, tokens, stops):
    self.constraint, self.tokens, self.stops = constraint, tokens, frozenset(stops)
    self.calls = 0
    self._known: dict = {}

  def start(self):
    return self.constraint.start()

  def after(self, state, token: int):
    """The state after a token: None if it is not allowed, `DONE` behind an allowed stop."""
    self.calls += 1
    key = (state, token)
    if key not in self._known:
      if token in self.stops:
        self._known[key] = DONE if self.constraint.complete(state) else None
      else:
        text = self.tokens[token]
        self._known[key] = self.constraint.read(state, text) if text else None
    return self._known[key]


DONE = ("done",)
