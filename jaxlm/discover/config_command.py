"""`jaxlm config [FILE] [--config.KEY=VALUE]`: every key of a configuration, and the resolved whole."""

from collections.abc import Iterator

from jaxlm import json_text
from jaxlm.commands.exits import command
from jaxlm.commands.flags import CONFIG, Parser, parse_flags
from jaxlm.config import ConfigError, nearest

USAGE = """Print every key with its value, what it means, type, range, default, and the kinds of a part.

  jaxlm config carope/tiny
  jaxlm config carope/tiny --config.model.position=alibi --only=model.position
  jaxlm config runs/tiny --short                      the resolved configuration, a key per line
  jaxlm config carope/tiny --json > mine.json         then: jaxlm train --config=mine.json ...
  jaxlm config                                        the sections, and the kinds of each

A star marks a value that is not the key's default."""


@command("jaxlm config")
def main(argv: list[str]) -> int:
  """`jaxlm config`. Exit codes: `jaxlm.commands.exits`."""
  parser = Parser(
    "jaxlm config", description=USAGE, others=CONFIG, example="jaxlm config carope/tiny"
  )
  parser.add_argument("file", nargs="?", metavar="FILE", help="as of --config")
  parser.add_argument("--only", metavar="KEY", help="only this key and those below it")
  parser.add_argument("--short", action="store_true", help="a line per key, without explanations")
  parser.add_argument("--json", action="store_true", help="the resolved configuration as JSON")
  spec, overrides, rest = parse_flags(argv)
  args = parser.parse_args(rest)
  if spec is not None and args.file is not None and spec != args.file:
    raise ConfigError(f"two configurations, {args.file} and --config={spec}; give one")
  spec = spec or args.file

  from jaxlm.training.config import configured, resolved

  if spec is None:
    if overrides:
      raise ConfigError(
        f"--config.{next(iter(overrides))} changes a configuration and none is given; name one, as in jaxlm config carope/tiny"
      )
    return _sections()
  cfg = configured(spec, overrides)
  if args.json:
    print(json_text.dumps(resolved(cfg), indent=1))
    return 0
  from jaxlm.discover.configs import entries

  found = list(entries(cfg))
  if args.only:
    below = [e for e in found if e.path == args.only or e.path.startswith(f"{args.only}.")]
    if not below:
      raise ConfigError(
        f"--only={args.only}: no such key; {nearest(args.only, [e.path for e in found])}"
      )
    found = below
  for entry in found:
    print(_line(entry))
    if not args.short:
      print("\n".join(f"    {line}" for line in _about(entry)))
  return 0


def _line(entry) -> str:
  return f"{entry.path} = {entry.value!r}{'  *' * entry.changed}".replace("'", "")


def _about(entry) -> Iterator[str]:
  key = entry.key
  if key.help:
    yield key.help
  facts = [key.type]
  if key.allowed:
    facts.append(key.allowed)
  if key.required:
    facts.append("required")
  elif entry.changed:
    facts.append(f"default {key.default!r}".replace("'", ""))
  yield "; ".join(facts)
  if key.kinds:
    yield f"kinds: {', '.join(key.kinds)}"


def _sections() -> int:
  """What a configuration consists of, where none is given."""
  import dataclasses

  from jaxlm.discover.configs import Entry, entries
  from jaxlm.discover.fields import keys
  from jaxlm.training.config import RunConfig, TrainConfig

  for key in keys(RunConfig):
    print(f"{key.name}{'' if key.required else '  (may be left out)'}")
    print(f"    {key.help}")
    if key.kinds:
      print(f"    kinds: {', '.join(key.kinds)}")
    inside = (
      list(entries(key.default, f"{key.name}.")) if dataclasses.is_dataclass(key.default) else []
    )
    if key.name == "train":
      inside = [Entry(f"train.{k.name}", k.default, k) for k in keys(TrainConfig)]
    for entry in inside:
      print(f"  {entry.path}" if entry.key.required else f"  {_line(entry)}")
      print("\n".join(f"      {line}" for line in _about(entry)))
  print("\n`jaxlm config carope/tiny` shows a whole one; `jaxlm list configs` lists them.")
  return 0
