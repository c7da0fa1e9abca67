"""One static page about a run: numbers, curves, samples, configuration, environment."""

import base64
import contextlib
import io
import json
from typing import Any

from jaxlm.checkpoint.json_files import read_json
from jaxlm.checkpoint.locations import folder_path
from jaxlm.checkpoint.opening import run_mapping
from jaxlm.config import ConfigError
from jaxlm.discover.configs import entries
from jaxlm.discover.runs import look
from jaxlm.training import metrics
from jaxlm.training.config import load_config, run_config
from jaxlm.training.metric_names import meaning

SHOWN_STARTS = 3


def page(folder: str, *, num_samples: int = 2, max_new_tokens: int = 100, seed: int = 0) -> str:
  """The HTML of a run folder. ConfigError: no run, or jinja2 is not installed."""
  try:
    import jinja2
  except ImportError:
    raise ConfigError("the page needs jinja2: pip install 'jaxlm[report]'") from None
  path = folder_path(folder)
  mapping = run_mapping(path)
  run = look(path)
  try:
    config, note = _config(mapping), ""
  except ConfigError as error:  # of an older version, or of a part that is not here
    config, note = [], f"Its configuration cannot be read by this version: {error}"
  samples, no_samples = _samples(folder, num_samples, max_new_tokens, seed)
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader("jaxlm.discover"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
  )
  environment.filters["marked"] = marked
  return environment.get_template("run.html").render(
    run=run,
    name=path.name or str(folder),
    note=note,
    numbers=[
      {"name": name, "value": _number(value), "meaning": meaning(name)}
      for name, value in sorted(run.numbers.items())
    ],
    curves=_curves(path),
    samples=samples,
    samples_from=f"{num_samples} from an empty prompt, {max_new_tokens} tokens, seed {seed}",
    no_samples=no_samples,
    config=config,
    starts=_starts(path),
  )


def marked(text: str):
  """HTML of a sentence in which names stand between backticks."""
  from markupsafe import Markup, escape

  parts = text.split("`")
  if len(parts) % 2 == 0:  # a backtick without a partner is a character
    return escape(text)
  return Markup("").join(
    Markup("<code>{}</code>").format(part) if i % 2 else escape(part)
    for i, part in enumerate(parts)
  )


def _config(mapping) -> list[dict[str, Any]]:
  return [
    {
      "path": entry.path,
      "value": _text(entry.value),
      "default": "required" if entry.key.required else _text(entry.key.default),
      "help": entry.key.help,
      "changed": entry.changed,
    }
    for entry in entries(run_config(load_config(mapping, trusted=False)))
  ]


def _samples(folder: str, number: int, tokens: int, seed: int) -> tuple[list[str], str]:
  """(texts that the model makes, why there are none)."""
  if number < 1:
    return [], "None were asked for."
  from jaxlm.generation.command import main

  out, err = io.StringIO(), io.StringIO()
  flags = ["--run", str(folder), f"--num_samples={number}", f"--max_new_tokens={tokens}"]
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    code = main([*flags, f"--seed={seed}", "--json"])
  if code:
    return [], err.getvalue().strip().removeprefix("jaxlm generate: ")
  found = [json.loads(line) for line in out.getvalue().splitlines()]
  return [text.get("text", text.get("continuation", "")) for text in found], ""


def _curves(path) -> str:
  """The picture of the curves in base64; '' where there is nothing to draw."""
  data = metrics.picture(metrics.read(path))
  return base64.b64encode(data).decode() if data else ""


def _starts(path) -> list[list[tuple[str, str]]]:
  """The last starts of the run, as rows of a table, the newest first."""
  try:
    starts = read_json(path / "run.json", list)
  except (ConfigError, OSError):
    return []
  return [
    [(name, _text(value)) for name, value in start.items()]
    for start in reversed(starts[-SHOWN_STARTS:])
    if isinstance(start, dict)
  ]


def _number(value) -> str:
  return f"{value:.6g}" if isinstance(value, (int, float)) else str(value)


def _text(value) -> str:
  if isinstance(value, dict):
    return ", ".join(f"{key} {item}" for key, item in value.items())
  return str(value)
