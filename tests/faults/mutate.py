"""Seeded damage: of bytes, of nested values as JSON or a config holds them, and of command lines."""

import copy
import json
import random

#: What people, other programs and enemies write where another value belongs.
STRANGE = (
  None,
  True,
  False,
  0,
  -1,
  1,
  2,
  3,
  1 << 31,
  1 << 63,
  10**30,
  -(1 << 70),
  0.5,
  -0.0,
  1e-300,
  1e300,
  float("nan"),
  float("inf"),
  "",
  "x",
  "none",
  "nan",
  "rope",
  "../x",
  "/etc/passwd",
  "\0",
  "a" * 5000,
  "\ud800",
  "é",
  [],
  {},
  [1],
  [None],
  [[[]]],
  {"kind": {}},
  {"kind": []},
  {"kind": "nothing"},
  {"kind": None},
  {"": 1},
  {"kind": "decoder", "kind2": 1},
  [1, "a", None],
  {"__float__": "Infinity"},
)


def flip(data: bytes, rng: random.Random) -> bytes:
  """One bit is another."""
  if not data:
    return b"\x01"
  out = bytearray(data)
  out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
  return bytes(out)


def damaged(data: bytes, rng: random.Random) -> tuple[str, bytes]:
  """(what was done, bytes): cut, flipped, zeroed, doubled, replaced, or text put in."""
  at, end = sorted((rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)))
  kind = rng.choice(
    ("truncate", "empty", "flip", "flips", "zero", "repeat", "random", "insert", "remove", "append")
  )
  out = {
    "truncate": lambda: data[:at],
    "empty": lambda: b"",
    "flip": lambda: flip(data, rng),
    "flips": lambda: _flips(data, rng),
    "zero": lambda: data[:at] + bytes(end - at) + data[end:],
    "repeat": lambda: data[:end] + data[at:],
    "random": lambda: data[:at] + rng.randbytes(end - at) + data[end:],
    "insert": lambda: data[:at] + _piece(rng) + data[at:],
    "remove": lambda: data[:at] + data[end:],
    "append": lambda: data + _piece(rng),
  }[kind]()
  return kind, out


def _flips(data: bytes, rng) -> bytes:
  for _ in range(rng.randint(2, 20)):
    data = flip(data, rng)
  return data


def _piece(rng) -> bytes:
  return rng.choice(
    (
      b"\0",
      b"\xff\xfe",
      b"{",
      b"]",
      b'"',
      b",",
      b"null",
      b"1e999",
      b"NaN",
      b"-1",
      b"9" * 5000,
      b"[" * 3000,
      b'{"a":' * 3000,
      b"\n\n",
      "\u2028".encode(),
      b"\\ud800",
      rng.randbytes(16),
    )
  )


def places(value, at=()) -> list[tuple]:
  """The path of every value inside a nested one, itself included."""
  inner = (
    value.items()
    if isinstance(value, dict)
    else enumerate(value)
    if isinstance(value, list)
    else ()
  )
  return [at, *(path for key, item in inner for path in places(item, (*at, key)))]


def changed(value, rng: random.Random, times: int | None = None):
  """A copy in which some values are strange, lost, exchanged or renamed."""
  value = copy.deepcopy(value)
  for _ in range(times or rng.choice((1, 1, 1, 2, 4))):
    path = rng.choice(places(value))
    if not path:
      if rng.random() < 0.05:
        return copy.deepcopy(rng.choice(STRANGE))
      continue
    parent = value
    for key in path[:-1]:
      parent = parent[key]
    key, kind = (
      path[-1],
      rng.choice(("strange", "strange", "strange", "lose", "near", "other", "rename", "nest")),
    )
    if kind == "lose":
      del parent[key]
    elif kind == "near" and isinstance(parent[key], (int, float)):
      parent[key] = rng.choice(
        (
          -parent[key],
          parent[key] + 1,
          parent[key] * 1000,
          parent[key] / 3,
          str(parent[key]),
          [parent[key]],
        )
      )
    elif kind == "other":
      other = value
      for step in rng.choice(places(value)):
        other = other[step]
      parent[key] = copy.deepcopy(other)
    elif kind == "rename" and isinstance(parent, dict):
      parent[rng.choice((f"{key}x", str(key)[:-1], "kind", "", *map(str, parent)))] = parent.pop(
        key
      )
    elif kind == "nest":
      parent[key] = {"kind": parent[key]} if rng.random() < 0.5 else [parent[key]]
    else:
      parent[key] = copy.deepcopy(rng.choice(STRANGE))
  return value


def json_damaged(data: bytes, rng: random.Random) -> tuple[str, bytes]:
  """(what was done, bytes) of a JSON file: half of the time its bytes, else its values."""
  if rng.random() < 0.5:
    return damaged(data, rng)
  try:
    return "values", json.dumps(changed(json.loads(data), rng)).encode()
  except (ValueError, RecursionError):
    return damaged(data, rng)
