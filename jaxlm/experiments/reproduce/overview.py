"""What the pages say about a system as a whole: its main claims at scale `smoke`, from the tables' JSON.

The systems and their main claims are declared in experiments/systems.py.
"""

import importlib.util
import json
import pathlib
from collections.abc import Sequence

from jaxlm.config import ConfigError, nearest
from jaxlm.experiments.verdict import sentence

ROOT = pathlib.Path(__file__).resolve().parents[3]
SYSTEMS = "experiments/systems.py"
COSTS = "docs/measured/first_runs.json"


def systems() -> Sequence:
  """SYSTEMS of experiments/systems.py."""
  spec = importlib.util.spec_from_file_location("jaxlm_systems", ROOT / SYSTEMS)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.SYSTEMS


def named(name: str):
  """The system with this name; ConfigError with the nearest one if there is none."""
  found = {system.name: system for system in systems()}
  if name not in found:
    raise ConfigError(f"no such system: {name}; {nearest(name, list(found))}")
  return found[name]


def main_claims(system) -> list[dict]:
  """Per main claim of a system its record in the table's JSON; {"claim", "verdict": "not run"} where
  there is none."""
  from jaxlm.experiments.reproduce.command import declared

  stems = {item.name: item.stem("smoke") for item in declared()[0]}
  out = []
  for table, claim in system.claims:
    path = ROOT / f"{stems[table]}.json"
    kept = json.loads(path.read_text())["claims"] if path.exists() else []
    found = next((each for each in kept if each["claim"] == claim), None)
    out.append(found or {"claim": claim, "verdict": "not run"})
  return out


def word(claims: Sequence[dict]) -> str:
  """`shown` if all claims are, `partly` if some are, else `not shown`, with the counts."""
  verdicts = [claim["verdict"] for claim in claims]
  shown, contradicted = verdicts.count("shown"), verdicts.count("contradicted")
  if shown == len(verdicts):
    return f"shown ({shown} of {shown} claims)"
  against = f", {contradicted} contradicted" if contradicted else ""
  unrun = sum(verdict in ("not run", "not measured") for verdict in verdicts)
  missing = f", {unrun} not run" if unrun else ""
  return (
    f"{'partly' if shown else 'not shown'} ({shown} of {len(verdicts)} claims{against}{missing})"
  )


def verdict(name: str) -> list[str]:
  """Lines of Markdown: the word, then the main claims."""
  claims = main_claims(named(name))
  lines = [f"Main claims of the paper at scale `smoke`: **{word(claims)}**.", ""]
  for claim in claims:
    judged = "**not run**" if claim["verdict"] == "not run" else sentence(claim)
    lines.append(f"- {claim['claim']}: {judged}")
  return lines


def first_run(name: str) -> list[str]:
  """Lines of Markdown: the first command of a system, what it cost and where it ended."""
  system = named(name)
  kept = json.loads((ROOT / COSTS).read_text()).get(name) if (ROOT / COSTS).exists() else None
  lines = ["```sh", system.command, "```", ""]
  if kept is None:
    return [*lines, "Not measured yet."]
  evaluation = {k: v for k, v in kept["evaluation"].items() if k != "step"}
  shown = ", ".join(f"`{name}` {value:.3f}" for name, value in sorted(evaluation.items()))
  return [
    *lines,
    f"{_minutes(kept['cpu_s'])} of CPU time on one core, start and compilation included. The loss falls from "
    f"{kept['first_loss']:.3f} at the first logged step to {kept['loss']:.3f} at step {kept['step']:,}."
    + (f" Last evaluation: {shown}." if shown else ""),
    "",
    f"Measured by `bench/first_runs.py`, {kept['date']}, revision {kept['revision']}, {kept['cpu']}, load "
    f"{kept['load']} before and {kept['load_after']} after.",
  ]


def table(root: str) -> list[str]:
  """The table of README.md. root: of links, from the page to the repository."""
  costs = json.loads((ROOT / COSTS).read_text()) if (ROOT / COSTS).exists() else {}
  lines = [
    "| System | Paper | Try it | CPU time | Paper's main claims at `smoke` |",
    "| --- | --- | --- | ---: | --- |",
  ]
  for system in systems():
    paper = f"[{system.arxiv}](https://arxiv.org/abs/{system.arxiv})"
    cost = _minutes(costs[system.name]["cpu_s"]) if system.name in costs else "not measured"
    lines.append(
      f"| [{system.title}]({root}docs/systems/{system.name}.md) | {paper} | `{system.command}` | {cost} | "
      f"[{word(main_claims(system))}]({root}docs/systems/{system.name}.md#results) |"
    )
  return lines


def _minutes(seconds: float) -> str:
  return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
